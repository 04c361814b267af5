"""How numbers, histograms and pictures are written into an event file, under the tags and descriptions of log.py."""

import io
import struct
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from tensorboard.compat.proto import summary_pb2
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import CRC_TABLE, crc_update
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from bp_torch.files import naming
from bp_torch.training.images import Picture

BINS = 64
BLOCK = 512  # bytes whose checksum is found at once


class EventFile:
    """An event file of a run, in the run's own folder."""

    def __init__(self, folder: Path, describe: Callable[[str], str], purge_step: int | None = None) -> None:
        """``describe`` gives the description of a tag; TensorBoard forgets what stands from ``purge_step`` on."""
        self.writer = open_writer(folder, purge_step)  # torch's own, for values without a description
        self._describe = describe
        self._described: set[str] = set()

    def scalars(self, values: Mapping[str, float], step: int, taken: float | None = None) -> None:
        """Write numbers at a step, taken at this time: seconds since 1970, None for now."""
        kind = "scalars", summary_pb2.DATA_CLASS_SCALAR
        self.summary(Summary(value=[self._value(*kind, t, simple_value=v) for t, v in values.items()]), step, taken)

    def picture(self, tag: str, picture: Picture, step: int) -> None:
        """Write a picture, (height, width, 3) of bytes."""
        content = io.BytesIO()
        Image.fromarray(picture).save(content, "PNG", compress_level=1)  # half the time, and a few percent more bytes
        height, width, _ = picture.shape
        written = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=content.getvalue())
        value = self._value("images", summary_pb2.DATA_CLASS_BLOB_SEQUENCE, tag, image=written)
        self.summary(Summary(value=[value]), step)

    def histograms(self, named: Mapping[str, Tensor], magnitudes: Mapping[str, Tensor], step: int) -> list[str]:
        """Histograms of the numbers in ``named``, and of log₁₀|·| of those in ``magnitudes``, without their zeros.

        They are read from the device twice: the ranges of all tensors, then the counts of all. Returns the tags of
        those with NaN or ∞, which are not written.
        """
        values = {tag: tensor.float() for tag, tensor in named.items() if tensor.numel()}  # a shard may be empty
        values |= {tag: tensor.float().abs().log10() for tag, tensor in magnitudes.items() if tensor.numel()}
        found = dict(zip(values, read([sums_of(values[tag], tag in magnitudes) for tag in values]), strict=True))
        finite = {tag: numbers for tag, numbers in found.items() if numbers[-1] and all(map(isfinite, numbers))}
        ranges = {}
        for tag, (low, high, *_) in finite.items():  # histc would spread a constant over ± 1
            ranges[tag] = (low, high) if low < high else (low - 1e-6, high + 1e-6)
        counts = read([torch.histc(values[tag], BINS, *limits) for tag, limits in ranges.items()])
        for (tag, (low, high)), counted in zip(ranges.items(), counts, strict=True):
            *_, total, squares, number = finite[tag]
            bins = {"bucket_limit": np.linspace(low, high, BINS + 1)[1:].tolist(), "bucket": counted}
            written = HistogramProto(min=low, max=high, num=number, sum=total, sum_squares=squares, **bins)
            value = self._value("histograms", summary_pb2.DATA_CLASS_TENSOR, tag, histo=written)
            self.summary(Summary(value=[value]), step)
        return [tag for tag, numbers in found.items() if numbers[-1] and tag not in finite]

    def summary(self, summary: Any, step: int | None = None, taken: float | None = None) -> None:
        """Write a summary as it is."""
        self.writer._get_file_writer().add_summary(summary, step, taken)

    def _value(self, plugin: str, data_class: int, tag: str, **value: Any) -> Summary.Value:
        """A value for a ``plugin`` of TensorBoard; the first of a tag brings the description."""
        if tag not in self._described:
            self._described.add(tag)
            about = {"plugin_data": SummaryMetadata.PluginData(plugin_name=plugin), "data_class": data_class}
            # Without the class of the data, TensorBoard drops the description.
            value["metadata"] = SummaryMetadata(**about, summary_description=self._describe(tag))
        return Summary.Value(tag=tag, **value)


def read(rows: list[Tensor]) -> list[list[float]]:
    """The numbers of tensors of one length, read from the device at once."""
    return torch.stack(rows).tolist() if rows else []


def sums_of(values: Tensor, logarithms: bool) -> Tensor:
    """Smallest, largest, sum, sum of squares and number of the values; without log 0 = −∞ where they are logarithms."""
    # Masked, not selected: to select means to wait for a GPU.
    kept = values != -torch.inf if logarithms else torch.ones_like(values, dtype=torch.bool)
    numbers = torch.where(kept, values, 0)
    least = torch.where(kept, values, torch.inf).min()
    return torch.stack([least, values.max(), numbers.sum(), numbers.square().sum(), kept.sum().float()])


def open_writer(folder: Path, purge_step: int | None = None) -> SummaryWriter:
    """A writer of a new event file in ``folder``. Raises OSError if no file can be written there.

    TensorBoard reads the files of a folder in the order of the seconds in their names, and shows nothing that comes
    after a later step: this file's name comes last, even if the clock was set back.
    """
    with tempfile.TemporaryFile(dir=folder):  # the writer would fail in a thread of its own, with a traceback
        pass
    seconds = [path.name.split(".")[3] for path in folder.glob("events.out.tfevents.*")]
    latest = max([int(number) for number in seconds if number.isdecimal()], default=0)
    writer = SummaryWriter(str(folder), purge_step=purge_step)
    events = writer._get_file_writer().event_writer
    events._async_writer.close()  # a thread, which would share Python's lock with the steps
    made = Path(events._file_name)
    if int(made.name.split(".")[3]) <= latest:
        made = made.rename(made.with_name(made.name.replace(made.name.split(".")[3], f"{latest + 1:010d}")))
    events._file_name, events._async_writer = str(made), Records(made)
    return writer


class Records:
    """The records of an event file, in the place of tensorboard's own writer. A checksum takes that 90 ns a byte."""

    def __init__(self, path: Path) -> None:
        """At the end of the file."""
        self._path, self._file = path, path.open("ab")

    def write(self, record: bytes) -> None:
        """Add a record: its length with a checksum, then itself with one."""
        with naming(self._path):
            for part in (struct.pack("<Q", len(record)), record):
                self._file.write(part + struct.pack("<I", masked(checksum(part))))
        self.flush()  # TensorBoard may be reading

    def flush(self) -> None:
        """Hand over what a full disk did not take."""
        with naming(self._path):
            self._file.flush()

    def close(self) -> None:
        """Close the file. What a full disk did not take was reported by ``write``."""
        with suppress(OSError):
            self._file.close()


def masked(crc: int) -> int:
    """A checksum as event files have it."""
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def checksum(data: bytes) -> int:
    """The CRC-32C of ``data``: of what is no whole block by tensorboard's loop over its bytes, then block by block."""
    rest = len(data) % BLOCK
    crc: int = crc_update(0, data[:rest]) ^ 0xFFFFFFFF
    if len(data) > rest:
        tables = block_tables()
        blocks = np.frombuffer(data, np.uint8, offset=rest).reshape(-1, BLOCK)
        found = np.bitwise_xor.reduce(tables[np.arange(BLOCK), blocks], 1)  # of each block, after a checksum of 0
        for of_block in found.tolist():  # a checksum is linear: what came before counts as the block's first bytes
            before = [int(tables[n, crc >> 8 * n & 255]) for n in range(4)]
            crc = of_block ^ before[0] ^ before[1] ^ before[2] ^ before[3]
    return crc ^ 0xFFFFFFFF


@cache
def block_tables() -> npt.NDArray[np.uint32]:
    """The part of each byte of a block in its checksum, by the place of the byte, (BLOCK, 256)."""
    last = np.array(CRC_TABLE, np.uint32)
    tables = [last]
    for _ in range(BLOCK - 1):
        tables.append(last[tables[-1] & 255] ^ tables[-1] >> 8)
    return np.stack(tables[::-1])
