import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from bp_torch import __main__ as package
from bp_torch.benchmark.scripts import THREAD_VARIABLES
from bp_torch.device import (
    DeviceError,
    choose_device,
    cpu_hint,
    full_precision,
    has_bfloat16,
    set_precision,
    set_threads,
)
from bp_torch.sweep.config import SweepConfig
from bp_torch.sweep.loop import sweep
from bp_torch.training import Config, TrainingError, train
from bp_torch.verify.check import full_precision as full_precision_of_verify
from tests.harness import FORK


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_missing_device_is_named(device: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{device}' here") as said:
        choose_device(device)
    assert ("(wanted auto, cpu, cuda or cuda:N)" in str(said.value)) == (device == "toaster")


@pytest.mark.parametrize("name", ["gpu", "GPU:0"])
def test_cuda_is_proposed_to_who_wants_a_gpu(name: str) -> None:
    with pytest.raises(DeviceError, match=rf"^no device '{name}' here \(did you mean cuda\?\); try --device cpu$"):
        choose_device(name)


def test_auto_is_the_first_gpu_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


EMPTY = torch.empty


def mps_has_no_float64(*sizes: Any, device: torch.device | str = "cpu", **options: Any) -> torch.Tensor:
    assert torch.device(device).type != "mps", "mps was asked for memory"
    return EMPTY(*sizes, device=device, **options)


@pytest.mark.parametrize("command", ["train", "verify", "explain nudges --untrained", "benchmark"])
def test_a_mac_works_on_its_cpu_and_refuses_mps_in_a_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: True)
    assert choose_device("auto") == torch.device("cpu")
    monkeypatch.setattr("torch.empty", mps_has_no_float64)
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "1")
    monkeypatch.setattr("sys.argv", ["bp_torch", *command.split(), "--device", "mps"])
    with pytest.raises(SystemExit) as stop:
        package.main()
    said = capsys.readouterr().err
    assert (stop.value.code, said) == (1, "error: no device 'mps' here (mps has no float64); try --device cpu\n")


def test_float32_means_float32_whatever_the_environment_says() -> None:
    code = "import torch; from bp_torch.device import choose_device; print(torch.get_float32_matmul_precision()); "
    code += "choose_device('cpu'); print(torch.get_float32_matmul_precision())"
    environment = os.environ | {"TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "1"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, encoding="utf-8", check=True
    )
    assert said.stdout.split() == ["high", "highest"]


@pytest.mark.parametrize(("threads", "multiplications", "expected"), [(None, 1000, 1), (None, 2**40, 2), (3, 1000, 3)])
def test_small_steps_use_one_thread_unless_told_otherwise(
    threads: int | None, multiplications: int, expected: int
) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        set_threads(threads, multiplications)
        assert torch.get_num_threads() == expected
    finally:
        torch.set_num_threads(before)


def test_tf32_without_a_gpu_is_an_error() -> None:
    with pytest.raises(DeviceError, match="--precision tf32 takes an NVIDIA GPU of 2020 or later, not cpu"):
        set_precision("tf32", torch.device("cpu"))
    set_precision("full", torch.device("cpu"))
    assert torch.get_float32_matmul_precision() == "highest"


SETTINGS = [
    "",
    *(f"torch.set_float32_matmul_precision({name!r})" for name in ("medium", "high", "highest")),
    "torch.backends.cuda.matmul.allow_tf32 = True",
    "torch.backends.cuda.matmul.fp32_precision = 'tf32'",
    "torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    "torch.set_float32_matmul_precision('high'); torch.backends.cuda.matmul.fp32_precision = 'ieee'",
    "torch.backends.mkldnn.matmul.fp32_precision = 'bf16'",
    "torch.backends.fp32_precision = 'tf32'",
]


def switches() -> tuple[str, str, str]:
    """The older switch of the precision of float32 products, and the newer ones."""
    older = "unreadable"
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    newer = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    return older, newer[0].fp32_precision, newer[1].fp32_precision


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("full", [full_precision, full_precision_of_verify], ids=["device", "verify"])
def test_full_precision_is_within_its_lines_only(full: Callable[[], Any], setting: str) -> None:
    def look() -> None:
        exec(setting, {"torch": torch})
        before = switches()
        with suppress(KeyError), full():
            assert switches() == ("highest", "ieee", "ieee")
            raise KeyError
        assert switches() == before
        choose_device("cpu")
        assert switches() == ("highest", "ieee", "ieee")

    child = FORK.Process(target=look)  # a process of its own: some of these settings cannot be taken back
    child.start()
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize(
    ("device", "multiplications", "hinted"), [("cuda:1", 100 * 13_002, True), ("cuda", 2**21, False), ("cpu", 1, False)]
)
def test_small_steps_are_said_to_be_as_quick_on_a_cpu(device: str, multiplications: int, hinted: bool) -> None:
    said = cpu_hint(torch.device(device), multiplications)
    assert (said is not None and "CPU takes about as long for steps this small" in said) == hinted


@pytest.mark.parametrize(
    ("instructions", "expected"),
    [({"avx2": True, "avx512_bf16": False}, False), ({"avx512_bf16": True}, True), ({"amx_bf16": True}, True)],
)
def test_cpu_has_bfloat16_if_it_has_instructions_for_it(
    instructions: dict[str, bool], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: instructions, raising=False)
    assert has_bfloat16(torch.device("cpu")) == expected


def test_torch_that_does_not_know_the_instructions_has_no_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("torch.cpu.get_capabilities", raising=False)
    assert not has_bfloat16(torch.device("cpu"))


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_gpu_has_bfloat16_since_2020(
    capability: tuple[int, int], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert has_bfloat16(torch.device("cuda")) == expected


@pytest.mark.parametrize("precision", ["high", "highest"])
def test_training_leaves_threads_and_precision_as_they_were(precision: str, data_dir: Path, tmp_path: Path) -> None:
    threads, before = torch.get_num_threads(), torch.get_float32_matmul_precision()
    fields: dict[str, Any] = {"epochs": 1, "train_examples": 100, "log": False, "device": "cpu", "data_dir": data_dir}
    try:
        torch.set_num_threads(2)
        torch.set_float32_matmul_precision(precision)
        train(Config(**fields, runs_dir=tmp_path, threads=1))
        sweep(SweepConfig(**fields, runs_dir=tmp_path))
        with pytest.raises(TrainingError):
            train(Config(**fields | {"train_examples": 10**6}, runs_dir=tmp_path))
        assert (torch.get_num_threads(), torch.get_float32_matmul_precision()) == (2, precision)
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(before)
