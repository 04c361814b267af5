"""What a data set is: its inputs, its classes or targets, and how its numbers became inputs. It is known without torch.

A ``Kind`` goes with the examples of a data set. That of somebody's own data is also in the config.json of each run.
"""

from dataclasses import dataclass
from math import isfinite
from string import ascii_lowercase, ascii_uppercase, digits
from typing import Any, Self

from bp_torch.flags import check_types
from bp_torch.text import count
from bp_torch.values import CLASSES, PIXELS, SIDE

SHOWN = 12  # names of classes in a sentence


@dataclass(frozen=True)
class Kind:
    """The kind of a data set; by default MNIST's. An input is (value − shift) / scale, and a real target likewise."""

    inputs: int = PIXELS
    outputs: int = CLASSES  # classes, or real targets
    image: tuple[int, ...] = (SIDE, SIDE)  # height, width, and 3 where there are colours; () for other numbers
    names: tuple[str, ...] = ()  # of the classes or targets; () for 0, 1, 2, …
    real: bool = False  # whether the targets are real numbers, and not classes
    shift: tuple[float, ...] = (0.0,)  # one for all inputs, or one for each
    scale: tuple[float, ...] = (255.0,)
    target_shift: tuple[float, ...] = ()  # one for each real target
    target_scale: tuple[float, ...] = ()
    seed: int | None = None  # the seed that drew the test set out of the training set; None: it is not from there
    sha256: str = ""  # of all examples; "" for the data sets that have a name
    source: str = ""  # what was read, in words

    def __post_init__(self) -> None:
        """Raise ValueError for numbers by which nothing can be shifted or scaled."""
        scales = self.scale + self.target_scale
        if 0 in scales or not all(map(isfinite, self.shift + self.target_shift + scales)):
            raise ValueError("the numbers are so large, or so small, that their mean or their range cannot be computed")

    @property
    def is_digits(self) -> bool:
        """Whether these are images of 28×28 pixels in ten classes, as MNIST's are."""
        return (self.image, self.outputs, self.real) == ((SIDE, SIDE), CLASSES, False)

    def fits(self, sizes: tuple[int, ...]) -> bool:
        """Whether a network of these sizes has as many inputs and outputs."""
        return (sizes[0], sizes[-1]) == (self.inputs, self.outputs)

    def name(self, label: int) -> str:
        """The name of a class."""
        return self.names[label] if self.names else str(label)

    @property
    def words(self) -> str:
        """Inputs and outputs in words: 8×8 images, 10 classes."""
        images = f"{'×'.join(map(str, self.image[:2]))} images{' in colour' * (len(self.image) > 2)}"
        outputs = count(self.outputs, "target") if self.real else count(self.outputs, "class", "classes")
        return f"{images if self.image else count(self.inputs, 'column')}, {outputs}"

    def __str__(self) -> str:
        """Everything that a run says of somebody's own data in its first lines, its scaling included."""
        names = f" ({', '.join(self.names[:SHOWN])}{', …' * (len(self.names) > SHOWN)})" if self.names else ""
        standard = "minus its mean, divided by its standard deviation, both of the training examples"
        scaled = f"each {'column and target' if self.real else 'column'} {standard}"
        if self.image:
            scaled = f"pixels from {self.shift[0]:g} to {self.shift[0] + self.scale[0]:g} become 0 to 1"
            scaled += f"; each target {standard}" * self.real
        return f"{self.source}: {self.words}{names}; {scaled}"

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> Self:
        """The kind that ``dataclasses.asdict`` gave. Raises ValueError or TypeError for anything else."""
        lists: dict[str, Any] = {name: tuple(value) for name, value in found.items() if isinstance(value, list)}
        kind = cls(**found | lists)
        check_types(kind)
        return kind


CAPITALS = f"{digits}{ascii_uppercase}"
MERGED = f"{CAPITALS}abdefghnqrt"  # with the small letters that differ from their capitals
EMNIST = {"letters": ascii_uppercase, "balanced": MERGED, "bymerge": MERGED, "byclass": f"{CAPITALS}{ascii_lowercase}"}
CLOTHES = ("top", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
KINDS: dict[str, Kind] = {  # the data sets that have a name
    "mnist": Kind(),
    "fashion-mnist": Kind(names=CLOTHES),
    **dict.fromkeys(("kmnist", "qmnist", "emnist-digits", "emnist-mnist"), Kind()),
    **{f"emnist-{split}": Kind(outputs=len(names), names=tuple(names)) for split, names in EMNIST.items()},
}
