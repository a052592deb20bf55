"""How the parity tests compare: with what PyTorch computed once (golden/*.npz), and with PyTorch where it is
installed. Every comparison is noted down, for the report that `pytest --parity-report FILE` writes."""

import json
import shlex
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np

from support.golden import cases
from support.golden.make_golden import golden_path, prefix

Arrays = Mapping[str, Any]

REPORT: dict[tuple[str, str], dict[str, Any]] = {}  # (quantity, against) -> its largest error


def note(quantity: str, against: str, error: float, tolerance: float, where: str) -> None:
    """Keep the largest error of each quantity."""
    entry = REPORT.setdefault((quantity, against), {"error": -1.0})
    if error > entry["error"]:
        entry |= {"error": error, "tolerance": tolerance, "where": where}
    entry["comparisons"] = entry.get("comparisons", 0) + 1


class Oracle:
    """PyTorch's numbers. against: "golden" for those on disk, "live" for PyTorch itself."""

    def __init__(self, against: str):
        self.against = against

    def check(self, quantity: str, ours: Arrays, function: str, *arguments: Any, tolerance: float) -> None:
        """Assert that each array of `ours` lies within `tolerance` of that of the same name from
        `oracle.function(*arguments)`: the largest difference over the largest number."""
        theirs = _theirs(self.against, function, *arguments)
        arrays = {name: np.asarray(array) for name, array in ours.items()}
        if self.against == "golden":
            arrays = cases.digest(arrays)
        assert arrays and arrays.keys() <= theirs.keys()
        errors = {name: cases.error(array, theirs[name]) for name, array in arrays.items()}
        for name, error in errors.items():
            note(quantity, self.against, error, tolerance, prefix(arguments) + name)
        beyond = {name: error for name, error in errors.items() if not error <= tolerance}
        assert not beyond, f"{quantity} of {arguments}: further than {tolerance} from PyTorch's ({self.against})"

    def names(self, function: str, *arguments: Any) -> set[str]:
        """Of the arrays that there are, without what a digest adds."""
        return {
            name.split(", 64 of")[0] for name in _theirs(self.against, function, *arguments) if " sums of " not in name
        }


@cache
def _theirs(against: str, function: str, *arguments: Any) -> Arrays:
    if against == "live":
        from support.golden import oracle

        return getattr(oracle, function)(*arguments)
    start = prefix(arguments)
    with np.load(golden_path(function)) as kept:
        return {name.removeprefix(start): kept[name] for name in kept.files if name.startswith(start)}


def write_report(path: str, command: list[str]) -> None:
    """All that was noted, as JSON: a list of quantities with their largest error. command: that of the session."""
    from jaxresnet.hardware import environment

    rows = [{"quantity": quantity, "against": against, **entry} for (quantity, against), entry in REPORT.items()]
    versions = environment() | {"command": shlex.join(command)}
    try:
        import torch

        versions["torch"] = torch.__version__
    except ImportError:
        versions["torch"] = None
    with open(path, "w") as file:
        json.dump({"environment": versions, "quantities": rows}, file, indent=1)
        file.write("\n")
