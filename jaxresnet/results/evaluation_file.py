"""evaluation.json: what `evaluate_runs` found of a comparison's checkpoints, read back with every damage named."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError
from jaxresnet.files import is_name, is_number, is_whole, read_json

MOST_CLASSES = 100  # of a confusion matrix that is drawn with a number in every cell
MOST_IMAGES = 2**53  # whole numbers up to here are exact in floating point
_REMEDY = "delete it and run the same experiment again, which evaluates its checkpoints again"


def evaluation_path(folder: str | Path) -> Path:
    return Path(folder) / "evaluation.json"


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """The evaluation in `folder`, all that its table, page and figure are made of.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not an evaluation.
    """
    path = evaluation_path(folder)
    found = read_json(path, _REMEDY)
    if not isinstance(found, dict):
        raise ResultsError(f"{path}: is not the evaluation of a comparison; {_REMEDY}")
    names = found.get("class_names")
    count = len(names) if isinstance(names, list) else 0
    parts: dict[str, Callable[[Any], bool]] = {
        "class_names": lambda names: 2 <= count <= MOST_CLASSES and all(map(is_name, names)),
        "title": is_name,
        "selection": is_name,
        "num_test": lambda n: is_whole(n, MOST_IMAGES) and n > 0,
        "seeds": lambda seeds: _are_whole(seeds) and len(seeds) > 0,
        "seeds_without_checkpoint": _are_whole,
        "confusion_summed_over_seeds": lambda rows: _is_matrix(rows, count),
        "mean_over_seeds": lambda mean: _is_mean(mean, count),
        "runs": lambda runs: isinstance(runs, dict) and len(runs) > 0 and all(_is_run(r, count) for r in runs.values()),
        "mistakes": lambda mistakes: _are_mistakes(mistakes, count),
        "environment": lambda environment: isinstance(environment, dict),
    }
    for part, is_valid in parts.items():
        if not is_valid(found.get(part)):
            raise ResultsError(f"{path}: {part!r} is missing or malformed; {_REMEDY}")
    for index, score in enumerate(found["mean_over_seeds"]["classes"]):
        if score["n"] and any(run["classes"][index]["accuracy"] is None for run in found["runs"].values()):
            raise ResultsError(
                f"{path}: 'runs' has no accuracy of {found['class_names'][index]}, which has test images; {_REMEDY}"
            )
    return found


def _are_whole(values: Any) -> bool:
    return isinstance(values, list) and all(is_whole(value, MOST_IMAGES) for value in values)


def _is_matrix(rows: Any, count: int) -> bool:
    return isinstance(rows, list) and len(rows) == count and all(_are_whole(row) and len(row) == count for row in rows)


def _is_mean(mean: Any, count: int) -> bool:
    if not isinstance(mean, dict) or not is_number(mean.get("test_accuracy"), 100):
        return False
    ends = mean.get("interval_95")
    return (
        isinstance(ends, list)
        and len(ends) == 2
        and all(is_number(end, 100) for end in ends)
        and _are_scores(mean.get("classes"), count)
        and all(score["n"] == 0 or is_number(score["accuracy"], 100) for score in mean["classes"])
    )


def _is_run(run: Any, count: int) -> bool:
    accuracies = ("test_accuracy", "recorded_test_accuracy")
    return (
        isinstance(run, dict)
        and all(is_number(run.get(name), 100) for name in accuracies)
        and _are_scores(run.get("classes"), count)
    )


def _are_scores(scores: Any, count: int) -> bool:
    """Of each class: how many images, and accuracy with its interval in percent, None where there are no images."""
    return (
        isinstance(scores, list)
        and len(scores) == count
        and all(isinstance(score, dict) and is_whole(score.get("n"), MOST_IMAGES) for score in scores)
        and all(
            all(is_number(score.get(name), 100) for name in ("accuracy", "low", "high"))
            or (score["n"] == 0 and score.get("accuracy") is None)
            for score in scores
        )
    )


def _are_mistakes(mistakes: Any, count: int) -> bool:
    if not isinstance(mistakes, dict) or not is_whole(mistakes.get("seed"), MOST_IMAGES):
        return False
    worst = mistakes.get("worst_first")
    return isinstance(worst, list) and all(
        isinstance(one, dict)
        and is_whole(one.get("image"), MOST_IMAGES)
        and all(is_whole(one.get(name), count - 1) for name in ("true", "predicted"))
        and is_number(one.get("probability"), 1)
        for one in worst
    )
