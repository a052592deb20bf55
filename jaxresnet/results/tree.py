"""A folder around several comparisons: what lies in it, one level down, and what had to be left out and why."""

from pathlib import Path
from typing import NamedTuple

from jaxresnet.errors import ResultsError, UserError
from jaxresnet.results.measurement import measurement_path, read_measurement
from jaxresnet.results.store import Results, config_path, read_results

GIVE = "give the folder of a comparison or measurement, or the folder around several"


class Tree(NamedTuple):
    """comparisons: {name of the folder: what was read}. measurements: folders without a comparison that hold a
    measurement.json. skipped: {name of the folder: why it is neither}. All in the order of the names."""

    root: Path
    comparisons: dict[str, Results]
    measurements: dict[str, Path]
    skipped: dict[str, str]


def read_tree(root: str | Path) -> Tree:
    """Read every comparison and measurement in the folders of `root`, or `root` itself where it is the folder of one.

    A folder that is damaged or foreign is skipped and named; files, and folders whose name starts with "." or "_", are
    not looked at. Raises ResultsError where nothing at all can be shown, and for a `root` that is the
    folder of a comparison or a measurement and damaged.
    """
    root = Path(root)
    if not root.is_dir():
        raise ResultsError(f"{root}: no such folder; {GIVE}")
    if config_path(root).is_file():
        return Tree(root, {root.resolve().name: read_results(root)}, {}, {})
    if measurement_path(root).is_file():
        read_measurement(root)
        return Tree(root, {}, {root.resolve().name: root}, {})
    tree = Tree(root, {}, {}, {})
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith((".", "_"))):
        name = folder.name
        try:
            if config_path(folder).is_file():
                tree.comparisons[name] = read_results(folder)
                continue  # a measurement in it is shown with the comparison
        except (UserError, OSError) as error:
            tree.skipped[name] = str(error)
        try:
            if measurement_path(folder).is_file():
                read_measurement(folder)
                tree.measurements[name] = folder
            elif name not in tree.skipped:
                tree.skipped[name] = "holds no config.json" if any(folder.iterdir()) else "is empty"
        except (UserError, OSError) as error:
            tree.skipped[name] = "; ".join([*filter(None, [tree.skipped.get(name)]), str(error)])
    if not tree.comparisons and not tree.measurements:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in tree.skipped.items())
        raise ResultsError(f"{root}: holds no comparison{f' that can be read ({reasons})' if reasons else ''}; {GIVE}")
    return tree
