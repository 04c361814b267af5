import pytest
import torch

from bp_torch.device import DeviceError, choose_device, set_precision, set_threads


@pytest.mark.parametrize("device", ["cuda:99", "toaster"])
def test_missing_device_is_named(device: str) -> None:
    with pytest.raises(DeviceError, match=f"no device '{device}' here"):
        choose_device(device)


def test_auto_is_the_first_gpu_else_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert choose_device("auto") == torch.device("cpu")


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
