"""What comparison.json, evaluation.json and measurement.json hold, and reading them back with every damage named."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError
from jaxresnet.files import LONGEST_NAME, is_name, is_number, is_whole, read_json

MOST_CLASSES = 100  # of a confusion matrix that is drawn with a number in every cell
MOST = 2**53  # images, parameters or multiply-adds: whole numbers up to here are exact in floating point
LARGEST_EPOCH = 10**9
LONGEST_STEP = 86_400.0  # seconds
MEASUREMENT = "model_parameters"  # the one kind of measurement that there is


def comparison_path(folder: str | Path) -> Path:
    return Path(folder) / "comparison.json"


def evaluation_path(folder: str | Path) -> Path:
    return Path(folder) / "evaluation.json"


def measurement_path(folder: str | Path) -> Path:
    return Path(folder) / "measurement.json"


def check_parts(path: Path, found: Any, parts: Mapping[str, Callable[[Any], bool]], what: str, remedy: str) -> None:
    """Raise ResultsError, which names the first that is not, unless `found` is a dict whose `parts` are all valid.

    what: what the file should be. remedy: the end of the message."""
    for part, is_valid in parts.items():
        if not isinstance(found, dict) or not is_valid(found.get(part)):
            raise ResultsError(f"{path}: {part!r} is missing or malformed, so this is not {what}; {remedy}")


# ----------------------------------------------------------------------------------------------------- comparison


def read_comparison(folder: Path) -> dict[str, Any]:
    """The comparison.json in `folder`. Raises ResultsError where there is none, or where it is damaged."""
    path, remedy = comparison_path(folder), "give the folder of a comparison"
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder; {remedy}")
    if not path.is_file():
        state = f"holds no {path.name}" if any(folder.iterdir()) else "is empty"
        raise ResultsError(f"{folder}: {state}, so it is not the folder of a comparison; {remedy}")
    config = read_json(path, "restore it from a copy, or delete it and run the comparison again")
    parts: dict[str, Callable[[Any], bool]] = {
        "name": is_name,
        "protocol": is_name,
        "environment": lambda environment: isinstance(environment, dict),
        "arms": lambda arms: isinstance(arms, dict) and len(arms) > 0 and all(map(_is_arm, arms.values())),
        "seeds": lambda seeds: (
            isinstance(seeds, list)
            and all(is_whole(seed, 2**32 - 1) for seed in seeds)
            and len(set(seeds)) == len(seeds) > 0
        ),
        "dataset": lambda dataset: (
            isinstance(dataset, dict) and is_name(dataset.get("name")) and isinstance(dataset.get("synthetic"), bool)
        ),
        "published": lambda published: (
            published is None or (isinstance(published, dict) and all(map(_is_published, published.values())))
        ),
        "runs": lambda runs: (  # after arms and seeds, which are right then
            isinstance(runs, dict)
            and all(isinstance(runs.get(arm), dict) for arm in config["arms"])
            and all(_is_id(runs[arm].get(str(seed))) for arm in config["arms"] for seed in config["seeds"])
        ),
    }
    check_parts(path, config, parts, "the comparison.json of a comparison", remedy)
    return config


def _is_arm(arm: Any) -> bool:
    """Whether tables and pages can be made of it. Arms of other versions may have other settings."""
    if not isinstance(arm, dict) or any(not isinstance(arm.get(part, {}), dict) for part in ("model", "optim")):
        return False
    counts = (arm.get(name) for name in ("train_size", "val_size", "num_epochs"))
    return all(count is None or is_whole(count, 2**31) for count in counts)


def _is_published(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and is_number(entry.get("best"), 100)
        and is_number(entry.get("last", 0), 100)
        and is_whole(entry.get("best_epoch", 0), LARGEST_EPOCH)
        and all(isinstance(entry.get(name, ""), str) for name in ("source", "run"))
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


# ----------------------------------------------------------------------------------------------------- evaluation


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """The evaluation.json in `folder`, which `evaluate_runs` wrote: all that its table, page and figure are made of.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not an evaluation.
    """
    path, remedy = evaluation_path(folder), "delete it and run the same experiment again, which evaluates again"
    found = read_json(path, remedy)
    names = found.get("class_names") if isinstance(found, dict) else None
    count = len(names) if isinstance(names, list) else 0
    parts: dict[str, Callable[[Any], bool]] = {
        "class_names": lambda names: 2 <= count <= MOST_CLASSES and _is_list(names, is_name),
        "title": is_name,
        "selection": is_name,
        "num_test": _is_positive,
        "seeds": lambda seeds: _is_list(seeds, _is_count) and len(seeds) > 0,
        "seeds_without_checkpoint": lambda seeds: _is_list(seeds, _is_count),
        "confusion_summed_over_seeds": lambda rows: _is_list(rows, lambda row: _is_list(row, _is_count, count), count),
        "mean_over_seeds": lambda mean: (
            _is_score(mean, count, "test_accuracy") and _is_list(mean.get("interval_95"), _is_percent, 2)
        ),
        "runs": lambda runs: (
            isinstance(runs, dict)
            and len(runs) > 0
            and all(_is_score(run, count, "test_accuracy", "recorded_test_accuracy") for run in runs.values())
        ),
        "mistakes": lambda mistakes: (
            _has(mistakes, seed=_is_count)
            and _is_list(mistakes.get("worst_first"), lambda mistake: _is_mistake(mistake, count))
        ),
        "environment": lambda environment: isinstance(environment, dict),
    }
    check_parts(path, found, parts, "the evaluation of a comparison", remedy)
    return found


def _is_score(value: Any, num_classes: int, *accuracies: str) -> bool:
    """An object with these accuracies (percent), and "classes": of each how many images, and the accuracy with its
    interval in percent, None where there are no images."""

    def is_class(score: Any) -> bool:
        if not _has(score, n=_is_count):
            return False
        unknown = score["n"] == 0 and score.get("accuracy") is None
        return unknown or _has(score, accuracy=_is_percent, low=_is_percent, high=_is_percent)

    return _has(value, **dict.fromkeys(accuracies, _is_percent)) and _is_list(
        value.get("classes"), is_class, num_classes
    )


def _is_mistake(value: Any, num_classes: int) -> bool:
    def is_class(index: Any) -> bool:
        return is_whole(index, num_classes - 1)

    return _has(value, image=_is_count, true=is_class, predicted=is_class, probability=lambda p: is_number(p, 1))


# ---------------------------------------------------------------------------------------------------- measurement


def read_measurement(folder: str | Path) -> dict[str, Any]:
    """The measurement.json in `folder`, which `measure_models` wrote: its name, timing, environment, and models as
    {name: counts and times}.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not a measurement of networks.
    """
    path, remedy = measurement_path(folder), "restore it from a copy, or delete it and measure again"
    found = read_json(path, remedy)
    counts = dict.fromkeys(("batch_size", "rounds", "steps_a_round"), _is_positive)
    parts: dict[str, Callable[[Any], bool]] = {
        "name": lambda name: name == MEASUREMENT,
        "demo": lambda demo: isinstance(demo, bool | None),
        "timing": lambda timing: _has(timing, what=is_name, precision=is_name, width=is_name, **counts),
        "environment": lambda environment: _has(environment, device=is_name),
        "models": lambda models: (
            isinstance(models, dict)
            and any(isinstance(model, dict) and model.get("step_seconds") for model in models.values())
        ),
    }
    check_parts(path, found, parts, "a measurement of networks", remedy)
    for name, model in found["models"].items():
        if not (0 < len(name) <= LONGEST_NAME and _is_model(model)):
            raise ResultsError(f"{path}: model {name[:100]!r} is malformed; {remedy}")
    return found


def _is_model(model: Any) -> bool:
    """Whether it has its shape, counts, reasons, and either times (s, above 0) or None."""

    def is_reason(value: Any) -> bool:
        return isinstance(value, str | None)

    def is_shape(shape: Any) -> bool:
        sizes = dict.fromkeys(("width", "shortcut_kernel", "pool_size"), _is_positive)
        return _has(shape, stage_sizes=lambda sizes: _is_list(sizes, _is_positive), **sizes)

    def is_time(value: Any) -> bool:
        return is_number(value, LONGEST_STEP) and value > 0

    known = _has(model, model=is_shape, params=_is_positive, macs=_is_positive)
    if not known or not _has(model, problem_as_published=is_reason, problem_here=is_reason):
        return False
    seconds, median = model.get("step_seconds"), model.get("median_step_seconds")
    if seconds is None:
        return median is None
    return _is_list(seconds, is_time) and len(seconds) > 0 and is_time(median)


# --------------------------------------------------------------------------------------------------------- values


def _has(value: Any, **parts: Callable[[Any], bool]) -> bool:
    """Whether it is an object in which all of these are valid."""
    return isinstance(value, dict) and all(is_valid(value.get(name)) for name, is_valid in parts.items())


def _is_list(value: Any, is_valid: Callable[[Any], bool], length: int | None = None) -> bool:
    """Whether it is a list of such values, of that length where one is given."""
    return isinstance(value, list) and length in (None, len(value)) and all(map(is_valid, value))


def _is_count(value: Any) -> bool:
    return is_whole(value, MOST)


def _is_positive(value: Any) -> bool:
    return is_whole(value, MOST) and value > 0


def _is_percent(value: Any) -> bool:
    return is_number(value, 100)
