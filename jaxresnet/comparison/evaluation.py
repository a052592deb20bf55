"""The evaluation of a finished comparison of one arm: confusion matrix, accuracy of each class, the worst mistakes.

    evaluation.json, evaluation.md      the numbers and the tables
    confusion.png, mistakes.png         the matrix as a mean over seeds, the worst mistakes of the first seed

written beside the comparison's own files. Everything is predicted again from the checkpoints, and must give the test
accuracy that the runs recorded, up to rounding.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxresnet.data.dataset import Dataset
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.hardware import environment
from jaxresnet.reporting.figure_evaluation import draw_confusion, draw_mistakes
from jaxresnet.reporting.tables import aligned, as_bullets, as_markdown, markdown_text
from jaxresnet.results.findings import SELECTED_ON, title
from jaxresnet.results.schemas import evaluation_path, read_evaluation
from jaxresnet.results.store import CHECKPOINTS, Results, Run, read_results
from jaxresnet.training.predict import predict

NUM_MISTAKES = 24

# The share of the test set that may fall on the other side of a tie when it is predicted in other batches, by another
# program or on another device: 50 of 10,000. Accelerators may compute float32 products with TF32's 10 bits.
ROUNDING = 5e-3
Z_95 = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations


class ClassScore(NamedTuple):
    """One class of a confusion matrix. n: images of the class. correct: those recognised, a mean over runs if the
    matrix was one. accuracy, low, high: percent, with the ends of the 95 % Wilson interval; None where n is 0."""

    n: int
    correct: float
    accuracy: float | None
    low: float | None
    high: float | None


class Mistake(NamedTuple):
    """image: its row. true, predicted: classes. probability: of the predicted class, 0..1."""

    image: int
    true: int
    predicted: int
    probability: float


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) int64: how many images of the row's true class were taken for the column's class.

    labels, predictions: (N,) integers, 0..num_classes - 1.
    """
    pairs = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> list[ClassScore]:
    """A score a class. confusion: (C, C) counts, or their mean over runs on the same images.

    The interval says how far the accuracy may be from that on all images of the kind, of which these n are a sample.
    A mean over runs does not make it narrower: n stays the number of images, since all runs see the same ones.
    """
    scores = []
    for row, correct in zip(confusion, np.diag(confusion), strict=True):
        n = round(float(row.sum()))
        if n == 0:
            scores.append(ClassScore(0, 0.0, None, None, None))
            continue
        low, high = wilson_interval(float(correct), n)
        scores.append(ClassScore(n, float(correct), 100 * float(correct) / n, 100 * low, 100 * high))
    return scores


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """(low, high), each 0..1: Wilson's 95 % score interval for a proportion (Wilson 1927). successes: maybe a mean.

    Unlike mean plus or minus z standard errors it stays within 0..1, and has a width where nothing or all succeeded.
    """
    z, p = Z_95, successes / n
    scale = 1 / (1 + z * z / n)
    centre = scale * (p + z * z / (2 * n))
    half = scale * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding can take the ends just beyond


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[Mistake]:
    """The misclassified images whose wrong class had the highest probability, the worst first; `count` at most.

    probabilities: (N, C), rows that sum to 1. labels: (N,) true classes. Of equals the earlier image comes first.
    """
    predictions = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [Mistake(int(i), int(labels[i]), int(predictions[i]), float(confidence[i])) for i in worst]


# ----------------------------------------------------------------------------------------------- of a comparison


def evaluate_runs(folder: str | Path, data: Dataset) -> str:
    """Evaluate the chosen epoch of every finished run of a comparison on data.test, and return the table to print.

    folder: a comparison of one arm, whose runs have their checkpoints. data: the data set that it was run on.
    A run whose checkpoint is gone is skipped and named; where all are gone nothing is written.
    Raises ResultsError for a comparison of several arms, or where predictions and recorded accuracy do not agree.
    """
    results = read_results(folder)
    if len(results.runs) > 1:
        raise ResultsError(f"{folder}: holds the arms {', '.join(results.runs)}; only one arm can be evaluated")
    (arm,) = results.runs
    finished = results.finished(arm)
    runs = [run for run in finished if (run.folder / CHECKPOINTS).is_dir()]
    gone = [run for run in finished if run not in runs]
    if not runs:
        folders = ", ".join(str(run.folder / CHECKPOINTS) for run in gone)
        return f"not evaluated: {f'no checkpoints in {folders}' if gone else f'no finished run in {folder}'}"

    confusion, mistakes = {}, []
    for run in runs:
        probabilities = predict(run.folder / CHECKPOINTS, data.test.images)
        confusion[run.seed] = confusion_matrix(data.test.labels, probabilities.argmax(1), len(data.class_names))
        check_accuracy(run, confusion[run.seed])
        if run is runs[0]:
            mistakes = worst_mistakes(probabilities, data.test.labels, NUM_MISTAKES)
    evaluation = _evaluation(results, data, runs, confusion, mistakes, [run.seed for run in gone])
    worst = f"seed {runs[0].seed}: the most confident mistakes (true class, predicted class and its probability)"
    heading = f"{evaluation['title']}, {evaluation['selection']}, {worst}"
    sheet = draw_mistakes(data.test.images, mistakes, data.class_names, heading)
    write_bytes(results.folder / "mistakes.png", sheet)
    write_json(evaluation_path(results.folder), evaluation)
    return render_evaluation(results.folder)


def check_accuracy(run: Run, confusion: np.ndarray) -> None:
    """Raise ResultsError unless the run recorded the accuracy of `confusion`, up to `ROUNDING`."""
    assert run.scores is not None
    n, correct, recorded = int(confusion.sum()), int(np.trace(confusion)), run.scores["test_accuracy"]
    if abs(correct - recorded / 100 * n) > math.ceil(ROUNDING * n) + 1e-6:
        raise ResultsError(
            f"{run.folder / CHECKPOINTS}: recognises {correct:,} of {n:,} test images ({100 * correct / n:.2f} %), "
            f"but the run recorded {recorded:.2f} %: the checkpoint or the data set is of another run. Restore it "
            "from a copy, or delete the run's folder and run the comparison again"
        )


def _evaluation(
    results: Results,
    data: Dataset,
    runs: list[Run],
    confusion: dict[int, np.ndarray],
    mistakes: list[Mistake],
    gone: list[int],
) -> dict[str, Any]:
    """The contents of evaluation.json. Confusion matrices: rows are true classes, columns predicted ones."""
    matrices = list(confusion.values())
    mean = np.mean(matrices, axis=0)
    n = int(mean.sum().round())
    low, high = wilson_interval(float(np.trace(mean)), n)
    chosen = [SELECTED_ON[run.scores["selection"]] for run in runs if run.scores]
    return {
        "title": title(results),
        "arm": runs[0].arm,
        "dataset": results.config["dataset"],
        "selection": " / ".join(dict.fromkeys(chosen)),
        "class_names": list(data.class_names),
        "num_test": n,
        "seeds": [run.seed for run in runs],
        "seeds_without_checkpoint": gone,
        "runs": {
            str(run.seed): {
                "test_accuracy": 100 * float(np.trace(confusion[run.seed])) / n,
                "recorded_test_accuracy": run.scores["test_accuracy"],
                "epoch": run.scores["best_epoch"],
                "confusion": confusion[run.seed].tolist(),
                "classes": [score._asdict() for score in per_class(confusion[run.seed])],
            }
            for run in runs
            if run.scores
        },
        "mean_over_seeds": {
            "test_accuracy": 100 * float(np.trace(mean)) / n,
            "interval_95": [100 * low, 100 * high],
            "classes": [score._asdict() for score in per_class(mean)],
        },
        "confusion_summed_over_seeds": np.sum(matrices, axis=0).tolist(),
        "mistakes": {"seed": runs[0].seed, "worst_first": [mistake._asdict() for mistake in mistakes]},
        "environment": environment(),
    }


# -------------------------------------------- DRAWING: MOVES TO reporting/ AT MERGE, render_evaluation is its one entry


def render_evaluation(folder: str | Path) -> str:
    """Write evaluation.md and confusion.png from the evaluation.json in `folder`, and return the table to print. The
    sheet of mistakes stays as it is: it shows images, which only the data set has.

    Raises ResultsError where evaluation.json is damaged or foreign; then nothing is written.
    """
    folder = Path(folder)
    evaluation = read_evaluation(folder)
    text = _markdown(evaluation)
    seeds = evaluation["seeds"]
    note = f"mean over {len(seeds)} seeds" if len(seeds) > 1 else f"one seed ({seeds[0]})"
    mean = np.array(evaluation["confusion_summed_over_seeds"]) / len(seeds)
    write_bytes(folder / "confusion.png", draw_confusion(mean, evaluation["class_names"], _heading(evaluation), note))
    write_text(folder / "evaluation.md", text)
    paths = [f"{name:<10}{folder / name}.png" for name in ("confusion", "mistakes")]
    return "\n".join([aligned(_class_table(evaluation)), "", *_notes(evaluation), "", *paths])


def _heading(evaluation: dict[str, Any]) -> str:
    return f"{evaluation['title']}, {evaluation['selection']}"


def _class_table(evaluation: dict[str, Any]) -> list[list[str]]:
    """A row a class, and one for all of them."""
    runs = list(evaluation["runs"].values())
    names = evaluation["class_names"]
    mean = "accuracy (%)" if len(runs) == 1 else f"accuracy (%), mean of {len(runs)} seeds"
    per_seed = [] if len(runs) == 1 else [f"seeds {', '.join(evaluation['runs'])} (%)"]
    rows = [["class", "test images", mean, "95 % interval (%)", *per_seed, "most often taken for"]]
    for index, score in enumerate(evaluation["mean_over_seeds"]["classes"]):
        if not score["n"]:
            rows.append([names[index], "0", *[""] * (len(rows[0]) - 2)])
            continue
        values = [", ".join(f"{run['classes'][index]['accuracy']:.1f}" for run in runs)] if per_seed else []
        wrong = np.array(evaluation["confusion_summed_over_seeds"][index])
        wrong[index] = 0
        share = 100 * wrong.max() / (score["n"] * len(runs))
        other = f"{names[int(wrong.argmax())]} ({share:.1f} %)" if wrong.any() else "nothing else"
        interval = f"{score['low']:.1f} to {score['high']:.1f}"
        rows.append([names[index], f"{score['n']:,}", f"{score['accuracy']:.1f}", interval, *values, other])
    total = evaluation["mean_over_seeds"]
    low, high = total["interval_95"]
    values = [", ".join(f"{run['test_accuracy']:.2f}" for run in runs)] if per_seed else []
    all_of_them = f"{evaluation['num_test']:,}", f"{total['test_accuracy']:.2f}", f"{low:.2f} to {high:.2f}"
    return [*rows, ["all", *all_of_them, *values, ""]]


def _notes(evaluation: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the numbers, a sentence a line."""
    runs = evaluation["runs"]
    seeds = ", ".join(runs)
    half_an_image = 50 / evaluation["num_test"]  # percent
    again = [
        f"seed {seed} {run['test_accuracy']:.2f} %, recorded {run['recorded_test_accuracy']:.2f} %"
        for seed, run in runs.items()
        if abs(run["test_accuracy"] - run["recorded_test_accuracy"]) > half_an_image
    ]
    agree = (
        "with other rounding than when they were recorded" if again else "which give the recorded test accuracy exactly"
    )
    notes = [
        f"Predicted from the checkpoints of seed{'s' * (len(runs) > 1)} {seeds} ({evaluation['selection']}), {agree}.",
        *([f"Predicted again: {'; '.join(again)}."] if again else []),
        "Interval: Wilson's, for the number of test images of the class. "
        + ("More seeds do not make it narrower, as all see the same images." if len(runs) > 1 else "One seed."),
    ]
    if gone := evaluation["seeds_without_checkpoint"]:
        notes.append(f"Not evaluated, as their checkpoints are gone: seeds {', '.join(map(str, gone))}.")
    return notes


def _markdown(evaluation: dict[str, Any]) -> str:
    names, runs = evaluation["class_names"], evaluation["runs"]
    matrix = evaluation["confusion_summed_over_seeds"]
    counted = f"summed over seeds {', '.join(runs)}" if len(runs) > 1 else f"seed {next(iter(runs))}"
    confusion = [["true \\ predicted", *names]]
    confusion += [[name, *(f"{count:,}" for count in row)] for name, row in zip(names, matrix, strict=True)]
    mistakes = [["test image (from 0)", "true class", "predicted class", "probability (%)"]]
    for one in evaluation["mistakes"]["worst_first"]:
        true, predicted = names[one["true"]], names[one["predicted"]]
        mistakes.append([str(one["image"]), true, predicted, f"{100 * one['probability']:.2f}"])
    blocks = [
        f"# Evaluation of {markdown_text(evaluation['title'])}",
        as_markdown(_class_table(evaluation)),
        "\n".join(f"- {markdown_text(note)}" for note in _notes(evaluation)),
        f"## Confusion matrix\n\nTest images, {counted}.",
        as_markdown(confusion),
        "![Confusion matrix](confusion.png)",
        f"## Worst mistakes\n\nSeed {evaluation['mistakes']['seed']}, the highest probability of a wrong class first.",
        as_markdown(mistakes),
        "![The worst mistakes](mistakes.png)",
        "## Environment",
        as_bullets(evaluation["environment"]),
    ]
    return "\n\n".join(blocks) + "\n"
