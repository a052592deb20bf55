"""The published runs beside ours, drawn: table, notes, the figure, and reproduction.json, .md and .png."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from jaxresnet.config import TrainConfig
from jaxresnet.files import write_json, write_text
from jaxresnet.recipes import SOURCE, published
from jaxresnet.reporting.figures import COLOURS, GREY, add_legend, draw, tidy
from jaxresnet.reporting.tables import Table, as_bullets, as_markdown, from_columns, mean_sd
from jaxresnet.results.findings import AS_PUBLISHED, SELECTED_ON
from jaxresnet.results.reproduction import PublishedRow, Reproduction
from jaxresnet.results.statistics import CONFIDENCE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEADING = "The published runs and ours"
CAPTION = "Test accuracy of our runs minus the published best, in percentage points"
NOT_REPRODUCED = "No finished run here repeats a published run on the whole of CIFAR-10."

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
    "A run counts once. Runs with fewer epochs or images, other settings or synthetic data repeat no published run.",
)


class Drawn(NamedTuple):
    """What a page shows of the reproduction. figure: PNG bytes, None where there is none. empty: no run was counted."""

    table: Table
    figure: bytes | None
    notes: list[str]
    empty: bool = False
    heading: str = HEADING
    caption: str = CAPTION


def make_table(reproduction: Reproduction) -> Table:
    """A row a published run. Accuracies in percent of the test set."""
    rows = reproduction.rows
    as_published = [[(score.test, score.last) for score in row.as_published.values()] for row in rows]
    as_intended = [[(s.test, s.last, s.best_on_test) for s in row.as_intended.values()] for row in rows]
    return from_columns(
        {
            "published run": [row.name for row in rows],
            "what it trains": [_what(row.published.config) for row in rows],
            "published best / last": [f"{row.published.best:.2f} / {row.published.last:.2f}" for row in rows],
            f"ours as published: {AS_PUBLISHED} / last (n)": list(map(_cell, as_published)),
            f"ours as intended: {SELECTED_ON['val']} / last / best on test (n)": list(map(_cell, as_intended)),
            "published best inside our spread?": [make_verdict(row) for row in rows],
        }
    )


def _cell(runs: Sequence[tuple[float | None, ...]]) -> str:
    """ "92.00 ± 1.00 / 91.80 ± 1.00 (3)": each number over the runs; a dash where one lacks it."""
    means = [
        mean_sd(v for v in values if v is not None) if None not in values else "-" for values in zip(*runs, strict=True)
    ]
    return f"{' / '.join(means)} ({len(runs)})" if runs else ""


def _what(config: TrainConfig) -> str:
    optim = config.optim
    name = optim.optimizer.upper() if optim.optimizer == "sgd" else optim.optimizer.capitalize()
    lookahead = " + Lookahead" * optim.lookahead
    rate = f"lr {optim.learning_rate:g}, batch {config.batch_size}, {config.num_epochs} epochs"
    return f"{name}{lookahead}, {optim.schedule}, {rate}"


def make_verdict(row: PublishedRow) -> str:
    """Whether the published best lies in our spread: "inside (89.80 to 91.90)", or why that cannot be said."""
    if len(row.as_published) < 2:
        return "one run: cannot tell" if row.as_published else "not run yet"
    if row.spread is None:
        return "all runs equal: cannot tell"
    low, high = row.spread
    return f"{'inside' if row.inside else 'outside'} ({low:.2f} to {high:.2f})"


def make_notes(found: Reproduction) -> list[str]:
    """How to read the table, once it has a run, then what was counted and what could not be."""
    made = sorted({score.made for row in found.rows for score in row.scores})
    notes = [*READING] if made else [NOT_REPRODUCED]
    notes.append(f"Counted: {found.num_runs} finished runs on CIFAR-10{', made on ' * bool(made)}{'; '.join(made)}.")
    notes += [f"Not counted, as this version cannot read its config: {where}." for where in found.unreadable]
    return notes


def draw_reproduction(root: Path, found: Reproduction) -> Drawn:
    """Write reproduction.json, .md and .png into `root`. Without a counted run, remove those of an earlier time."""
    json_file, png_file, text_file = (root / f"reproduction.{kind}" for kind in ("json", "png", "md"))
    table, notes = make_table(found), make_notes(found)
    if not found.num_runs:
        for path in (json_file, png_file, text_file):
            path.unlink(missing_ok=True)
        return Drawn(table, None, notes, empty=True)
    png = draw(png_file, lambda: make_offsets(found))
    blocks = [f"# {HEADING}", as_markdown(table), *[f"![{CAPTION}]({png_file.name})"] * bool(png), as_bullets(notes)]
    write_json(json_file, {**found.to_json(), "notes": notes})
    write_text(text_file, "\n\n".join(blocks) + "\n")
    return Drawn(table, png, notes)


# --------------------------------------------------------------------------------------------------------- figure

LIMIT = 3.0  # percentage points to either side of the published best that the axis reaches
# One look a protocol: label, colour, marker, and the height above the row's middle.
PUBLISHED_LOOK = "ours as published, best epoch on the test set", COLOURS[1], "s", 0.17
INTENDED_LOOK = "ours as intended, epoch chosen on validation", COLOURS[0], "o", -0.21


def make_offsets(reproduction: Reproduction) -> "Figure":
    """A row a published run, with ours as differences from its accuracy: the runs lie between 47 and 92 %, and the
    differences that matter are below a point. What lies beyond `LIMIT` is drawn at the edge."""
    from matplotlib.figure import Figure

    rows = reproduction.rows
    figure = Figure(figsize=(10, 1.9 + 0.48 * len(rows)), layout="constrained", facecolor="white")
    axes = figure.subplots()
    published_look: dict[str, Any] = {"color": "black", "ls": "none", "zorder": 3}
    for index, row in enumerate(rows):
        y, last = float(len(rows) - 1 - index), row.published.last - row.published.best  # the first row on top
        label = "published best epoch on the test set, one seed (its accuracy on the left)"
        axes.plot([0], [y], marker="D", ms=8, label=label, **published_look)
        axes.plot([last], [y], marker="|", ms=11, mew=1.8, label="published last epoch", **published_look)
        if row.spread:
            low, high = np.clip(np.array(row.spread) - row.published.best, -LIMIT, LIMIT)
            label = f"{100 * CONFIDENCE:g} %: where one more run as published falls"
            axes.barh(y + PUBLISHED_LOOK[3], high - low, 0.3, low, color=COLOURS[1], alpha=0.22, label=label)
        for scores, look in ((row.as_published, PUBLISHED_LOOK), (row.as_intended, INTENDED_LOOK)):
            if scores:
                _draw_scores(axes, np.array([score.test for score in scores.values()]) - row.published.best, y, look)
    axes.axvline(0, color=GREY, linewidth=0.8, zorder=1)
    axes.set(
        xlabel="test accuracy minus the published best (percentage points)",
        xlim=(-LIMIT, LIMIT),
        yticks=range(len(rows)),
        yticklabels=[f"{row.name}\n{row.published.best:.2f} %" for row in reversed(rows)],
        ylim=(-0.6, len(rows) - 0.4),
    )
    axes.tick_params(axis="y", labelsize=8)
    tidy(axes)
    figure.suptitle(HEADING)
    marks = f"large mark: mean over seeds; line: least to most; dots: the seeds; at the edge: {LIMIT:g} points or more"
    handles, labels = axes.get_legend_handles_labels()
    add_legend(figure, list(dict(zip(labels, handles, strict=True)).values()), 2, marks)  # each label once
    return figure


def _draw_scores(axes: "Axes", offsets: np.ndarray, y: float, look: tuple[str, str, str, float]) -> None:
    """Small dots for the seeds, a line from least to most, a large mark at their mean."""
    label, colour, marker, height = look
    seeds, mean = np.clip(offsets, -LIMIT, LIMIT), np.clip(offsets.mean(), -LIMIT, LIMIT)
    at: dict[str, Any] = {"color": colour, "clip_on": False}
    axes.hlines(y + height, seeds.min(), seeds.max(), linewidth=1.6, zorder=4, **at)
    axes.plot(seeds, np.full(len(seeds), y + height), ".", ms=6, zorder=5, label="_seeds", **at)
    axes.plot([mean], [y + height], marker, ms=8, mec="black", mew=0.6, zorder=6, label=label, **at)
