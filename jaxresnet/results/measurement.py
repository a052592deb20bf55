"""measurement.json: what `model_table` counted and timed of networks, read back with every damage named."""

from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError
from jaxresnet.files import LONGEST_NAME, is_name, is_number, is_whole, read_json

NAME = "model_parameters"  # the one kind of measurement that there is
_REMEDY = "restore it from a copy, or delete it and measure again"
LARGEST_COUNT = 10**15  # parameters or multiply-adds; beyond it, and beyond a day, nothing is drawn
LONGEST_SECONDS = 86_400.0
MOST_STAGES = 100
_TIMING = {"what": str, "batch_size": int, "precision": str, "rounds": int, "steps_a_round": int, "width": str}
_SHAPE = {"stage_sizes": list, "width": int, "shortcut_kernel": int, "pool_size": int}


def measurement_path(folder: str | Path) -> Path:
    return Path(folder) / "measurement.json"


def read_measurement(folder: str | Path) -> dict[str, Any]:
    """The measurement in `folder`: its name, timing, models as {name: counts and times} and environment.

    Raises ResultsError, with the file and the remedy, where it is cut, damaged or not a measurement of networks.
    """
    path = measurement_path(folder)
    found = read_json(path, _REMEDY)
    if not isinstance(found, dict) or found.get("name") != NAME:
        raise ResultsError(f"{path}: 'name' is not {NAME!r}, so this is not a measurement of networks; {_REMEDY}")
    parts = {
        "demo": isinstance(found.get("demo", False), bool),
        "timing": _holds(found.get("timing"), _TIMING),
        "environment": _holds(found.get("environment"), {"device": str}),
        "models": isinstance(found.get("models"), dict) and any(map(_ran, found["models"].values())),
    }
    for part, is_valid in parts.items():
        if not is_valid:
            raise ResultsError(f"{path}: {part!r} is missing or malformed; {_REMEDY}")
    for name, model in found["models"].items():
        if not (0 < len(name) <= LONGEST_NAME and _is_model(model)):
            raise ResultsError(f"{path}: model {name[:100]!r} is malformed; {_REMEDY}")
    return found


def _holds(value: Any, kinds: dict[str, type]) -> bool:
    """Whether it is an object with these objects, texts, whole numbers of 1 or more, and lists of such numbers."""
    return isinstance(value, dict) and all(_is(value.get(key), kind) for key, kind in kinds.items())


def _is(value: Any, kind: type) -> bool:
    if kind is str:
        return is_name(value)
    if kind is dict:
        return isinstance(value, dict)
    if kind is list:
        return isinstance(value, list) and len(value) <= MOST_STAGES and all(_is(one, int) for one in value)
    return is_whole(value, LARGEST_COUNT) and value > 0


def _ran(model: Any) -> bool:
    return isinstance(model, dict) and bool(model.get("step_seconds"))


def _is_model(model: Any) -> bool:
    """Whether it has its shape, counts, reasons, and either times (s, finite and above 0) or None."""
    if not _holds(model, {"model": dict, "params": int, "macs": int}) or not _holds(model["model"], _SHAPE):
        return False
    if any(not isinstance(model.get(name, 0), str | None) for name in ("problem_as_published", "problem_here")):
        return False
    if not {"step_seconds", "median_step_seconds"} <= model.keys():
        return False
    seconds, median = model["step_seconds"], model["median_step_seconds"]
    if seconds is None:
        return median is None
    return isinstance(seconds, list) and len(seconds) > 0 and all(map(_is_time, [*seconds, median]))


def _is_time(value: Any) -> bool:
    return is_number(value, LONGEST_SECONDS) and value >= 1e-9
