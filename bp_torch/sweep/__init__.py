"""A sweep: networks of several settings and seeds, trained many at a time as one (K, P) matrix.

python -m bp_torch sweep --learning-rate 0.3 1 3 10 --seeds 16
"""

from typing import TYPE_CHECKING

from bp_torch import on_demand

if TYPE_CHECKING:
    from bp_torch.sweep.config import SweepConfig
    from bp_torch.sweep.group import Group, new_group
    from bp_torch.sweep.loop import sweep

__all__ = ["Group", "SweepConfig", "new_group", "sweep"]

__getattr__ = on_demand(__name__, __all__, "config", "group", "loop")
