"""The published runs beside ours, drawn: table, notes, the figure, and reproduction.json, .md and .png."""

import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxresnet.config import TrainConfig
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.recipes import SOURCE, published
from jaxresnet.reporting.figures import COLOURS, GREY, add_legend, tidy, to_png
from jaxresnet.reporting.tables import Table, as_bullets, as_markdown, from_columns, mean_sd
from jaxresnet.results.findings import AS_PUBLISHED, SELECTED_ON
from jaxresnet.results.reproduction import Reproduction, Row, Score
from jaxresnet.results.statistics import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADING = "The published runs and ours"
CAPTION = "Test accuracy of our runs minus the published best, in percentage points"
NOT_REPRODUCED = "No finished run here repeats a published run on the whole of CIFAR-10."
WHAT_COLUMNS = ("what it trains", "epochs")
# Headers of columns that a narrow terminal can do without, in the order in which it does.
LAST_AS_PUBLISHED = "ours as published: last epoch (n)"
LAST_AS_INTENDED, BEST_AS_INTENDED = "ours as intended: last epoch (n)", f"ours as intended: {AS_PUBLISHED} (n)"
SPARE = (*WHAT_COLUMNS, LAST_AS_PUBLISHED, LAST_AS_INTENDED, BEST_AS_INTENDED)

# How to read the table.
READING = (
    f"Published: {SOURCE}. Its best epoch was chosen on the test set.",
    "As published, our runs have the notebooks' schedules, scored weights and choice of the epoch.",
    "As intended, the schedule moves every step over the run's length, Lookahead's slow weights are scored, and the "
    "epoch is chosen on 5,000 training images held out. Beside it stands what a choice on the test set would have "
    "given.",
    f"As intended, the run adam has {published['sgd_128'].config.num_epochs} epochs, as many as sgd_128, with which it "
    "is compared.",
    "± is the sample standard deviation, n the number of seeds.",
    f"Spread: one more run as published falls into it with probability {100 * CONFIDENCE:g} % (t prediction interval). "
    "A published best inside it agrees with our runs.",
    f"Even with the same code, each of the {len(published)} rows is outside with probability "
    f"{100 * (1 - CONFIDENCE):.0f} %, and at least one row with probability {1 - CONFIDENCE ** len(published):.2f}.",
)


class Drawn(NamedTuple):
    """What a page shows of the reproduction. figure: PNG bytes; None where no run was counted."""

    table: Table
    figure: bytes | None
    notes: list[str]
    heading: str = HEADING
    caption: str = CAPTION


def make_table(reproduction: Reproduction) -> Table:
    """A row a published run. Accuracies in percent of the test set."""
    rows = reproduction.rows
    as_published = [row.as_published.values() for row in rows]
    as_intended = [row.as_intended.values() for row in rows]

    def cell(measured: Iterable[float | None]) -> str:
        values = [value for value in measured if value is not None]
        return f"{mean_sd(values)} ({len(values)})" if values else ""

    what, epochs = WHAT_COLUMNS
    return from_columns(
        {
            "published run": [row.name for row in rows],
            what: [_what(row.published.config) for row in rows],
            epochs: [str(row.published.config.num_epochs) for row in rows],
            "published best / last (one seed)": [f"{r.published.best:.2f} / {r.published.last:.2f}" for r in rows],
            f"ours as published: {AS_PUBLISHED} (n)": [cell(score.test for score in found) for found in as_published],
            LAST_AS_PUBLISHED: [cell(score.last for score in found) for found in as_published],
            f"ours as intended: {SELECTED_ON['val']} (n)": [cell(s.test for s in found) for found in as_intended],
            LAST_AS_INTENDED: [cell(score.last for score in found) for found in as_intended],
            BEST_AS_INTENDED: [cell(score.best_on_test for score in found) for found in as_intended],
            "published best inside our spread?": [make_verdict(row) for row in rows],
        }
    )


def _what(config: TrainConfig) -> str:
    optim = config.optim
    parts = [optim.optimizer.upper() if optim.optimizer == "sgd" else optim.optimizer.capitalize()]
    parts += ["Lookahead"] * optim.lookahead
    return f"{' + '.join(parts)}, {optim.schedule}, lr {optim.learning_rate:g}, batch {config.batch_size}"


def make_verdict(row: Row) -> str:
    """Whether the published best lies in our spread: "inside (89.80 to 91.90)", or why that cannot be said."""
    if len(row.as_published) < 2:
        return "one run: cannot tell" if row.as_published else "not run yet"
    if row.spread is None:
        return "all runs equal: cannot tell"
    low, high = row.spread
    return f"{'inside' if row.inside else 'outside'} ({low:.2f} to {high:.2f})"


def make_notes(found: Reproduction) -> list[str]:
    """How to read the table where it has a run, then what was counted and what was not."""
    made = [score.made for row in found.rows for score in row.scores]
    notes = [*READING] if made else [NOT_REPRODUCED]
    notes.append(f"Counted: {found.num_runs} finished runs on CIFAR-10.")
    if made:
        counts = "; ".join(f"{name} ({made.count(name)} runs)" for name in sorted(set(made)))
        notes.append(f"Made on: {counts}.")
    if found.repeated:
        notes.append(
            f"Not counted again: {found.repeated} runs with the seed of a counted one, from another comparison or in "
            "another arithmetic."
        )
    if found.others:
        notes.append(
            f"Not counted: {found.others} finished runs that repeat no published run: they have fewer epochs or "
            "images, other settings or synthetic data."
        )
    notes += [f"Not counted, as this version cannot read its config: {where}." for where in found.unreadable]
    return notes


def draw_reproduction(root: Path, found: Reproduction) -> Drawn:
    """Write reproduction.json, .md and .png into `root`. Without a counted run, remove those of an earlier time."""
    json_file, png_file, text_file = (root / f"reproduction.{kind}" for kind in ("json", "png", "md"))
    table, notes = make_table(found), make_notes(found)
    if not found.num_runs:
        for path in (json_file, png_file, text_file):
            path.unlink(missing_ok=True)
        return Drawn(table, None, notes)
    png = to_png(lambda: make_offsets(found))
    blocks = [f"# {HEADING}", as_markdown(table), f"![{CAPTION}]({png_file.name})", as_bullets(notes)]
    write_json(json_file, {**found.to_json(), "notes": notes})
    write_bytes(png_file, png)
    write_text(text_file, "\n\n".join(blocks) + "\n")
    return Drawn(table, png, notes)


# --------------------------------------------------------------------------------------------------------- figure

SCALE = 8.0  # percentage points to either side that the axis can reach; a run that failed lies beyond, as an arrow
# One look a protocol: colour, marker, and the height above the row's middle.
PUBLISHED_LOOK: dict[str, Any] = {"colour": COLOURS[1], "marker": "s", "height": 0.17}
INTENDED_LOOK: dict[str, Any] = {"colour": COLOURS[0], "marker": "o", "height": -0.21}
EDGE: dict[str, Any] = {"markersize": 8, "markeredgecolor": "black", "markeredgewidth": 0.6}


def make_offsets(reproduction: Reproduction) -> "Figure":
    """A row a published run, with ours as differences from its accuracy: the runs lie between 47 and 92 %, and the
    differences that matter are below a point."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    rows = reproduction.rows
    figure = Figure(figsize=(10, 1.9 + 0.48 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    axes.set_xlim(*_limits(rows))
    best: dict[str, Any] = {"marker": "D", "color": "black", "markersize": 8, "linestyle": "none"}
    last: dict[str, Any] = {**best, "marker": "|", "markersize": 11, "markeredgewidth": 1.8}
    for index, row in enumerate(rows):
        y = float(len(rows) - 1 - index)  # the first row on top
        if row.spread:
            low, high = (limit - row.published.best for limit in row.spread)
            _draw_spread(axes, low, high, y + PUBLISHED_LOOK["height"])
        axes.plot([0], [y], zorder=3, label="published best", **best)
        axes.plot([row.published.last - row.published.best], [y], label="published last", **last)
        for scores, look in ((row.as_published, PUBLISHED_LOOK), (row.as_intended, INTENDED_LOOK)):
            if scores:
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
    ours = (
        (PUBLISHED_LOOK, "ours as published, best epoch on the test set"),
        (INTENDED_LOOK, "ours as intended, epoch chosen on validation"),
    )
    handles = [
        Line2D([], [], label="published best epoch on the test set, one seed (its accuracy on the left)", **best),
        Line2D([], [], label="published last epoch", **last),
        *(Line2D([], [], marker=k["marker"], color=k["colour"], linewidth=1.6, label=what, **EDGE) for k, what in ours),
        Patch(facecolor=COLOURS[1], alpha=0.22, label=f"{100 * CONFIDENCE:g} %: where one more run as published falls"),
    ]
    figure.suptitle(HEADING)
    marks = "large mark: mean over seeds; line: least to most; small dots: the seeds; triangle: the bar goes on"
    add_legend(figure, handles, 2, marks)
    return figure


def _limits(rows: list[Row]) -> tuple[float, float]:
    """Room for the published figures, and for all our runs and ends of the spread that lie within `SCALE`."""
    offsets = [
        value - row.published.best
        for row in rows
        for value in (row.published.last, *(score.test for score in row.scores), *(row.spread or ()))
    ]
    within = [offset for offset in offsets if abs(offset) <= SCALE]
    return min([*within, -1.0]) - 0.4, max([*within, 1.0]) + 0.4


def _draw_spread(axes: "Axes", low: float, high: float, y: float) -> None:
    """A bar from low to high, with a triangle at each edge of the axes where it goes on beyond."""
    colour = PUBLISHED_LOOK["colour"]
    axes.barh(y, high - low, 0.3, low, color=colour, alpha=0.22, label="spread")
    left, right = axes.get_xlim()
    for edge, marker, is_cut in ((left, "<", low < left), (right, ">", high > right)):
        if is_cut:
            axes.plot([edge], [y], marker, color=colour, markersize=7, clip_on=False, zorder=3, label="spread goes on")


def _draw_scores(axes: "Axes", row: Row, scores: dict[int, Score], y: float, look: dict[str, Any]) -> None:
    """Small dots for the seeds, a line from least to most, a large mark at their mean; arrows for what lies beyond."""
    colour = look["colour"]
    offsets = np.array([score.test for score in scores.values()]) - row.published.best
    left, right = axes.get_xlim()
    inside = offsets[(offsets >= left) & (offsets <= right)]
    if len(inside):
        axes.hlines(y, inside.min(), inside.max(), color=colour, linewidth=1.6, zorder=4)
        axes.plot(inside, [y] * len(inside), ".", color=colour, markersize=6, zorder=5, label="seeds")
    mean = offsets.mean()
    if left <= mean <= right:
        axes.plot([mean], [y], look["marker"], color=colour, zorder=6, label="mean", **EDGE)
    for beyond, edge, side, align in ((offsets < left, left, 14, "left"), (offsets > right, right, -14, "right")):
        if beyond.any():
            text = "off the scale: " + ", ".join(f"{x:+.1f}" for x in sorted(offsets[beyond]))
            arrow = {"arrowstyle": "->", "color": colour}
            place: dict[str, Any] = {"xy": (edge, y), "xytext": (side, 0), "textcoords": "offset points"}
            style: dict[str, Any] = {"ha": align, "va": "center", "fontsize": 8, "color": colour}
            axes.annotate(textwrap.shorten(text, 60), arrowprops=arrow, **place, **style)
