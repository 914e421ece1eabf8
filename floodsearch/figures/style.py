"""What all drawings share: the colours, and axes to draw on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from floodsearch.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, VERMILION = "#0072B2", "#D55E00"
"""Of Okabe and Ito's palette, which the colour-blind tell apart; in print lines and marks differ, too."""
INCHES = (7.2, 4.8)


def axes_or_new(axes: Axes | None) -> Axes:
    """Return axes as they were given, or those of a new figure, which a notebook shows.

    Raises:
        UsageError: if matplotlib is not installed.
    """
    try:
        from matplotlib import pyplot
    except ImportError:
        raise UsageError("a plot needs matplotlib: pip install matplotlib") from None
    return pyplot.subplots(figsize=INCHES, layout="constrained")[1] if axes is None else axes
