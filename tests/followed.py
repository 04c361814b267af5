"""Which functions and files of the package run while something is done: what a reader opens to follow it."""

import sys
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import bp_torch

PACKAGE = Path(bp_torch.__file__).parent


def functions_run(action: Callable[[], object]) -> set[CodeType]:
    """The functions of bp_torch that run, module bodies aside, while ``action`` does."""
    seen: set[CodeType] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            seen.add(frame.f_code)

    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(None)
    return {code for code in seen if code.co_filename.startswith(str(PACKAGE)) and code.co_name != "<module>"}


def files_run(action: Callable[[], object]) -> set[str]:
    """The files of these functions, as "training/step.py"."""
    return {Path(code.co_filename).relative_to(PACKAGE).as_posix() for code in functions_run(action)}
