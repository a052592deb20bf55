"""measurement.json: what `model_table` counted and timed of networks, read back with every damage named."""

import math
from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError
from jaxresnet.json_files import read_json

NAME = "model_parameters"  # the one kind of measurement that there is
_REMEDY = "restore it from a copy, or delete it and measure again"
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
        if not _is_model(model):
            raise ResultsError(f"{path}: model {name!r} is malformed; {_REMEDY}")
    return found


def _holds(value: Any, kinds: dict[str, type]) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(key), kind) for key, kind in kinds.items())


def _ran(model: Any) -> bool:
    return isinstance(model, dict) and bool(model.get("step_seconds"))


def _is_model(model: Any) -> bool:
    """Whether it has its shape, counts, reasons, and either times (s, finite and above 0) or None."""
    if not _holds(model, {"model": dict, "params": int, "macs": int}) or not _holds(model["model"], _SHAPE):
        return False
    if any(not isinstance(model.get(f"problem_{where}"), str | None) for where in ("as_published", "here")):
        return False
    seconds, median = model.get("step_seconds"), model.get("median_step_seconds")
    if seconds is None:
        return median is None
    return isinstance(seconds, list) and len(seconds) > 0 and all(map(_is_time, [*seconds, median]))


def _is_time(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value > 0
