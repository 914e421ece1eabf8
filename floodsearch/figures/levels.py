"""The curve over levels, with its interval, level 0 and the level of the answer."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from floodsearch.errors import UsageError
from floodsearch.figures.style import BLUE, VERMILION, axes_or_new
from floodsearch.findings import BestLevel, CurvePoint
from floodsearch.process.terminal import one_line
from floodsearch.report import words

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TITLE_COLUMNS = 86


def draw_levels(best: BestLevel, axes: Axes | None = None) -> Axes:
    """Draw the metric over the levels that were compared, and return the axes.

    Each level is a point, its mean over seeds; hollow where it was pruned, and carried on to the end by how
    the levels around it changed. The line is the smooth curve with its 90 % band, the dashed line is level 0.
    The level of the answer is marked, with its interval.

    Args:
        best: an answer.
        axes: to draw on; those of a new figure by default.

    Raises:
        UsageError: if no levels were compared, or matplotlib is not installed.
    """
    best = one_line(best)
    flooded = [point for point in best.points if point.level > 0]
    if not flooded:
        raise UsageError(f"study {best.study!r} has no curve to draw: no levels above 0 were compared")
    axes = axes_or_new(axes)
    _draw_curve(axes, flooded)
    _draw_level_0(axes, best.points[0])
    _draw_answer(axes, best)
    axes.set_xlabel("flood level, in the unit of the training loss")
    seeds = "one seed" if best.seeds == 1 else f"mean of {best.seeds} seeds"
    axes.set_ylabel(f"{best.metric}, {seeds}", parse_math=False)
    axes.set_title(_title(best), loc="left", fontsize="medium", parse_math=False)
    axes.spines[["top", "right"]].set_visible(False)
    # Below the axes, where no line runs through it.
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=3, frameon=False, fontsize="small")
    return axes


def _title(best: BestLevel) -> str:
    """Return the first line of the answer and its gain, in lines that are no wider than the axes."""
    gain = words.gain(best)
    sentences = [words.headline(best), *([f"gain over level 0: {gain}"] if gain else [])]
    return "\n".join(line for one in sentences for line in textwrap.wrap(one, TITLE_COLUMNS))


def _draw_level_0(axes: Axes, point: CurvePoint) -> None:
    """Draw the value of level 0 across all levels, if it is on the curve."""
    if point.level > 0:
        return
    label = f"level 0, no flooding: {words.number(point.mean)}"
    axes.axhline(point.mean, color=VERMILION, linewidth=1.5, linestyle=(0, (5, 3)), label=label)
    if point.low is not None and point.high is not None:
        reach = [[point.mean - point.low], [point.high - point.mean]]
        axes.errorbar([0.0], [point.mean], yerr=reach, color=VERMILION, marker="s", markersize=5, capsize=3)


def _draw_curve(axes: Axes, points: Sequence[CurvePoint]) -> None:
    """Draw the levels above 0: their values, and the smooth curve with its band."""
    for complete, face, label in (
        (True, BLUE, "level trained to its end"),
        (False, "none", "level pruned, carried on"),
    ):
        some = [point for point in points if point.complete is complete]
        if some:
            axes.plot(
                [point.level for point in some],
                [point.value for point in some],
                linestyle="none",
                marker="o",
                markersize=4.5,
                markerfacecolor=face,
                markeredgecolor=BLUE,
                label=label,
            )
    if len(points) < 2:
        return
    levels = [point.level for point in points]
    axes.plot(levels, [point.mean for point in points], color=BLUE, linewidth=2, label="smooth curve")
    bounds = [(point.low, point.high) for point in points if point.low is not None and point.high is not None]
    if len(bounds) == len(levels):
        low, high = zip(*bounds, strict=True)
        label = "its 90 % band, within seeds"
        axes.fill_between(levels, low, high, color=BLUE, alpha=0.2, linewidth=0, label=label)


def _draw_answer(axes: Axes, best: BestLevel) -> None:
    """Mark the level of the answer, and its interval along the axis of the levels."""
    found = next((point for point in best.points if point.level == best.level), None)
    if found is None:
        return
    axes.axvline(best.level, color="black", linewidth=1, linestyle=":")
    axes.plot(
        [best.level],
        [found.mean],
        linestyle="none",
        marker="D",
        markersize=9,
        color="black",
        markerfacecolor="white",
        markeredgewidth=1.6,
        label=f"best level, {best.level:g}",
        zorder=5,
    )
    if best.interval is not None:
        low, high = best.interval
        axes.plot(
            [low, high],
            [0.0, 0.0],
            transform=axes.get_xaxis_transform(),
            color="black",
            linewidth=7,
            solid_capstyle="butt",
            label=f"its 90 % interval, {low:g} to {high:g}",
        )
