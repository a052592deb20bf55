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

from jaxresnet.comparison.evaluation import Mistake, confusion_matrix, per_class, wilson_interval, worst_mistakes
from jaxresnet.data.dataset import Dataset
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.hardware import environment
from jaxresnet.reporting.comparison import make_title as title
from jaxresnet.reporting.evaluation import draw_mistakes, make_confusion
from jaxresnet.reporting.figures import to_png
from jaxresnet.reporting.tables import aligned, as_markdown, markdown_text
from jaxresnet.reporting.tables import as_environment as as_bullets
from jaxresnet.results.evaluation_file import evaluation_path, read_evaluation
from jaxresnet.results.findings import SELECTED_ON
from jaxresnet.results.store import Results, Run, checkpoint_path, read_results, slug
from jaxresnet.training.predict import predict

NUM_MISTAKES = 24

# The share of the test set that may fall on the other side of a tie when it is predicted in other batches, by another
# program or on another device: 50 of 10,000. Accelerators may compute float32 products with TF32's 10 bits.
ROUNDING = 5e-3


def evaluate_runs(folder: str | Path, data: Dataset) -> str:
    """Evaluate the chosen epoch of every finished run in `folder` on data.test, and return the table to print.

    folder: a comparison of one arm, with its checkpoints. data: the data set that it was run on.
    A run whose checkpoint is gone is skipped and named; where all are gone nothing is written.
    Raises ResultsError for a comparison of several arms, or where predictions and recorded accuracy do not agree.
    """
    results = read_results(folder)
    if len(results.runs) > 1:
        raise ResultsError(f"{folder}: holds the arms {', '.join(results.runs)}; only one arm can be evaluated")
    (arm,) = results.runs
    kept = {run.seed: checkpoint_path(results.folder, run.arm, run.seed) for run in results.finished(arm)}
    gone = [seed for seed, path in kept.items() if not path.is_dir()]
    runs = [run for run in results.finished(arm) if run.seed not in gone]
    if not runs:
        return f"not evaluated: {_gone(results, arm, gone) if gone else f'no finished run in {folder}'}"

    confusion, first_mistakes = {}, []
    for run in runs:
        probabilities = predict(kept[run.seed], data.test.images)
        confusion[run.seed] = confusion_matrix(data.test.labels, probabilities.argmax(1), len(data.class_names))
        _check_accuracy(results, run, confusion[run.seed])
        if run is runs[0]:
            first_mistakes = worst_mistakes(probabilities, data.test.labels, NUM_MISTAKES)
    evaluation = _evaluation(results, data, runs, confusion, first_mistakes, gone)
    sheet = draw_mistakes(data.test.images, evaluation)
    write_bytes(results.folder / "mistakes.png", sheet)
    _write(results.folder, evaluation)
    write_json(evaluation_path(results.folder), evaluation)
    paths = [f"{name:<10}{results.folder / name}.png" for name in ("confusion", "mistakes")]
    return "\n".join([aligned(_class_table(evaluation)), "", *evaluation["notes"], "", *paths])


def render_evaluation(folder: str | Path) -> None:
    """Write evaluation.md and confusion.png again from the evaluation.json in `folder`. The sheet of mistakes stays as
    it is: it shows images, which only the data set has.

    Raises ResultsError where evaluation.json is damaged or foreign; then nothing is written.
    """
    _write(Path(folder), read_evaluation(folder))


def _write(folder: Path, evaluation: dict[str, Any]) -> None:
    """Write what evaluation.json is enough for."""
    text = _markdown(evaluation)
    write_bytes(folder / "confusion.png", to_png(lambda: make_confusion(evaluation)))
    write_text(folder / "evaluation.md", text)


def _gone(results: Results, arm: str, seeds: list[int]) -> str:
    listed = ", ".join(map(str, seeds))
    where = results.folder / "checkpoints" / f"{slug(arm)}-seed*"
    return f"the checkpoints of seeds {listed} are not in {where}; copy them there and run the same command again"


def _check_accuracy(results: Results, run: Run, confusion: np.ndarray) -> None:
    """Raise ResultsError unless the run recorded the accuracy of `confusion`, up to `ROUNDING`."""
    assert run.scores is not None
    n, correct, recorded = int(confusion.sum()), int(np.trace(confusion)), run.scores["test_accuracy"]
    if abs(correct - recorded / 100 * n) > math.ceil(ROUNDING * n) + 1e-6:
        path = checkpoint_path(results.folder, run.arm, run.seed)
        raise ResultsError(
            f"{path}: recognises {correct:,} of {n:,} test images ({100 * correct / n:.2f} %), "
            f"but the run recorded {recorded:.2f} %: the checkpoint or the data set is of another run. Restore it "
            "from a copy, or delete the files of this run and run the comparison again"
        )


# ---------------------------------------------------------------------------------------------------- the numbers


def _evaluation(
    results: Results,
    data: Dataset,
    runs: list[Run],
    confusion: dict[int, np.ndarray],
    first_mistakes: list[Mistake],
    gone: list[int],
) -> dict[str, Any]:
    """The contents of evaluation.json. Confusion matrices: rows are true classes, columns predicted ones."""
    matrices = list(confusion.values())
    mean = np.mean(matrices, axis=0)
    n = int(mean.sum().round())
    low, high = wilson_interval(float(np.trace(mean)), n)
    chosen = [SELECTED_ON[run.scores["selection"]] for run in runs if run.scores]
    evaluation: dict[str, Any] = {
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
        "mistakes": {"seed": runs[0].seed, "worst_first": [mistake._asdict() for mistake in first_mistakes]},
        "environment": environment(),
    }
    return {**evaluation, "notes": _notes(evaluation)}


# ------------------------------------------------------------------------------------------------- table and page


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
