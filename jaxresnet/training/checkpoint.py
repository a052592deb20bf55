"""Checkpoints with Orbax: the last two and the best of a run, each whole or not there at all.

A checkpoint holds arrays (the train state and the epoch's running totals) and a record of plain JSON (config,
history, position). Every byte of both is covered by a checksum: the arrays by those of Orbax's storage, the record by
one of ours. The only file that knows Orbax, which is imported when a checkpoint is first touched.
"""

import json
import logging
import shutil
import sys
import tempfile
import threading
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxresnet.errors import ResultsError, StorageError
from jaxresnet.files import read_json
from jaxresnet.training.metrics import TrainTotals
from jaxresnet.training.state import TrainState

# Runs of several devices save from several threads. Orbax numbers its operations for the whole process and looks the
# number up again while it works: of two at once, one waits for the other's signals and fails after minutes.
_ONE_AT_A_TIME = threading.Lock()

_RECORD = "_CHECKPOINT_METADATA"  # Orbax's file that holds the record, under "custom_metadata"
_TEMPORARY = "*.orbax-checkpoint-tmp*"  # Orbax's folders that are being written


class Saved(NamedTuple):
    """What one checkpoint holds. record: JSON types, as given to `save`."""

    state: TrainState
    totals: TrainTotals
    record: dict[str, Any]


class DamagedError(ResultsError):
    """A checkpoint that cannot be read, or is not what was written."""


class _KeepTwoAndBest:
    """Orbax preservation policy: the newest two checkpoints, so that one may be damaged, and what was best at each."""

    best_steps: tuple[int | None, ...] = ()

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        kept = {*self.best_steps, *(c.step for c in checkpoints[-2:])}
        return [c.step in kept for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run in `directory`, named by optimiser step. Use as a context manager.

    read_only: leaves the folder as it is. Else what a killed process left half-written there is removed, which would
    take it from under a process that is writing now, and damaged checkpoints are renamed to damaged-<step>.
    damaged: [what was wrong with each checkpoint that was set aside, ...], newest first. damaged_before: [folders of
    those set aside by earlier processes, ...]. half_written: [folders that a killed process was writing, ...].

    Raises StorageError where the folder or the disk cannot be written to.
    """

    def __init__(self, directory: str | Path, read_only: bool = False):
        self.directory = Path(directory).resolve()
        self.damaged: list[str] = []
        self.damaged_before = sorted(self.directory.glob("damaged-*"))
        self.half_written: list[Path] = []
        self._keep, self._read_only = _KeepTwoAndBest(), read_only
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
                self.half_written = sorted(self.directory.glob(_TEMPORARY))
                for half in self.half_written:
                    shutil.rmtree(half)
                self._set_aside_where(_record_is_damaged)
            try:
                self._open()
            except (ValueError, RecursionError):  # of one record that Orbax cannot read it does not say which
                if read_only:
                    raise
                self._set_aside_where(self._orbax_refuses)
                self._open()
        except OSError as e:
            if read_only:
                raise ResultsError(f"{self.directory}: cannot be read ({e}); choose another folder") from e
            raise StorageError(f"{self.directory}: cannot keep checkpoints there ({e}); choose another folder") from e
        except (ValueError, RecursionError) as e:
            raise DamagedError(f"{self.directory}: holds a damaged checkpoint ({_first_line(e)})") from e

    def _open(self) -> None:
        self._orbax = self._orbax_at(self.directory)

    def _orbax_at(self, directory: Path) -> Any:
        from orbax.checkpoint import v1 as ocp

        with _one_process(), _quietly():
            return ocp.training.Checkpointer(
                directory,
                # Every call of `save` saves: when to save is the train loop's decision.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=self._keep,
                cleanup_tmp_directories=False,  # a thread would, and complain where the process ends before it has
            )

    def _set_aside_where(self, is_damaged: Callable[[Path], bool]) -> None:
        for folder in sorted(self.directory.iterdir(), reverse=True):
            if folder.name.isdigit() and (folder / _RECORD).is_file() and is_damaged(folder):
                self._rename(folder, "its record is damaged")

    def _orbax_refuses(self, folder: Path) -> bool:
        """Whether Orbax cannot open a folder that holds nothing but this checkpoint's record."""
        with tempfile.TemporaryDirectory() as alone:
            (Path(alone) / folder.name).mkdir()
            shutil.copy(folder / _RECORD, Path(alone) / folder.name)
            try:
                self._orbax_at(Path(alone)).close()
            except (ValueError, RecursionError):
                return True
        return False

    def _rename(self, folder: Path, reason: str) -> None:
        if not folder.exists():
            self.damaged.append(f"{folder}: is not there")
            return
        aside = folder.with_name(f"damaged-{folder.name}")
        number = 1
        while aside.exists():  # an older one of the same step
            number += 1
            aside = folder.with_name(f"damaged-{folder.name}-{number}")
        folder.rename(aside)
        self.damaged.append(f"{folder}: {reason}; kept as {aside.name}")

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        with suppress(OSError, ValueError) if exc[0] else nullcontext():
            self._orbax.close()

    def save(self, state: TrainState, totals: TrainTotals, record: dict[str, Any], best_step: int | None) -> None:
        """Write a checkpoint named by state.step and delete all others but the one before it, the one at `best_step`,
        and the one that was best before: those that are needed where this one is damaged.

        Returns when the checkpoint is complete on disk. Does nothing if that step is there already. Raises
        StorageError where it cannot be written, and nothing more can then be; those before it stay.
        """
        step, before = int(state.step), self.last_step()
        if step in self.steps():
            return
        self._keep.best_steps = (best_step, self.record(before).get("best_step") if before is not None else None)
        arrays = {"state": state, "totals": totals}
        record = {**record, "arrays": _shapes(arrays)}
        try:
            with _ONE_AT_A_TIME, _quietly():
                self._orbax.save(step, arrays, custom_metadata={**record, "crc32": _crc32(record)})
        except (OSError, ValueError) as e:  # TensorStore raises ValueError for a full disk
            raise StorageError(
                f"{self.directory}: a checkpoint cannot be written ({_first_line(e)}). Those before it are intact: "
                "make room, and the same command continues"
            ) from e

    def steps(self) -> list[int]:
        """The steps of all checkpoints, newest first."""
        return sorted((int(c.step) for c in self._orbax.checkpoints), reverse=True)

    def last_step(self) -> int | None:
        """The newest checkpoint's step, None where there is none."""
        return next(iter(self.steps()), None)

    def record(self, step: int) -> dict[str, Any]:
        """The JSON part of the checkpoint at `step`, without its arrays."""
        return _without_ours(self._whole_record(step))

    def _whole_record(self, step: int) -> dict[str, Any]:
        """Read from Orbax's file: Orbax would look at all arrays, too, and log at length what is wrong with them."""
        if not (self.directory / str(step) / _RECORD).is_file():
            raise DamagedError(f"{self.directory}/{step}: its record is missing, or it is not a checkpoint")
        self._check_json(step)
        try:
            record = json.loads((self.directory / str(step) / _RECORD).read_bytes())["custom_metadata"]
        except (ValueError, OSError, KeyError, TypeError, RecursionError) as e:
            raise self._unreadable(step, e) from e
        if not isinstance(record, dict) or "config" not in record:
            raise ResultsError(f"{self.directory}/{step}: not a checkpoint of jaxresnet; move it away or change --out")
        if record.get("crc32") not in (None, _crc32(record)):
            raise DamagedError(f"{self.directory}/{step}: its record is damaged")
        return record

    def _check_json(self, step: int) -> None:
        """Raise DamagedError for JSON beyond what Orbax writes: nested without end it would crash TensorStore, and with
        that the process."""
        for name in ("_METADATA", "_sharding"):
            path = self.directory / str(step) / "state" / name
            if path.is_file():
                try:
                    read_json(path, "restore the checkpoint from a copy")
                except ResultsError as e:
                    raise self._unreadable(step, e) from e

    def restore(self, step: int, state: TrainState, totals: TrainTotals) -> Saved:
        """The checkpoint at `step`, laid out on devices as `state` and `totals`, which only give the shapes; in
        NumPy arrays where they are."""
        record = self._whole_record(step)
        abstract = jax.tree.map(
            lambda a: a if isinstance(a, np.ndarray) else jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding),
            {"state": state, "totals": totals},
        )
        self._check_arrays(step, record.get("arrays"), _shapes(abstract))  # older versions kept none
        try:
            with _ONE_AT_A_TIME, _quietly():
                arrays = self._orbax.load(step, abstract)
        except (ValueError, OSError, KeyError, RecursionError) as e:
            raise self._unreadable(step, e) from e
        return Saved(arrays["state"], arrays["totals"], _without_ours(record))

    def _check_arrays(self, step: int, found: dict[str, str] | None, wanted: dict[str, str]) -> None:
        """Raise ResultsError where a checkpoint, though whole, holds other arrays than a run has."""
        found = found or wanted
        names = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        if names:
            name = names[0]
            raise ResultsError(
                f"{self.directory}/{step}: holds other arrays than this network and these versions of jaxresnet, JAX "
                f"and Optax make: {name} is {found.get(name, 'not there')}, not {wanted.get(name, 'wanted')}, and so "
                f"on, {len(names)} in all. Use what it was made with, or another output folder"
            )

    def set_aside(self, step: int, reason: str) -> None:
        """Rename the checkpoint at `step`, which is damaged, if it is there at all."""
        self._orbax.close()
        self._rename(self.directory / str(step), reason)
        self._open()

    def _unreadable(self, step: int, error: BaseException) -> DamagedError:
        while error.__cause__ is not None:  # what TensorStore found, in place of what Orbax made of it
            error = error.__cause__
        return DamagedError(f"{self.directory}/{step}: the checkpoint cannot be read ({_first_line(error)})")


def _record_is_damaged(folder: Path) -> bool:
    try:
        record = json.loads((folder / _RECORD).read_bytes())["custom_metadata"]
        return bool(record) and record.get("crc32") not in (None, _crc32(record))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return True


@contextmanager
def _one_process() -> Iterator[None]:
    """Of several processes that share a run this one alone keeps checkpoints: a `Checkpointer` that is made inside
    waits for no other."""
    if jax.process_count() == 1:
        yield
        return
    from orbax.checkpoint import checkpoint_manager
    from orbax.checkpoint import v1 as ocp

    context = ocp.Context()
    context.multiprocessing.primary_host = jax.process_index()
    context.multiprocessing.active_processes = {jax.process_index()}
    # Orbax refuses to make the folder with these options, and the new interface cannot say that it is there.
    make, checkpoint_manager._create_root_directory = checkpoint_manager._create_root_directory, lambda *_: None
    try:
        with context:
            yield
    finally:
        checkpoint_manager._create_root_directory = make


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Orbax says of an error that it also raises: each of its threads logs it with a traceback, what
    finishes later finds its event loop closed, and what never began was never awaited. After an error it stays so, as
    some of that comes as late as the end of the process."""
    hook = sys.unraisablehook

    def other(unraisable: Any) -> None:
        if str(unraisable.exc_value) != "Event loop is closed":
            hook(unraisable)

    logs = {
        "absl": lambda entry: False,
        "asyncio": lambda entry: "exception was never retrieved" not in entry.getMessage(),
    }
    for name, wanted in logs.items():
        logging.getLogger(name).addFilter(wanted)
    sys.unraisablehook = other
    try:
        yield
    except Exception:
        warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
        raise
    for name, wanted in logs.items():
        logging.getLogger(name).removeFilter(wanted)
    sys.unraisablehook = hook


def _shapes(arrays: Any) -> dict[str, str]:
    """{path: "float32 (3, 3)"} of a tree of anything with shape and dtype."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="."): f"{a.dtype} {tuple(a.shape)}"
        for path, a in jax.tree_util.tree_leaves_with_path(arrays)
    }


def _without_ours(record: dict[str, Any]) -> dict[str, Any]:
    """`record` as it was given to `save`, which adds to it what a checkpoint is verified by."""
    return {name: value for name, value in record.items() if name not in ("arrays", "crc32")}


def _crc32(record: dict[str, Any]) -> int:
    """Of the JSON of `record`, the checksum itself left out."""
    return zlib.crc32(json.dumps({k: v for k, v in record.items() if k != "crc32"}, sort_keys=True).encode())


def _first_line(error: BaseException) -> str:
    text = str(error).strip('"') or type(error).__name__
    line = text.splitlines()[0].partition(" [")[0]  # TensorStore adds what it was asked in brackets
    return line if len(line) <= 200 else f"{line[:100]} ... {line[-100:]}"  # the system's reason is at the end
