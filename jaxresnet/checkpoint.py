"""Checkpoints with Orbax: the last and the best of a run, each whole or not there at all.

A checkpoint holds arrays (the train state and the epoch's running totals) and a record of plain JSON (config,
history, position). The only file that knows Orbax, which is imported when a checkpoint is first touched.
"""

import threading
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxresnet.errors import ResultsError
from jaxresnet.metrics import TrainTotals
from jaxresnet.state import TrainState

# Runs of several devices save from several threads. Orbax numbers its operations for the whole process and looks the
# number up again while it works: of two at once, one waits for the other's signals and fails after minutes.
_ONE_AT_A_TIME = threading.Lock()


class Saved(NamedTuple):
    """What one checkpoint holds. record: JSON types, as given to `save`."""

    state: TrainState
    totals: TrainTotals
    record: dict[str, Any]


class _KeepLastAndBest:
    """Orbax preservation policy: the newest checkpoint, and the one at `best_step`."""

    best_step: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        return [c.step == self.best_step or c is checkpoints[-1] for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run in `directory`, named by optimiser step. Use as a context manager.

    read_only: leaves the folder as it is. Else what a killed process left half-written there is removed, which would
    take it from under a process that is writing now.
    """

    def __init__(self, directory: str | Path, read_only: bool = False):
        from orbax.checkpoint import v1 as ocp

        self.directory = Path(directory).resolve()
        self._keep = _KeepLastAndBest()
        try:
            if not read_only:
                self.directory.mkdir(parents=True, exist_ok=True)
            self._orbax = ocp.training.Checkpointer(
                self.directory,
                # Every call of `save` saves: when to save is the train loop's decision.
                save_decision_policy=ocp.training.save_decision_policies.FixedIntervalPolicy(1),
                preservation_policy=self._keep,
                cleanup_tmp_directories=not read_only,
            )
        except OSError as e:
            remedy = "cannot be read" if read_only else "cannot keep checkpoints there"
            raise ResultsError(f"{self.directory}: {remedy} ({e}); choose another folder") from e

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *exc: object) -> None:
        self._orbax.close()

    def save(self, state: TrainState, totals: TrainTotals, record: dict[str, Any], best_step: int | None) -> None:
        """Write a checkpoint named by state.step and delete all others but the one at `best_step`.

        Returns when the checkpoint is complete on disk. Does nothing if that step is there already.
        """
        self._keep.best_step = best_step
        step = int(state.step)
        if any(c.step == step for c in self._orbax.checkpoints):
            return
        arrays = {"state": state, "totals": totals}
        with _ONE_AT_A_TIME:
            self._orbax.save(step, arrays, custom_metadata=record)

    def last_step(self) -> int | None:
        """The newest checkpoint's step, None where there is none."""
        latest = self._orbax.latest
        return None if latest is None else int(latest.step)

    def record(self, step: int) -> dict[str, Any]:
        """The JSON part of the checkpoint at `step`, without its arrays."""
        try:
            record = self._orbax.metadata(step).custom_metadata
        except (ValueError, OSError, KeyError):
            record = None
        if not isinstance(record, dict) or "config" not in record:
            raise ResultsError(f"{self.directory}/{step}: not a checkpoint of jaxresnet; move it away or change --out")
        return record

    def restore(self, step: int, state: TrainState, totals: TrainTotals) -> Saved:
        """The checkpoint at `step`, laid out on devices as `state` and `totals`, which only give the shapes."""
        abstract = jax.tree.map(
            lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), {"state": state, "totals": totals}
        )
        try:
            with _ONE_AT_A_TIME:
                arrays = self._orbax.load(step, abstract)
        except (ValueError, OSError, KeyError) as e:
            raise ResultsError(
                f"{self.directory}/{step}: the checkpoint cannot be read ({str(e).splitlines()[0]}). "
                "Delete that folder to go on from the one before, or the run's whole folder to start anew"
            ) from e
        return Saved(arrays["state"], arrays["totals"], self.record(step))
