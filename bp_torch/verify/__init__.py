"""Whether a hand-written gradient is right, and if it is not, where and how it is wrong.

    python -m bp_torch verify                                  this project's own backward, on real digits
    python -m bp_torch verify --device cuda --dtypes float32 bfloat16 --verbose
    python -m bp_torch verify --run runs/NAME                  that of a trained network, on its data

    verify.check(function, inputs, gradient).assert_ok()       anyone's, from Python; see ``check``
    verify.check_layer(forward, inputs, backward).assert_ok()  a layer whose outputs are not a scalar
    verify.check_module(module, inputs).assert_ok()            a module with a hand-written backward inside
    verify.layers["layer-norm"].backward                       a right backward of this layer, from bank/

A gradient is compared with three references that are independent of it: autograd in the same dtype ("autograd"),
autograd in float64 ("float64"), and central differences in float64 ("central"). The error of a tensor is
‖gradient − reference‖ / ‖reference‖. Entry by entry would mislead: an entry near zero is a sum of terms that cancel,
and in float32 it is off by any factor where nothing is wrong.

The answer is one of five verdicts: RIGHT, WRONG, KINK, NOISE or SETUP (report.py). A backward of a coarser dtype also
runs in float64 if it can, where rounding does not hide a fault (judge.py). ``python -m bp_torch verify bench`` scores
this and other checkers on the layers and faults in bank/.

The allowed error is ε^(2/3), with ε the rounding of the dtype: two thirds of the digits agree. That is 3.7e-11 in
float64, 2.4e-05 in float32, 9.8e-03 in float16, 3.9e-02 in bfloat16. A larger error is allowed only if rounding alone
moves the gradient as far: see differences.py. Nothing is corrected here, and a diagnosis is given only if it explains
the whole difference.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from bp_torch.verify.check import check, check_layer, check_module
from bp_torch.verify.grid import Grid, check_grid
from bp_torch.verify.process import Died, Process
from bp_torch.verify.references import tolerance_of
from bp_torch.verify.report import REFERENCES, Comparison, Report

if TYPE_CHECKING:
    from bp_torch.verify.bank.catalogue import Catalogue

__all__ = ["REFERENCES", "Comparison", "Died", "Grid", "Process", "Report", "check", "check_grid", "check_layer"]
__all__ += ["check_module", "check_own", "check_step", "layers", "tolerance_of"]

# Two checks of this project's own backward, handed on from the file above this folder, which knows nothing of it.
check_own: Callable[..., Report]
check_step: Callable[..., Report]
layers: "Catalogue"

PLACES = dict.fromkeys(["check_own", "check_step"], "bp_torch.own_backward") | {"layers": f"{__name__}.bank.catalogue"}


def __getattr__(name: str) -> Any:
    """Import these when they are asked for: whoever takes this folder alone does without the first two."""
    if name in PLACES:
        return getattr(importlib.import_module(PLACES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
