"""The faults of tests/mutants.py can be planted, and the command tells one that is caught from one that is not."""

import shlex
import subprocess
import sys
from collections import Counter

from tests.mutants import ROOT, mutants


def test_every_fault_can_be_planted_and_names_tests_that_there_are() -> None:
    wrong = []
    for mutant in mutants():
        found = (ROOT / "bp_torch" / mutant.file).read_text(encoding="utf-8").count(mutant.piece)
        if found != 1 or mutant.piece == mutant.fault:
            wrong.append(f"{mutant}: the piece is there {found} times, wanted once")
        for word in shlex.split(mutant.tests):
            file, _, test = word.partition("::")
            if file.startswith("test_") and f"def {test}" not in (ROOT / "tests" / file).read_text(encoding="utf-8"):
                wrong.append(f"{mutant}: there is no {word}")
    assert not wrong, "\n".join(wrong)


def test_every_room_has_faults_most_of_all_the_mathematics() -> None:
    rooms = Counter(mutant.room for mutant in mutants())
    assert sum(rooms.values()) >= 60 and rooms["mathematics"] >= 25
    assert len(rooms) >= 10 and min(rooms.values()) >= 4


TABLE = """
# caught
costs.py: test_costs.py -k half
    (a - y).square().sum(-1)  =>  (a - y).square().sum(-1) / 2
# survives
costs.py: test_costs.py -k half
    return 2 * (a - y)        =>  return 3 * (a - y)
# is no Python
costs.py: test_costs.py -k half
    return 2 * (a - y)        =>  return 2 * (a - y
# is there often
costs.py: test_costs.py -k half
    (a - y)                   =>  (y - a)
# fails before any test
costs.py: test_costs.py -k half
    import torch              =>  import nothing_of_this_name
"""


def test_fault_is_caught_or_survives_or_cannot_be_judged() -> None:
    code = f"from tests import mutants; raise SystemExit(mutants.run(list(mutants.mutants({TABLE!r})), 2))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, encoding="utf-8", check=False)
    found = {line[18:].split("  ")[0]: line.split()[0] for line in done.stdout.splitlines() if line[14:16] == " s"}
    assert found == {
        "no fault": "passed",
        "caught": "caught",
        "survives": "SURVIVED",
        "is no Python": "error",
        "is there often": "error",
        "fails before any test": "error",
    }, done
    assert done.stdout.endswith("\n1 of 5 caught, 3 errors\n") and done.returncode == 1
