"""What comparison.json, evaluation.json and measurement.json hold, and reading them back with every damage named."""

import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import UnionType
from typing import Any

from jaxresnet.errors import ResultsError
from jaxresnet.files import is_name, is_number, is_whole, read_json

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


# --------------------------------------------------------------------------------------------------------- shapes


def matches(value: Any, shape: Any) -> bool:
    """Whether parsed JSON has a shape: a type, {part: shape} of an object, [shape] of a list, or a function that says.

    An object may hold other parts too: those of other versions."""
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(matches(value.get(part), of) for part, of in shape.items())
    if isinstance(shape, list):
        return isinstance(value, list) and all(matches(one, shape[0]) for one in value)
    return isinstance(value, shape) if isinstance(shape, type | UnionType) else shape(value)


def check_parts(path: Path, found: Any, parts: Mapping[str, Any], what: str, remedy: str) -> None:
    """Raise ResultsError, which names the first that is not, unless `found` is an object of the shape `parts`.

    what: what the file should be. remedy: the end of the message."""
    for part, shape in parts.items():
        if not matches(found, {part: shape}):
            raise ResultsError(f"{path}: {part!r} is missing or malformed, so this is not {what}; {remedy}")


def _each(shape: Any) -> Callable[[Any], bool]:
    """An object with a value at least, and all values of this shape."""
    return lambda value: isinstance(value, dict) and len(value) > 0 and matches(list(value.values()), [shape])


def optional(shape: Any) -> Callable[[Any], bool]:
    return lambda value: value is None or matches(value, shape)


def _is_positive(value: Any) -> bool:
    return is_whole(value, MOST) and value > 0


def _is_percent(value: Any) -> bool:
    return is_number(value, 100)


def _is_time(value: Any) -> bool:
    return is_number(value, LONGEST_STEP) and value > 0


# ----------------------------------------------------------------------------------------------------- comparison

_SIZES = dict.fromkeys(("train_size", "val_size", "num_epochs"), optional(lambda value: is_whole(value, 2**31)))
_ARM = {"model": optional(dict), "optim": optional(dict), **_SIZES}
_PUBLISHED = {"best": _is_percent, "last": optional(_is_percent), "source": optional(str)}


def read_comparison(folder: Path) -> dict[str, Any]:
    """The comparison.json in `folder`. Raises ResultsError where there is none, or where it is damaged."""
    path, remedy = comparison_path(folder), "give the folder of a comparison"
    if not folder.is_dir():
        raise ResultsError(f"{folder}: no such folder; {remedy}")
    if not path.is_file():
        raise ResultsError(f"{folder}: holds no {path.name}, so it is not the folder of a comparison; {remedy}")
    config = read_json(path, "restore it from a copy, or delete it and run the comparison again")

    def are_seeds(seeds: Any) -> bool:
        return matches(seeds, [lambda seed: is_whole(seed, 2**32 - 1)]) and len(set(seeds)) == len(seeds) > 0

    def are_runs(runs: Any) -> bool:  # asked after arms and seeds, which are right then
        return matches(runs, {arm: {str(seed): _is_id for seed in config["seeds"]} for arm in config["arms"]})

    parts = {
        "name": is_name,
        "protocol": is_name,
        "environment": dict,
        "arms": _each(_ARM),
        "seeds": are_seeds,
        "dataset": {"name": is_name, "synthetic": bool},
        "published": lambda published: not published or _each(_PUBLISHED)(published),
        "runs": are_runs,
    }
    check_parts(path, config, parts, "the comparison.json of a comparison", remedy)
    return config


def _is_id(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


# ----------------------------------------------------------------------------------------------------- evaluation


def read_evaluation(folder: str | Path) -> dict[str, Any]:
    """The evaluation.json in `folder`, which `evaluate_runs` wrote: all that its table, page and figure are made of.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not an evaluation.
    """
    path, remedy = evaluation_path(folder), "delete it and run the comparison again"
    found = read_json(path, remedy)
    check_parts(path, found, {"class_names": [is_name], "runs": _each(dict)}, "the evaluation of a comparison", remedy)
    return found


# ---------------------------------------------------------------------------------------------------- measurement

_COUNTS = dict.fromkeys(("batch_size", "rounds", "steps_a_round"), _is_positive)
_TIMING = {"what": is_name, "precision": is_name, "width": is_name, **_COUNTS}
_SHAPE = dict.fromkeys(("width", "shortcut_kernel", "pool_size"), _is_positive) | {"stage_sizes": [_is_positive]}
_MODEL = {
    "model": _SHAPE,
    "params": _is_positive,
    "macs": _is_positive,
    "problem_as_published": str | None,
    "problem_here": str | None,
    "step_seconds": optional([_is_time]),  # a time a round, None for a network that does not run here
    "median_step_seconds": optional(_is_time),
}
_MEASUREMENT = {
    "name": lambda name: name == MEASUREMENT,
    "demo": bool | None,
    "timing": _TIMING,
    "environment": {"device": is_name},
    "models": lambda models: _each(dict)(models) and any(one.get("step_seconds") for one in models.values()),
}


def read_measurement(folder: str | Path) -> dict[str, Any]:
    """The measurement.json in `folder`, which `measure_models` wrote: its name, timing, environment, and models as
    {name: counts and times}.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not a measurement of networks.
    """
    path, remedy = measurement_path(folder), "restore it from a copy, or delete it and measure again"
    found = read_json(path, remedy)
    check_parts(path, found, _MEASUREMENT, "a measurement of networks", remedy)
    check_parts(path, found["models"], dict.fromkeys(found["models"], _MODEL), "a measurement of networks", remedy)
    return found
