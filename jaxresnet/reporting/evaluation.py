"""An evaluation, drawn from evaluation.json: the table of the classes, evaluation.md, and its two figures."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxresnet.files import write_text
from jaxresnet.reporting.figures import draw
from jaxresnet.reporting.tables import aligned, as_bullets, as_markdown, environment_table, markdown_text
from jaxresnet.results.schemas import read_evaluation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SHEET_COLUMNS = 8


def render_evaluation(folder: str | Path) -> str:
    """Write evaluation.md and confusion.png from the evaluation.json in `folder`, and return the table to print.

    The sheet of mistakes stays as it is: only the data set has its images. Raises ResultsError where evaluation.json is
    damaged or foreign; then nothing is written.
    """
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    draw(folder / "confusion.png", lambda: make_confusion(evaluation))
    figures = [name for name in ("confusion", "mistakes") if (folder / f"{name}.png").is_file()]
    write_text(folder / "evaluation.md", _page(evaluation, figures))
    paths = [f"{name:<10}{folder / name}.png" for name in figures]
    return "\n".join([aligned(_table(evaluation)), "", *_notes(evaluation), "", *paths])


# ---------------------------------------------------------------------------------------------------------- words


def _table(evaluation: dict[str, Any]) -> list[list[str]]:
    """A row a class, and one for all of them."""
    runs, names = evaluation["runs"].values(), evaluation["class_names"]
    total = evaluation["mean_over_seeds"]
    rows = [
        ["class", "test images", "accuracy (%), mean", "95 % interval (%)", _seeds(evaluation), "most often taken for"]
    ]
    for index, score in enumerate(total["classes"]):
        if not score["n"]:
            rows.append([names[index], "0", "", "", "", ""])
            continue
        values = ", ".join(f"{run['classes'][index]['accuracy']:.1f}" for run in runs)
        wrong = np.array(evaluation["confusion_summed_over_seeds"][index])
        wrong[index] = 0
        share = 100 * wrong.max() / (score["n"] * len(runs))
        other = f"{names[int(wrong.argmax())]} ({share:.1f} %)" if wrong.any() else "nothing else"
        interval = f"{score['low']:.1f} to {score['high']:.1f}"
        rows.append([names[index], f"{score['n']:,}", f"{score['accuracy']:.1f}", interval, values, other])
    values = ", ".join(f"{run['test_accuracy']:.2f}" for run in runs)
    low, high = total["interval_95"]
    all_of_them = f"{evaluation['num_test']:,}", f"{total['test_accuracy']:.2f}", f"{low:.2f} to {high:.2f}"
    return [*rows, ["all", *all_of_them, values, ""]]


def _seeds(evaluation: dict[str, Any]) -> str:
    seeds = ", ".join(evaluation["runs"])
    return f"seeds {seeds}" if len(evaluation["runs"]) > 1 else f"one seed ({seeds})"


def _notes(evaluation: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the numbers."""
    runs = evaluation["runs"]
    recorded = ", ".join(f"{run['recorded_test_accuracy']:.2f}" for run in runs.values())
    notes = [
        f"Predicted from the checkpoints of {_seeds(evaluation)} ({evaluation['selection']}), whose runs recorded "
        f"{recorded} %.",
        "The interval is Wilson's, for the number of test images of the class. All seeds see the same images, so more "
        "seeds do not make it narrower.",
    ]
    if gone := evaluation["seeds_without_checkpoint"]:
        notes.append(f"Not evaluated, as their checkpoints are gone: seeds {', '.join(map(str, gone))}.")
    return notes


def _page(evaluation: dict[str, Any], figures: list[str]) -> str:
    """The text of evaluation.md."""
    names, mistakes = evaluation["class_names"], evaluation["mistakes"]
    matrix = zip(names, evaluation["confusion_summed_over_seeds"], strict=True)
    confusion = [[name, *(f"{count:,}" for count in row)] for name, row in matrix]
    worst = [
        [str(one["image"]), names[one["true"]], names[one["predicted"]], f"{100 * one['probability']:.2f}"]
        for one in mistakes["worst_first"]
    ]
    blocks = [
        f"# Evaluation of {markdown_text(evaluation['title'])}",
        as_markdown(_table(evaluation)),
        as_bullets(_notes(evaluation)),
        f"## Confusion matrix\n\nTest images, summed over {_seeds(evaluation)}.",
        as_markdown([["true \\ predicted", *names], *confusion]),
        *["![Confusion matrix](confusion.png)"] * ("confusion" in figures),
        f"## Worst mistakes\n\nSeed {mistakes['seed']}, the highest probability of a wrong class first.",
        as_markdown([["test image (from 0)", "true class", "predicted class", "probability (%)"], *worst]),
        *["![The worst mistakes](mistakes.png)"] * ("mistakes" in figures),
        "## Environment",
        as_markdown(environment_table(evaluation["environment"])),
    ]
    return "\n\n".join(blocks) + "\n"


# -------------------------------------------------------------------------------------------------------- figures


def make_confusion(evaluation: dict[str, Any]) -> "Figure":
    """A heat map with a number in every cell: percent of the row's true class that was taken for the column's, a mean
    over seeds. Colours go with the square root, so that a few percent show beside a diagonal of ninety."""
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    seeds, names = evaluation["seeds"], evaluation["class_names"]
    confusion = np.array(evaluation["confusion_summed_over_seeds"]) / len(seeds)
    n = confusion.sum(1)
    percent = 100 * confusion / np.maximum(n, 1)[:, None]
    figure = Figure(figsize=(9, 7.6), layout="constrained", facecolor="white")
    axes = figure.subplots()
    norm = PowerNorm(0.5, 0, 100)
    image = axes.imshow(percent, cmap="Blues", norm=norm)
    for (row, column), value in np.ndenumerate(percent):
        # Where the colour is dark the number is white; "0" is what never happened, "0.0" what hardly did.
        text = "0" if value == 0 else f"{value:.1f}"
        colour = "white" if float(norm(value)) > 0.6 else "#888888" if value == 0 else "black"
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({round(k):,})" for name, k in zip(names, n, strict=True)])
    axes.set(xlabel="predicted class", ylabel="true class (number of test images)")
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    bar = figure.colorbar(image, ax=axes, shrink=0.85, ticks=[0, 1, 5, 10, 20, 40, 60, 80, 100])
    bar.set_label(f"share of the true class (%), mean over {_seeds(evaluation)}")
    bar.ax.spines["outline"].set_visible(False)
    figure.suptitle(textwrap.fill(f"{evaluation['title']}, {evaluation['selection']}", 80))
    return figure


def make_mistakes(images: np.ndarray, evaluation: dict[str, Any]) -> "Figure":
    """A sheet of the worst mistakes, each above its true class, the class that it was taken for, and the probability of
    that, in percent.

    images: (N, 32, 32, 3) uint8, the test set. evaluation: as in evaluation.json.
    """
    from matplotlib.figure import Figure

    names, mistakes = evaluation["class_names"], evaluation["mistakes"]
    worst = mistakes["worst_first"]
    rows = max(1, -(-len(worst) // SHEET_COLUMNS))
    figure = Figure(figsize=(10, 0.9 + 2 * rows), layout="constrained", facecolor="white")
    cells = list(figure.subplots(rows, SHEET_COLUMNS, squeeze=False).flat)
    for axes in cells:
        axes.set_axis_off()
    for axes, one in zip(cells, worst, strict=False):
        axes.imshow(images[one["image"]], interpolation="nearest")
        lines = (names[one["true"]], f"as {names[one['predicted']]}", f"{100 * one['probability']:.1f} %")
        text = "\n".join(textwrap.fill(line, 15) for line in lines)
        axes.text(0.5, -0.06, text, transform=axes.transAxes, ha="center", va="top", fontsize=9)
    if not worst:
        figure.text(0.5, 0.5, "no mistakes", ha="center")
    shown = "the most confident mistakes (true class, predicted class and its probability)"
    title = f"{evaluation['title']}, {evaluation['selection']}, seed {mistakes['seed']}: {shown}"
    figure.suptitle(textwrap.fill(title, 95))
    return figure
