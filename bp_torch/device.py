"""The device, the precision of its matrix products, and the number of CPU threads."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from bp_torch.cli import UserError

SMALL = 2**23
"""Multiplications in a step below which a second CPU thread costs more than it gains.

An epoch of 784-16-16-10 (1.3 million a step) took 88 ms with one thread and 101 ms with two on two idle cores of an AMD
EPYC, and 40 times as long where another process had one of them; one of 784-512-512-10 in batches of 256 (171 million)
took 2.3 s and 1.5 s. Torch 2.15, medians of five epochs in turns.
"""

STARTING = 2**21
"""Multiplications in a step below which a GPU spends nearly all of its time starting kernels.

By estimate, for no GPU has been timed: about 30 kernels in a recorded step of 784-16-16-10 (1.3 million) take an H200
55 to 95 µs, and 1 µs would do for what they compute. One core of an AMD EPYC takes 100 to 150 µs.
"""


class DeviceError(UserError):
    """The device is not there, or cannot do what was asked. The message says what to try."""


def choose_device(name: str) -> torch.device:
    """The device called ``name``, a GPU with its number; "auto" is the first NVIDIA GPU, else the CPU.

    Products of float32 matrices are float32 from now on, whatever the environment says (``set_precision``).
    Raises DeviceError for a device that this machine does not have: there is no silent fallback. Apple's mps is none:
    it has no float64, in which costs are added up and gradients are checked.
    """
    torch.set_float32_matmul_precision("highest")  # TORCH_ALLOW_TF32_CUBLAS_OVERRIDE lowers it, as in NVIDIA's images
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        kind, known = name.partition(":")[0], {"mps": "mps has no float64", "gpu": "did you mean cuda?"}
        if kind not in ("cpu", "cuda"):
            raise RuntimeError(known.get(kind.lower(), "wanted auto, cpu, cuda or cuda:N"))
        return torch.empty(1, device=torch.device(name)).device
    except (RuntimeError, AssertionError) as error:
        raise DeviceError(f"no device {name!r} here ({str(error).splitlines()[0]}); try --device cpu") from error


def has_bfloat16(device: torch.device) -> bool:
    """Whether ``device`` has instructions for products of bfloat16 matrices.

    A CPU without them is far slower than in float32: on one core of an AMD EPYC with AVX2, a product of (256, 1000) and
    (1000, 1000) made 2 GFLOPS in bfloat16 and 88 in float32 (torch 2.14.1, 2026-11-27).
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch
        return False
    return any(torch.cpu.get_capabilities().get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def set_precision(precision: str, device: torch.device) -> None:
    """Use TF32 (10 bits of mantissa instead of 23) in products of float32 matrices only if ``precision`` is "tf32".

    Raises DeviceError if the device has no TF32.
    """
    if precision == "tf32" and (device.type != "cuda" or torch.cuda.get_device_capability(device) < (8, 0)):
        raise DeviceError(f"--precision tf32 takes an NVIDIA GPU of 2020 or later, not {device}: try bf16")
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")


@contextmanager
def settings_kept() -> Iterator[None]:
    """Threads and the precision of matrix products are afterwards as they were before, whatever is set inside."""
    threads = torch.get_num_threads()
    try:
        with full_precision():
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def full_precision() -> Iterator[None]:
    """Products of float32 matrices have all of its digits inside, whatever is set outside, and there again afterwards.

    torch has two kinds of switches: an older one, which cannot be read once the newer ones say something else.
    """
    switches = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    newer, older = [switch.fp32_precision for switch in switches], "highest"
    with suppress(RuntimeError):
        older = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")  # sets both kinds
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(older)
        for switch, precision in zip(switches, newer, strict=True):
            switch.fp32_precision = precision


def cpu_hint(device: torch.device, multiplications: int) -> str | None:
    """A sentence about a ``device`` that is hardly faster than a CPU in a step of few ``multiplications``; else None.

    For who left the choice of the device to ``auto``.
    """
    if device.type == "cpu" or multiplications >= STARTING:
        return None
    return "a CPU takes about as long for steps this small; a GPU is for larger networks, or many at once (sweep)"


def set_threads(threads: int | None, multiplications: int) -> None:
    """Use ``threads`` CPU threads; None: one for a step of few ``multiplications``, else torch's own number."""
    if threads is None and multiplications < SMALL:
        threads = 1
    if threads is not None:
        torch.set_num_threads(threads)
