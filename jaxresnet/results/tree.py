"""A folder around several comparisons: what lies in it, one level down, and what had to be left out and why."""

from pathlib import Path
from typing import NamedTuple

from jaxresnet.errors import ResultsError
from jaxresnet.results.schemas import comparison_path, measurement_path, read_measurement
from jaxresnet.results.store import RUNS, Results, read_results

GIVE = "give the folder of a comparison or measurement, or the folder around several"


class Tree(NamedTuple):
    """comparisons: {name of the folder: what was read}. measurements: folders without a comparison that hold a
    measurement.json. skipped: {name of the folder: why it is neither}. All in the order of the names."""

    root: Path
    comparisons: dict[str, Results]
    measurements: dict[str, Path]
    skipped: dict[str, str]


def read_tree(root: str | Path) -> Tree:
    """Read every comparison and measurement in the folders of `root`.

    A folder that is damaged or foreign is skipped and named. Files, the store of runs, and folders whose name starts
    with "." or "_" are not looked at. Raises ResultsError where nothing at all can be shown.
    """
    root = Path(root)
    if not root.is_dir():
        raise ResultsError(f"{root}: no such folder; {GIVE}")
    tree = Tree(root, {}, {}, {})
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        if folder.name == RUNS:
            continue
        try:
            _read_into(tree, folder.name, folder)
        except (ResultsError, OSError) as error:
            tree.skipped[folder.name] = str(error)
    if not tree.comparisons and not tree.measurements:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in tree.skipped.items())
        raise ResultsError(f"{root}: holds no comparison{f' that can be read ({reasons})' if reasons else ''}; {GIVE}")
    return tree


def _read_into(tree: Tree, name: str, folder: Path) -> None:
    """A measurement beside a comparison is shown with that."""
    if comparison_path(folder).is_file():
        tree.comparisons[name] = read_results(folder)
    elif measurement_path(folder).is_file():
        read_measurement(folder)
        tree.measurements[name] = folder
    else:
        raise ResultsError("holds no comparison.json" if any(folder.iterdir()) else "is empty")
