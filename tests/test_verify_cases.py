"""The cases from outside the bank are many and are what they say, and the score on them is what it should be."""

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

from bp_torch.verify.bench import outside
from bp_torch.verify.cases import WAYS, Case, Version, case, cases, function_of

ROOT = Path(__file__).parent.parent
RIGHT, WRONG, DIAGNOSED = 1.0, 1.0, 0.7  # the shares of the versions with the verdict due, and with a diagnosis
HOLD = ("complex product", "dw over the wrong axis", "saturated sigmoid", "dy is lost")
VERSIONS = [(one, version) for one in cases() for version in one.versions]


def test_120_versions_are_right_and_120_wrong_and_each_has_a_source() -> None:
    right = [version for _, version in VERSIONS if version.right]
    assert len(right) >= 120 and len(VERSIONS) - len(right) >= 120
    assert len({(one.name, version.way, version.source) for one, version in VERSIONS}) == len(VERSIONS)
    assert all(one.seen_in for one in cases()) and {version.way for _, version in VERSIONS} == set(WAYS)


def gradients(one: Case, version: Version) -> tuple[Tensor, Tensor]:
    """All gradients of a version, and autograd's of the reference, in float64, flat, for one dy."""
    scope, found = one.scope(version), []
    for function in (function_of(scope), scope["reference"]):
        inputs = one.arguments(torch.float64)
        leaves = [t.requires_grad_() for t in inputs if t.is_floating_point() or t.is_complex()]
        y = function(*inputs)
        dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype)
        grads = torch.autograd.grad((y * dy).sum().real, leaves, materialize_grads=True)
        found.append(torch.cat([torch.view_as_real(g + 0j).reshape(-1) for g in grads]))
    return found[0], found[1]


def test_right_versions_are_autograds_and_wrong_ones_are_not() -> None:
    checked, different = 0, []
    other = re.compile(r"kept|strided|copy_|mul_|zero_|rng|y = \(|\* 0, 1\.0\)|1e-5\)\.rsqrt")  # not the formula alone
    for one, version in VERSIONS:
        if version.due in (("RIGHT",), ("WRONG",)) and torch.float64 in one.dtypes and version.way != "numpy":
            if other.search(version.source):
                continue
            ours, right = gradients(one, version)
            known = right.isfinite()
            same = torch.allclose(ours[known], right[known], rtol=1e-6, atol=1e-9) and bool(ours.isfinite().all())
            if version.way == "frozen" or not (version.right or known.all()):
                continue  # None on purpose; or autograd itself gives NaN where it may differ
            checked += 1
            different += [f"{one.name}, {version.name}"] if same != version.right else []
    assert checked >= 150 and different == []


def test_a_case_is_read_as_it_is_written() -> None:
    text = """a name | where | bfloat16: x=(2, 3), n=indices(2, 2) |
    (x * 2, x)
    y = (x * 2, x)
    return 2 * dy + dz
    RIGHT as written; twice dz first: return dz + 2 * dy
    WRONG/SETUP alone half: 2 * dy → dy | ½"""
    one = case(text)
    assert (one.name, one.seen_in, one.dtypes) == ("a name", "where", (torch.bfloat16,))
    assert [(v.name, v.due, v.way, v.words) for v in one.versions] == [
        ("as written", ("RIGHT",), "function", ""),
        ("dz first", ("RIGHT",), "twice", ""),
        ("half", ("WRONG", "SETUP"), "alone", "½"),
    ]
    assert "return 2 * dy + dz" in one.versions[0].source and "return dy + dz" in one.versions[2].source
    with pytest.raises(ValueError, match="a name, half: '3 \\* dy' is there 0 times, wanted once"):
        case(text.replace("2 * dy →", "3 * dy →"))


@pytest.mark.parametrize("name", HOLD)
def test_every_version_of_these_cases_gets_the_verdict_due_and_no_misleading_words(name: str) -> None:
    score = outside([one for one in cases() if one.name.startswith(name)])[0]
    assert score.layers and score.faults and score.alarms == [] and score.missed == [] and score.wrongly == 0, score


def test_a_version_that_cannot_be_checked_has_not_got_its_verdict() -> None:
    head = "fails | here | x=(2, 3) | x.sin()"
    text = f"{head}\n    return dy * x.coz()\n    RIGHT as written\n    WRONG twice: return dy.coz()"
    score = outside([case(text)])[0]
    assert score.alarms == ["fails: layer: as written"] and score.missed == ["fails: layer: twice"]


@pytest.mark.long
def test_the_score_on_all_cases() -> None:
    score = outside()[0]
    assert score.layers - len(score.alarms) >= RIGHT * score.layers, score.alarms
    assert score.caught >= WRONG * score.faults, score.missed
    assert score.rightly >= DIAGNOSED * score.faults and score.wrongly <= 2, score.misnamed


def test_pages_say_how_many_cases_there_are() -> None:
    right = sum(version.right for _, version in VERSIONS)
    for page in ("README.md", "docs/verify.md"):
        text = " ".join((ROOT / page).read_text(encoding="utf-8").split())
        assert f"{right} right" in text and f"{len(VERSIONS) - right} wrong" in text, page
