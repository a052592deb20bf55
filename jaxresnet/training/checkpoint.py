"""Checkpoints with Orbax: the last two of a run, each whole or not there at all. The only file that knows Orbax.

    <folder>/<step>/state/       Orbax's: the train state and the running totals of the epoch in progress
    <folder>/<step>/best/        Orbax's: the weights of the chosen epoch so far
    <folder>/<step>/record.json  the rest in JSON, and size and checksum of every file beside it

Orbax gets and gives NumPy arrays, on the host: those of JAX took it three times as long, and a network has hundreds.
`record.json` is written last, in one step: without it a checkpoint was never finished. So a process that is killed at
any instant leaves the checkpoints before it, and a damaged byte is found before Orbax sees it.
"""

import json
import re
import shutil
import tempfile
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxresnet.distributed import from_main, is_main
from jaxresnet.errors import ResultsError, StorageError, first_line
from jaxresnet.files import read_json, write_json
from jaxresnet.training.metrics import TrainTotals
from jaxresnet.training.state import TrainState, Weights

KEEP = 2  # the newest may be damaged
_ORDINARY = re.compile(r"[\w./~+,=@: -]*")
METADATA = 2**20  # bytes, with room: what Orbax and the record write beside the arrays
RECORD = "record.json"
# Runs that train side by side save from several threads, and Orbax numbers its operations for the whole process.
_ONE_AT_A_TIME = threading.Lock()


class DamagedError(ResultsError):
    """A checkpoint that cannot be read, or is not what was written."""


@dataclass
class Record:
    """What a run is and how far it came, in JSON types.

    config, data: the run, and the fingerprint of its data set. history: a row for each finished epoch. seconds: of
    training in the epoch in progress. backends: versions and devices, one more whenever the run went on with others,
    each with the "step" from which on. converted: where the weights come from, if no run made them.
    """

    config: dict[str, Any]
    data: dict[str, Any]
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    backends: list[dict[str, Any]] = field(default_factory=list)
    converted: dict[str, Any] = field(default_factory=dict)


class Saved(NamedTuple):
    """All that a run is between two steps. best: the weights of the epoch that it would report now."""

    state: TrainState
    totals: TrainTotals
    best: Weights
    record: Record


def saved_steps(folder: str | Path) -> list[int]:
    """The steps of all finished checkpoints, newest first."""
    found = [path.parent.name for path in Path(folder).glob(f"[0-9]*/{RECORD}")]
    return sorted((int(name) for name in found if name.isdigit()), reverse=True)


def save(folder: str | Path, saved: Saved) -> None:
    """Write the checkpoint named by the state's step, and delete all but the last two.

    Returns when it is complete on disk. Does nothing if that step is there already. Raises StorageError where it cannot
    be written; those before it stay. Several processes call this alike.
    """
    step = int(saved.state.step)
    if step in from_main(lambda: saved_steps(folder)):
        return
    state = {"state": saved.state, "totals": saved.totals}
    _write(Path(folder) / str(step), {"state": state, "best": saved.best}, saved.record)
    if is_main():
        for old in saved_steps(folder)[KEEP:]:
            (Path(folder) / str(old) / RECORD).unlink()  # from here on it is no checkpoint
            shutil.rmtree(Path(folder) / str(old))


def save_weights(folder: str | Path, weights: Weights, record: Record) -> None:
    """A folder with weights that `predict` reads, but no run that could go on. Raises as `save`."""
    _write(Path(folder) / "0", {"best": weights}, record)


def _write(path: Path, trees: dict[str, Any], record: Record) -> None:
    from orbax.checkpoint import v1 as ocp

    trees = jax.tree.map(np.asarray, trees)
    try:
        # Where these fail, Orbax's threads would wait for one another, and log much.
        path.mkdir(parents=True, exist_ok=True)
        _require_room(path, trees)
        with _ONE_AT_A_TIME:
            for name, tree in trees.items():
                with _plain(path / name) as plain:
                    ocp.save(plain, tree, overwrite=True)
    except (OSError, ValueError) as e:  # TensorStore raises ValueError for a full disk
        raise StorageError(
            f"{path}: a checkpoint cannot be written ({_reason(e)}). Those before it are intact: make room, and "
            "the same command continues"
        ) from e
    if is_main():
        shapes = {name: _shapes(tree) for name, tree in trees.items()}
        whole = {**asdict(record), "shapes": shapes, "files": _checksums(path)}
        write_json(path / RECORD, {**whole, "crc32": _crc32(whole)})


def _require_room(path: Path, trees: Any) -> None:
    needed = sum(leaf.nbytes for leaf in jax.tree.leaves(trees)) + METADATA
    free = shutil.disk_usage(path).free
    if free < needed:
        raise OSError(f"No space left on device: it takes {needed / 2**20:.1f} MiB and {free / 2**20:.1f} are free")


@contextmanager
def _plain(path: Path) -> Iterator[Path]:
    """`path`, absolute, by a name that Orbax takes as it is: no pattern, which it would look for, and UTF-8."""
    path = path.resolve()
    if _ORDINARY.fullmatch(str(path)):
        yield path
        return
    with tempfile.TemporaryDirectory(dir=None if _ORDINARY.fullmatch(tempfile.gettempdir()) else "/tmp") as folder:
        link = Path(folder) / "checkpoint"
        link.symlink_to(path.parent, target_is_directory=True)
        yield link / path.name


def read_record(folder: str | Path, step: int) -> Record:
    """The JSON part of the checkpoint at `step`."""
    return _as_record(_read_record(Path(folder) / str(step)))


def _as_record(found: dict[str, Any]) -> Record:
    return Record(**{name: found[name] for name in Record.__dataclass_fields__ if name in found})


def _read_record(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path / RECORD, "restore a copy")
    except ResultsError as e:
        raise DamagedError(str(e)) from e
    if not isinstance(found, dict) or found.pop("crc32", None) != _crc32(found):
        raise DamagedError(f"{path / RECORD}: is damaged; restore a copy")
    return found


def restore(folder: str | Path, step: int, like: Saved) -> Saved:
    """The checkpoint at `step`, of NumPy arrays. `like` gives names, shapes and dtypes.

    Raises DamagedError where it is not what was written, ResultsError where it holds other arrays than `like`.
    """
    likes = {"state": {"state": like.state, "totals": like.totals}, "best": like.best}
    record, found = _restored(Path(folder) / str(step), likes)
    return Saved(**found["state"], best=found["best"], record=record)


def restore_best(folder: str | Path, step: int, like: Weights) -> Weights:
    """The weights of the chosen epoch alone. Raises as `restore`."""
    return _restored(Path(folder) / str(step), {"best": like})[1]["best"]


def _restored(path: Path, likes: dict[str, Any]) -> tuple[Record, dict[str, Any]]:
    """The record, and the trees of these names. Every file of the checkpoint is verified first, once."""
    record = _read_record(path)
    for name, like in likes.items():
        _check_shapes(path, record["shapes"].get(name, {}), _shapes(like))
    found = from_main(lambda: _checksums(path))
    changed = sorted(file for file, entry in record["files"].items() if found.get(file) != entry)
    if changed:
        raise DamagedError(f"{path}: {changed[0]} is missing or damaged")
    return _as_record(record), {name: load_arrays(path / name, like) for name, like in likes.items()}


def load_arrays(path: Path, like: Any) -> Any:
    """What Orbax has written at `path`, as a tree of NumPy arrays like `like`, which gives shapes and dtypes."""
    from orbax.checkpoint import v1 as ocp

    abstract = jax.tree.map(lambda a: np.empty(a.shape, a.dtype), like)
    with _ONE_AT_A_TIME, _plain(path) as plain:
        return ocp.load(plain, abstract)


def _check_shapes(path: Path, found: dict[str, str], wanted: dict[str, str]) -> None:
    names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
    if names:
        name = names[0]
        raise ResultsError(
            f"{path}: holds other arrays than this run: {name} is {found.get(name, 'missing')} there and "
            f"{wanted.get(name, 'missing')} here, {len(names)} differ in all. Use the versions of jaxresnet, JAX and "
            "Optax that wrote it, or another output folder"
        )


def set_aside(folder: str | Path, step: int) -> str:
    """Rename a checkpoint that is damaged to damaged-<step>, and return the new path."""
    path = Path(folder) / str(step)
    names: Iterable[str] = (f"damaged-{step}" + (f"-{i}" if i else "") for i in range(1000))
    aside = next(path.with_name(name) for name in names if not path.with_name(name).exists())
    path.rename(aside)
    return str(aside)


def remove_unfinished(folder: str | Path) -> list[str]:
    """Remove checkpoints that a killed process was writing. Returns their paths."""
    folder = Path(folder)
    unfinished = [p for p in sorted(folder.glob("[0-9]*")) if p.is_dir() and not (p / RECORD).is_file()]
    for path in unfinished:
        shutil.rmtree(path)
    return [str(path) for path in unfinished]


def _shapes(tree: Any) -> dict[str, str]:
    """{path: "float32 (3, 3)"} of a tree of anything with shape and dtype."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{a.dtype} {tuple(a.shape)}"
        for path, a in jax.tree_util.tree_leaves_with_path(tree)
    }


def _checksums(path: Path) -> dict[str, list[int]]:
    """{file: [bytes, CRC-32]} of every file of a checkpoint but its record."""
    files = sorted(p for p in path.rglob("*") if p.is_file() and p != path / RECORD)
    contents = {p.relative_to(path).as_posix(): p.read_bytes() for p in files}
    return {name: [len(data), zlib.crc32(data)] for name, data in contents.items()}


def _crc32(record: dict[str, Any]) -> int:
    return zlib.crc32(json.dumps(record, sort_keys=True).encode())


def _reason(error: BaseException) -> str:
    while error.__cause__ is not None:  # what TensorStore found, in place of what Orbax made of it
        error = error.__cause__
    return first_line(error).partition(" [")[0]  # TensorStore adds what it was asked in brackets
