"""The evaluation of a finished comparison of one arm: confusion matrix, accuracy of each class, the worst mistakes.

    evaluation.json, evaluation.md      the numbers and the tables
    confusion.png, mistakes.png         the matrix as a mean over seeds, the worst mistakes of the first seed

written beside the comparison's own files. Everything is predicted again from the checkpoints, and must give the test
accuracy that the runs recorded, up to rounding.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np

from jaxresnet.data.dataset import Dataset, as_dataset
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.hardware import environment
from jaxresnet.reporting.comparison import make_title
from jaxresnet.reporting.evaluation import make_mistakes, render_evaluation
from jaxresnet.reporting.figures import draw
from jaxresnet.results.findings import SELECTED_ON
from jaxresnet.results.schemas import evaluation_path
from jaxresnet.results.store import CHECKPOINTS, Run, read_results
from jaxresnet.training.checkpoint import saved_steps
from jaxresnet.training.predict import predict

NUM_MISTAKES = 24

# The share of the test set that may fall on the other side of a tie when it is predicted in other batches, by another
# program or on another device: 50 of 10,000. Accelerators may compute float32 products with TF32's 10 bits.
ROUNDING = 5e-3
Z_95 = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) int64: how many images of the row's true class were taken for the column's class.

    labels, predictions: (N,) integers, 0..num_classes - 1.
    """
    pairs = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> list[dict[str, Any]]:
    """A score a class: "n", images of the class; "correct", those recognised; "accuracy", "low" and "high", percent
    with the ends of the 95 % Wilson interval, None where n is 0. confusion: (C, C) counts, or their mean over runs.

    The interval says how far the accuracy may be from that on all images of the kind, of which these n are a sample.
    A mean over runs does not make it narrower: n stays the number of images, since all runs see the same ones.
    """
    scores = []
    for row, correct in zip(confusion, np.diag(confusion).tolist(), strict=True):
        n = round(float(row.sum()))
        accuracy, low, high = (100 * correct / n, *wilson_interval(correct, n)) if n else (None, None, None)
        scores.append({"n": n, "correct": float(correct), "accuracy": accuracy, "low": low, "high": high})
    return scores


def wilson_interval(successes: float, n: int) -> tuple[float, float]:
    """(low, high) in percent: Wilson's 95 % score interval for a proportion (Wilson 1927). successes: maybe a mean.

    Unlike mean plus or minus z standard errors it stays within 0..100, and has a width where nothing or all succeeded.
    """
    z, p = Z_95, successes / n
    scale = 1 / (1 + z * z / n)
    centre = scale * (p + z * z / (2 * n))
    half = scale * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * max(0.0, centre - half), 100 * min(1.0, centre + half)  # rounding can take the ends just beyond


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[dict[str, Any]]:
    """The misclassified images whose wrong class had the highest probability, the worst first; `count` at most.

    probabilities: (N, C), rows that sum to 1. labels: (N,) true classes. Of equals the earlier image comes first.
    Returns for each "image", its row; "true" and "predicted", classes; "probability", of the predicted class, 0..1.
    """
    predictions = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    columns = worst, labels[worst], predictions[worst], confidence[worst]
    names = ("image", "true", "predicted", "probability")
    return [dict(zip(names, row, strict=True)) for row in zip(*(c.tolist() for c in columns), strict=True)]


def evaluate_runs(folder: str | Path, data: Dataset) -> str:
    """Evaluate the chosen epoch of every finished run of a comparison on data.test, and return the table to print.

    folder: a comparison of one arm, whose runs have their checkpoints. data: the data set that it was run on.
    A run whose checkpoint is gone is skipped and named; where all are gone nothing is written.
    Raises ResultsError for a comparison of several arms, or where predictions and recorded accuracy do not agree.
    """
    results, data = read_results(folder), as_dataset(data)
    if len(results.runs) > 1:
        raise ResultsError(f"{folder}: holds the arms {', '.join(results.runs)}; only one arm can be evaluated")
    (arm,) = results.runs
    finished = results.finished(arm)
    runs = [run for run in finished if saved_steps(run.folder / CHECKPOINTS)]
    gone = [run for run in finished if run not in runs]
    if not runs:
        folders = ", ".join(str(run.folder / CHECKPOINTS) for run in gone)
        return f"not evaluated: {f'no checkpoints in {folders}' if gone else f'no finished run in {folder}'}"

    matrices, evaluated = [], {}
    mistakes: list[dict[str, Any]] = []
    for run in runs:
        probabilities = predict(run.folder / CHECKPOINTS, data.test.images)
        num_classes = probabilities.shape[1]
        confusion = confusion_matrix(data.test.labels, probabilities.argmax(1), num_classes)
        matrices.append(confusion)
        evaluated[str(run.seed)] = _of_run(run, confusion)
        if run is runs[0]:
            mistakes = worst_mistakes(probabilities, data.test.labels, NUM_MISTAKES)
    mean, n = np.mean(matrices, axis=0), data.test.num_examples
    evaluation = {
        "title": make_title(results),
        "arm": arm,
        "dataset": results.config["dataset"],
        "selection": " / ".join(SELECTED_ON[selection] for selection in results.selections),
        "class_names": [*data.class_names, *map(str, range(len(data.class_names), num_classes))],
        "num_test": n,
        "seeds": [run.seed for run in runs],
        "seeds_without_checkpoint": [run.seed for run in gone],
        "runs": evaluated,
        "mean_over_seeds": {
            "test_accuracy": 100 * float(np.trace(mean)) / n,
            "interval_95": wilson_interval(float(np.trace(mean)), n),
            "classes": per_class(mean),
        },
        "confusion_summed_over_seeds": np.sum(matrices, axis=0).tolist(),
        "mistakes": {"seed": runs[0].seed, "worst_first": mistakes},
        "environment": environment(),
    }
    draw(results.folder / "mistakes.png", lambda: make_mistakes(data.test.images, evaluation), all_colours=True)
    write_json(evaluation_path(results.folder), evaluation)
    return render_evaluation(results.folder)


def _of_run(run: Run, confusion: np.ndarray) -> dict[str, Any]:
    """What evaluation.json says of a run. confusion: a row a true class, a column a predicted one.

    Raises ResultsError unless the run recorded the accuracy of `confusion`, up to `ROUNDING`."""
    assert run.scores is not None
    n, correct, recorded = int(confusion.sum()), int(np.trace(confusion)), run.scores["test_accuracy"]
    if abs(correct - recorded / 100 * n) > math.ceil(ROUNDING * n) + 1e-6:
        raise ResultsError(
            f"{run.folder / CHECKPOINTS}: recognises {correct:,} of {n:,} test images ({100 * correct / n:.2f} %), "
            f"but the run recorded {recorded:.2f} %: the checkpoint or the data set is of another run. Restore it "
            "from a copy, or delete the run's folder and run the comparison again"
        )
    return {
        "test_accuracy": 100 * correct / n,
        "recorded_test_accuracy": recorded,
        "epoch": run.scores["best_epoch"],
        "confusion": confusion.tolist(),
        "classes": per_class(confusion),
    }
