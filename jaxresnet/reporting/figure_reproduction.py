"""The figure of the reproduction: how far our runs lie from each published figure."""

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresnet.reporting.figures import COLOURS, GREY, tidy, to_png
from jaxresnet.results.reproduction import Reproduction, Row, Score

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SCALE = 8.0  # percentage points to either side that the axis can reach; a run that failed lies beyond, as an arrow
# One look a protocol: colour, marker, and the height above the row's middle.
PUBLISHED_LOOK: dict[str, Any] = {"colour": COLOURS[1], "marker": "s", "height": 0.17}
INTENDED_LOOK: dict[str, Any] = {"colour": COLOURS[0], "marker": "o", "height": -0.21}


def draw_reproduction(reproduction: Reproduction) -> bytes:
    """The figure as PNG bytes."""
    return to_png(lambda: make_reproduction(reproduction))


def make_reproduction(reproduction: Reproduction) -> "Figure":
    """A Matplotlib figure with one axes, a row a published run. Its accuracy is the zero of the row, as the runs lie
    between 47 and 92 %, and the differences that matter are below a point."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = reproduction.rows
    figure = Figure(figsize=(10, 1.9 + 0.48 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlim(*_limits(rows))
    published: dict[str, Any] = {"marker": "D", "color": "black", "markersize": 8, "linestyle": "none"}
    last: dict[str, Any] = {"marker": "|", "color": "black", "markersize": 11, "markeredgewidth": 1.8}
    for index, row in enumerate(rows):
        y = float(len(rows) - 1 - index)  # the first row on top
        if row.spread:
            low, high = (limit - row.published.best for limit in row.spread)
            _draw_spread(axes, low, high, y + PUBLISHED_LOOK["height"])
        axes.plot([0], [y], zorder=3, label="published best", **published)
        axes.plot([row.published.last - row.published.best], [y], linestyle="none", label="published last", **last)
        for scores, look in ((row.as_published, PUBLISHED_LOOK), (row.as_intended, INTENDED_LOOK)):
            _draw_scores(axes, row, scores, y + look["height"], look)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set(
        xlabel="test accuracy minus the published best (percentage points)",
        yticks=range(len(rows)),
        yticklabels=[f"{row.name}\n{row.published.best:.2f} %" for row in reversed(rows)],
        ylim=(-0.6, len(rows) - 0.4),
    )
    axes.tick_params(axis="y", labelsize=8)
    tidy(axes)
    handles = [
        Line2D([], [], label="published best epoch on the test set, one seed (its accuracy on the left)", **published),
        Line2D([], [], linestyle="none", label="published last epoch", **last),
        _handle(PUBLISHED_LOOK, "ours as published, best epoch on the test set"),
        _handle(INTENDED_LOOK, "ours as intended, epoch chosen on validation"),
        Patch(facecolor=COLOURS[1], alpha=0.22, label="95 %: where one more run as published would fall"),
    ]
    figure.suptitle("The published runs and ours")
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=2,
        title="large mark: mean over seeds; line: least to most; small dots: the seeds; triangle: the bar goes on",
        frameon=False,
        fontsize=9,
        title_fontsize=9,
    )
    return figure


def _limits(rows: list[Row]) -> tuple[float, float]:
    """Room for the published figures, and for all our runs and ends of the spread that lie within `SCALE`."""
    offsets = [row.published.last - row.published.best for row in rows]
    for row in rows:
        offsets += [s.test - row.published.best for s in (*row.as_published.values(), *row.as_intended.values())]
        offsets += [end - row.published.best for end in row.spread or ()]
    within = [offset for offset in offsets if abs(offset) <= SCALE]
    return min([*within, -1.0]) - 0.4, max([*within, 1.0]) + 0.4


def _draw_spread(axes: "Axes", low: float, high: float, y: float) -> None:
    """A bar from low to high, with an arrow at each edge of the axes where it goes on beyond."""
    colour = PUBLISHED_LOOK["colour"]
    axes.barh(y, high - low, 0.3, low, color=colour, alpha=0.22, label="spread")
    left, right = axes.get_xlim()
    for edge, marker, is_cut in ((left, "<", low < left), (right, ">", high > right)):
        if is_cut:
            axes.plot([edge], [y], marker, color=colour, markersize=7, clip_on=False, zorder=3, label="spread goes on")


def _draw_scores(axes: "Axes", row: Row, scores: dict[int, Score], y: float, look: dict[str, Any]) -> None:
    """Small dots for the seeds, a line from least to most, a large mark at their mean; arrows for what lies beyond."""
    if not scores:
        return
    offsets = np.array([score.test for score in scores.values()]) - row.published.best
    left, right = axes.get_xlim()
    inside = offsets[(offsets >= left) & (offsets <= right)]
    if len(inside):
        axes.hlines(y, inside.min(), inside.max(), color=look["colour"], linewidth=1.6, zorder=4)
        axes.plot(inside, [y] * len(inside), ".", color=look["colour"], markersize=6, zorder=5, label="seeds")
    mean = offsets.mean()
    if left <= mean <= right:
        style: dict[str, Any] = {"color": look["colour"], "markeredgecolor": "black", "markeredgewidth": 0.6}
        axes.plot([mean], [y], look["marker"], markersize=8, zorder=6, label="mean", **style)
    for beyond, edge, side, align in ((offsets < left, left, 14, "left"), (offsets > right, right, -14, "right")):
        if beyond.any():
            text = "off the scale: " + ", ".join(f"{x:+.1f}" for x in sorted(offsets[beyond]))
            axes.annotate(
                textwrap.shorten(text, 60),
                xy=(edge, y),
                xytext=(side, 0),
                textcoords="offset points",
                arrowprops={"arrowstyle": "->", "color": look["colour"]},
                ha=align,
                va="center",
                fontsize=8,
                color=look["colour"],
            )


def _handle(look: dict[str, Any], label: str) -> Any:
    from matplotlib.lines import Line2D

    style: dict[str, Any] = {"markeredgecolor": "black", "markeredgewidth": 0.6, "markersize": 8, "linewidth": 1.6}
    return Line2D([], [], marker=look["marker"], color=look["colour"], label=label, **style)
