"""Whether a hand-written gradient is right, and if it is not, where and how it is wrong.

    python -m bp_torch verify                                  this project's own backward, on real digits
    python -m bp_torch verify --device cuda --dtypes float32 bfloat16 --verbose
    python -m bp_torch verify --run runs/NAME                  that of a trained network, on its data

    verify.check(function, inputs, gradient).assert_ok()       anyone's, from Python; see ``check``
    verify.check_layer(forward, inputs, backward).assert_ok()  a layer whose outputs are not a scalar

Three witnesses speak, each independent of the hand-written gradient: autograd in the same dtype ("autograd"), autograd
in float64 ("float64"), and central differences in float64 ("central"). They are compared tensor by tensor, by
‖gradient − witness‖ / ‖witness‖: an entry near zero is a sum of terms that cancel, so that entry by entry a float32
gradient is off by any factor where nothing is wrong.

A gradient may be off by ε^(2/3), ε being the dtype's rounding: two thirds of its digits agree. That is 3.7e-11 in
float64, 2.4e-05 in float32, 9.8e-03 in float16, 3.9e-02 in bfloat16. Beyond that it may be off only by what rounding
alone does here: see rounding.py. This is a judge, not a repair: nothing is corrected, and no diagnosis is given but one
that explains the whole difference.
"""

from bp_torch.verify.backward import check_own, check_step
from bp_torch.verify.check import check, check_layer
from bp_torch.verify.report import WITNESSES, Agreement, Report, Row
from bp_torch.verify.witnesses import tolerance_of

__all__ = [
    "WITNESSES",
    "Agreement",
    "Report",
    "Row",
    "check",
    "check_layer",
    "check_own",
    "check_step",
    "tolerance_of",
]


def main(arguments: list[str]) -> None:
    """``python -m bp_torch verify``."""
    from bp_torch.verify import command  # not above: whoever trains with a check needs no second training.py

    command.main(arguments)
