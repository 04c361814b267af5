"""How every picture looks: two widths, one type, and one pair of colours.

Blue raises or is positive, orange lowers or is negative, here and everywhere; colour-blind eyes tell them apart. What
has no sign is drawn in ``LINES``.
"""

from matplotlib import rc_context
from matplotlib.colors import LinearSegmentedColormap

WIDTH = 12.0  # inches
NARROW = 4.0  # inches: type of 9 points has 11 pixels on a screen that is 390 wide
PAD = 0.08  # around each of the axes
DPI = 150
NARROW_DPI = 220

RAISE = "#0b62a8"
LOWER = "#d4570b"
INK = "#1b2430"
SOFT = "#68727f"
FAINT = "#d9dee5"

DIVERGING = LinearSegmentedColormap.from_list(
    "nudges", ["#7a2e00", LOWER, "#f3a35c", "#f7f7f5", "#6fb0e0", RAISE, "#06304f"]
)
SEQUENTIAL = "cividis"
SURFACE = LinearSegmentedColormap.from_list("surface", ["#ffffff", "#d9dee5", "#98a3b0"])
LINES = (INK, "#2a8c7d", "#8a5aa8", "#b08900", "#8b95a1", "#a8486b")  # curves, layers, paths

styled = rc_context(
    {
        "font.family": "DejaVu Sans",
        "font.size": 10,
        "text.color": INK,
        "axes.labelcolor": INK,
        "axes.edgecolor": SOFT,
        "axes.linewidth": 0.8,
        "axes.titlesize": 11,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlepad": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.formatter.limits": (-3, 5),
        "axes.formatter.use_mathtext": True,
        "xtick.color": SOFT,
        "ytick.color": SOFT,
        "xtick.labelcolor": INK,
        "ytick.labelcolor": INK,
        "xtick.labelsize": 9,
        "ytick.labelsize": 9,
        "legend.frameon": False,
        "legend.fontsize": 9,
        "grid.color": FAINT,
        "grid.linewidth": 0.7,
    }
)
"""Decorates a function that draws."""
