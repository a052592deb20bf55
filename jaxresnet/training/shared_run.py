"""A run that several processes share: that they do the same, when they stop, and their checkpoints.

Process 0 has the folder, the others what it tells them. So they need no filesystem in common, and a checkpoint does not
know how many processes wrote it. With one process there is nothing to check, and its checkpoints are its own.
"""

import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np

from jaxresnet.config import TrainConfig, to_dict
from jaxresnet.data.dataset import Dataset, fingerprint
from jaxresnet.errors import ConfigError
from jaxresnet.training.checkpoint import Checkpoints, Saved
from jaxresnet.training.engine import Devices, first_copy, replicate
from jaxresnet.training.metrics import TrainTotals
from jaxresnet.training.processes import arrays_from_main, check_same, from_main, gather, on_main, several
from jaxresnet.training.state import TrainState

T = TypeVar("T")


def check_processes(config: TrainConfig, data: Dataset, devices: Devices) -> None:
    """Raise ConfigError unless all processes share this run, with the same settings, data and versions."""
    if not several():
        return
    here = {device.process_index for device in devices}
    if len(here) < jax.process_count():
        raise ConfigError(f"devices: all {jax.process_count()} processes must share a run, these are of {len(here)}")
    check_same("a run", {"config": to_dict(config), "data": fingerprint(data), "jax": jax.__version__})


def agreed(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """Whether any process is to stop: the same in all."""
    return lambda: any(gather(bool(should_stop())))


def check_copies(state: TrainState) -> None:
    """Raise ConfigError where the processes' copies of the state have parted, as different processors may let them:
    nothing else would tell."""
    if several():
        leaves = jax.tree.leaves(_on_host(state))
        crc = reduce(lambda crc, leaf: zlib.crc32(leaf.tobytes(), crc), leaves, 0)
        check_same(f"the train state after step {int(state.step)}", {"crc32": crc})


@contextmanager
def open_checkpoints(directory: str | Path, devices: Devices) -> Iterator[Any]:
    """The `Checkpoints` in `directory`; of several processes a `SharedCheckpoints`, which has the same methods.

    devices: those of the run.
    """
    if not several():
        with Checkpoints(directory) as checkpoints:
            yield checkpoints
        return
    shared = SharedCheckpoints(directory, devices)
    with on_main(shared.own()):
        yield shared


class SharedCheckpoints:
    """Methods of `Checkpoints`, to be called by all processes alike. Errors of process 0 are raised in all."""

    def __init__(self, directory: str | Path, devices: Devices):
        self.directory = Path(directory).resolve()
        self._devices = devices
        self._own: Checkpoints | None = None

    @contextmanager
    def own(self) -> Iterator[None]:
        """Opens the folder: for process 0."""
        with Checkpoints(self.directory) as self._own:
            yield

    @property
    def damaged(self) -> list[str]:
        return self._of_main(lambda own: own.damaged)

    @property
    def damaged_before(self) -> list[Path]:
        return [Path(path) for path in self._of_main(lambda own: [str(path) for path in own.damaged_before])]

    @property
    def half_written(self) -> list[Path]:
        return [Path(path) for path in self._of_main(lambda own: [str(path) for path in own.half_written])]

    def steps(self) -> list[int]:
        return self._of_main(lambda own: own.steps())

    def last_step(self) -> int | None:
        return self._of_main(lambda own: own.last_step())

    def record(self, step: int) -> dict[str, Any]:
        return self._of_main(lambda own: own.record(step))

    def set_aside(self, step: int, reason: str) -> None:
        self._of_main(lambda own: own.set_aside(step, reason))

    def save(self, state: TrainState, totals: TrainTotals, record: dict[str, Any], best_step: int | None) -> None:
        state, totals = _on_host(state), _on_host(totals)
        self._of_main(lambda own: own.save(state, totals, record, best_step))

    def restore(self, step: int, state: TrainState, totals: TrainTotals) -> Saved:
        like = {"state": _on_host(state), "totals": _on_host(totals)}

        def read() -> dict[str, Any]:
            assert self._own is not None
            saved = self._own.restore(step, like["state"], like["totals"])
            return {"state": saved.state, "totals": saved.totals}

        arrays = replicate(arrays_from_main(read, like), self._devices)
        return Saved(arrays["state"], arrays["totals"], self.record(step))

    def _of_main(self, fn: Callable[[Checkpoints], T]) -> T:
        def call() -> T:
            assert self._own is not None
            return fn(self._own)

        return from_main(call)


def _on_host(tree: Any) -> Any:
    """NumPy arrays: of arrays that several processes hold, Orbax expects that all of them save."""
    return jax.tree.map(np.asarray, first_copy(tree))
