"""One run, from a config and a data set to a history and a chosen state."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxresnet.config import TrainConfig, to_dict
from jaxresnet.data.dataset import Dataset, Split, fingerprint
from jaxresnet.data.splits import run_splits
from jaxresnet.errors import NonFiniteError
from jaxresnet.files import lock
from jaxresnet.hardware import backend, resolved
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training.checkpoint import Saved
from jaxresnet.training.engine import Engine, make_engine, replicate
from jaxresnet.training.metrics import TrainTotals, averages
from jaxresnet.training.processes import from_main, on_main
from jaxresnet.training.resume import resume
from jaxresnet.training.shared_run import agreed, check_copies, check_processes, open_checkpoints
from jaxresnet.training.state import TrainState, eval_variables
from jaxresnet.training.steps import steps_per_epoch

TRY = (
    "Try a lower learning rate, a warm-up, or precision float32, in another output folder. Checkpoints before it are "
    "intact"
)
# On accelerators an epoch may take less than its checkpoint: then the next is written after so many times the time that
# the last took, so that they cost a long run a twentieth of its time. (The first and the last are always written.)
CHECKPOINT_EVERY = 20
Row = dict[str, Any]
Placed = tuple[jax.Array, ...]  # images and labels of a split, on the devices


class Result(NamedTuple):
    """What `fit` returns.

    history: a row an epoch. Loss in nats, accuracy in percent, learning_rate of the epoch's first step, norms
    averaged over steps, skipped_steps (see TrainConfig.skip_nonfinite), seconds of training alone (no compilation, no
    evaluation), images_per_second.
    summary: the chosen epoch and its figures. state: the train state of that epoch.
    """

    history: list[Row]
    summary: dict[str, Any]
    state: TrainState


class Interrupted(Exception):
    """`should_stop` asked to stop. Everything is in the checkpoint: the same call continues."""


def fit(
    config: TrainConfig,
    data: Dataset,
    workdir: str | Path | None = None,
    *,
    restart: bool = False,
    devices: Sequence[jax.Device] | None = None,
    on_epoch: Callable[[list[Row]], None] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
    should_stop: Callable[[], bool] | None = None,
) -> Result:
    """Train one run, or continue it where its checkpoint in `workdir` stands.

    config: the run; where its precision is "auto", the run's record says what that is here.
    data: uint8 images (N, 32, 32, 3), int32 labels (N,).
    workdir: keeps the last two checkpoints and the best; None keeps nothing on disk. On CPU there is one after every
    epoch, on accelerators after the first, the last, and so often that they cost a twentieth of the time. Where the
    last is damaged, the one before it is used, with a warning.
    restart: begin anew where all checkpoints are damaged, instead of raising.
    devices: share every batch; default all, of all processes. Several processes call this alike, see `processes`: one
    of them alone keeps `workdir`, and a should_stop() of any stops all after the same dispatch.
    on_epoch(rows so far): called after each epoch, once its checkpoint, if it has one, is safe on disk.
    on_progress(epoch, images done in it): called after every dispatch.
    should_stop(): asked after every dispatch; True saves a checkpoint and raises Interrupted.

    On CPU a run that was interrupted and continued is bit-identical to one that was not (timing fields aside).
    Raises DataError or ConfigError where data or config do not fit, NonFiniteError when the loss, a gradient or batch
    statistics stop being finite (the checkpoint before it stays), ResultsError when `workdir` belongs to another run,
    is in use or holds damaged checkpoints only, StorageError when it cannot be written to.
    """
    train, val = run_splits(config, data)
    engine = make_engine(config, train.num_examples, devices)
    config = resolved(config, engine.devices[0])
    check_processes(config, data, engine.devices)
    if should_stop is not None:
        should_stop = agreed(should_stop)
    placed = {name: _place(split, engine) for name, split in (("train", train), ("val", val), ("test", data.test))}
    record = {
        "config": to_dict(config),
        "data": fingerprint(data),
        "history": [],
        "seconds": 0.0,
        "best_step": None,
        "backends": [{"step": 0, **backend(engine.devices)}],  # one more whenever the run goes on with another
    }
    with ExitStack() as held:
        if workdir is not None:
            held.enter_context(on_main(lock(workdir)))
        checkpoints = None if workdir is None else held.enter_context(open_checkpoints(workdir, engine.devices))
        run = _Run(config, engine, placed, checkpoints, record)
        if checkpoints is not None:
            run.state, run.totals, run.record = resume(checkpoints, Saved(run.state, run.totals, record), restart)
        while run.epoch < config.num_epochs:
            run.train_one_epoch(on_progress, should_stop)
            if on_epoch:
                on_epoch(run.record["history"])
            if should_stop and should_stop() and run.epoch < config.num_epochs:
                run.save()
                raise Interrupted(_where(workdir))
        return run.result()


@jax.jit
def _copied(tree: Any) -> Any:
    """A copy that outlives the donation of what it is of, in one dispatch."""
    return jax.tree.map(jnp.copy, tree)


def check_run(config: TrainConfig, data: Dataset, devices: Sequence[jax.Device] | None = None) -> None:
    """Raise what `fit` raises for a config and a data set that cannot work together, before anything is written."""
    train, _ = run_splits(config, data)
    make_engine(config, train.num_examples, devices)


def _place(split: Split, engine: Engine) -> Placed:
    return tuple(replicate(np.ascontiguousarray(a), engine.devices) for a in split)


def _where(workdir: str | Path | None) -> str:
    return "nothing was kept: the run has no work folder" if workdir is None else f"checkpoint in {workdir}"


class _Run:
    """The moving parts of one `fit`: where it stands, and how it takes one epoch."""

    def __init__(self, config: TrainConfig, engine: Engine, data: dict[str, Placed], checkpoints: Any, record: Any):
        self.config, self.engine, self.data, self.checkpoints, self.record = config, engine, data, checkpoints, record
        self.num_train = data["train"][0].shape[0]
        self.steps = steps_per_epoch(self.num_train, config.batch_size)
        self.learning_rate = math.nan  # of the first step of the epoch in progress
        self.compiled_before = engine.compile_seconds  # by earlier runs that share the engine
        self.state = engine.init(config.seed)
        self.totals = engine.zero_totals()
        self.best: TrainState | None = None  # the state of the chosen epoch, where no checkpoint has it
        self.saved_at = self.save_seconds = 0.0  # when the last checkpoint was finished, and what it took

    @property
    def epoch(self) -> int:  # the epoch in progress
        return len(self.record["history"])

    def train_one_epoch(self, on_progress: Any, should_stop: Any) -> None:
        config, epoch = self.config, self.epoch
        first_step = int(self.state.step) - epoch * self.steps
        stopped = False

        def after_step(images_done: int, state: TrainState, totals: TrainTotals) -> bool:
            nonlocal stopped
            if on_progress:
                on_progress(epoch, images_done)
            stopped = bool(should_stop and should_stop()) and images_done < self.num_train
            return stopped or (int(totals.bad_step) >= 0 and self._skipped(state, totals) > self._may_skip())

        images, labels = self.data["train"]
        hypers = epoch_hypers(config.optim, self.steps, config.num_epochs, epoch)
        self.learning_rate = float(np.asarray(hypers.learning_rate)[0])
        start, compiling = time.perf_counter(), self.engine.compile_seconds
        self.state, self.totals = self.engine.train_epoch(
            self.state, self.totals, hypers, images, labels, epoch, first_step, after_step
        )
        bad_step = int(self.totals.bad_step)  # waits for the device, for the clock: else once more, after evaluation
        seconds = time.perf_counter() - start - (self.engine.compile_seconds - compiling)
        self.record["seconds"] += seconds
        skipped = self._skipped(self.state, self.totals)
        if bad_step >= 0 and (skipped > self._may_skip() or skipped == self.steps):
            first = f"step {bad_step}"
            if config.skip_nonfinite:
                first += f", the first of {skipped} there, more than skip_nonfinite={config.skip_nonfinite} allows"
            raise NonFiniteError(
                f"seed {config.seed}: the loss, a gradient, an update or batch statistics stopped being finite in "
                f"epoch {epoch}, {first} (both counted from 0). {TRY}"
            )
        if stopped:
            self.save()
            raise Interrupted(_where(self.checkpoints and self.checkpoints.directory))
        self._finish_epoch()

    def _skipped(self, state: TrainState, totals: TrainTotals) -> int:
        """Steps of the epoch in progress that changed nothing, as they were not finite. Where none may be skipped, a
        step that was not finite counts as taken, and as one too many."""
        if not self.config.skip_nonfinite:
            return int(int(totals.bad_step) >= 0)
        return int(state.step) - self.epoch * self.steps - int(totals.steps)

    def _may_skip(self) -> int:
        """How many steps of the epoch in progress may be."""
        return self.config.skip_nonfinite - sum(row.get("skipped_steps", 0) for row in self.record["history"])

    def _finish_epoch(self) -> None:
        epoch, seconds = self.epoch, self.record["seconds"]
        loss, accuracy = averages(self.totals.sums)
        norms = [float(n) / int(self.totals.steps) for n in np.asarray(self.totals.norms)]
        row: Row = {
            "epoch": epoch,
            "step": int(self.state.step),
            "learning_rate": self.learning_rate,
            "train_loss": loss,
            "train_accuracy": accuracy,
        }
        scored = {"val": self.config.val_size > 0, "test": self.config.test_every_epoch}
        for name, wanted in scored.items():
            scores = self._finite_score(self.state, name, epoch) if wanted else (None, None)
            row[f"{name}_loss"], row[f"{name}_accuracy"] = scores
        row |= dict(zip(("grad_norm", "param_norm", "update_norm"), norms, strict=True))
        row["skipped_steps"] = self._skipped(self.state, self.totals)
        row |= {"seconds": round(seconds, 3), "images_per_second": round(self.num_train / seconds, 1)}
        self.record["history"].append(row)
        self.record["seconds"] = 0.0
        self.totals = self.engine.zero_totals()
        check_copies(self.state)
        if self.checkpoints is not None and self._checkpoint_is_due():
            self.save()
        elif self.config.selection != "last" and self._best_epoch() == epoch:
            self.best = _copied(self.state)

    def _finite_score(self, state: TrainState, name: str, epoch: int) -> tuple[float, float]:
        """(loss in nats, accuracy in percent) of a state on a split. Running statistics lag behind the weights, so
        this may overflow where training does not."""
        loss, accuracy = self._score(state, name)
        if not math.isfinite(loss):
            split = {"val": "validation", "test": "test"}[name]
            raise NonFiniteError(
                f"seed {self.config.seed}: the {split} loss is {loss} after epoch {epoch} (counted from 0). {TRY}"
            )
        return loss, accuracy

    def _score(self, state: TrainState, name: str) -> tuple[float, float]:
        images, labels = self.data[name]
        return averages(self.engine.evaluate(eval_variables(state, self.config.eval_weights), images, labels))

    def _checkpoint_is_due(self) -> bool:
        if not self.engine.whole_epochs or self.epoch == self.config.num_epochs:
            return True
        # One process decides, as clocks differ.
        return from_main(lambda: time.monotonic() - self.saved_at >= CHECKPOINT_EVERY * self.save_seconds)

    def save(self) -> None:
        """Write a checkpoint, and before it that of the chosen epoch if none has it yet."""
        if self.checkpoints is None:
            return
        start = time.monotonic()
        self.record["best_step"] = best_step = self._best_step()
        if self.best is not None and best_step != int(self.state.step):
            until_then = {**self.record, "history": self.record["history"][: self._best_epoch() + 1], "seconds": 0.0}
            self.checkpoints.save(self.best, self.engine.zero_totals(), until_then, best_step)
        self.checkpoints.save(self.state, self.totals, self.record, best_step)
        self.best = None
        self.saved_at = time.monotonic()
        self.save_seconds = self.saved_at - start

    def _best_epoch(self) -> int:
        """The chosen epoch so far: the first with the highest accuracy on the split that selects."""
        history = self.record["history"]
        if self.config.selection == "last":
            return len(history) - 1
        return max(range(len(history)), key=lambda i: history[i][f"{self.config.selection}_accuracy"])

    def _best_step(self) -> int | None:
        history = self.record["history"]
        return history[self._best_epoch()]["step"] if history else None

    def result(self) -> Result:
        config, history = self.config, self.record["history"]
        best = history[self._best_epoch()]
        state = self.state
        if best is not history[-1]:
            if self.best is not None:
                state = self.best
            elif self.checkpoints is not None:
                state = self.checkpoints.restore(best["step"], self.state, self.totals).state
        test_loss, test_accuracy = best["test_loss"], best["test_accuracy"]
        if test_accuracy is None:  # the one time that this run sees the test set
            test_loss, test_accuracy = self._finite_score(state, "test", best["epoch"])
        summary = {
            "seed": config.seed,
            "selection": config.selection,
            "weights": config.eval_weights if config.optim.lookahead else "fast",
            "best_epoch": best["epoch"],
            "last_epoch": history[-1]["epoch"],
            "val_accuracy": best["val_accuracy"],
            "test_accuracy": test_accuracy,
            "test_loss": test_loss,
            "num_train": self.num_train,
            "num_val": config.val_size,
            "num_test": self.data["test"][0].shape[0],
            "skipped_steps": sum(row.get("skipped_steps", 0) for row in history),
            "earlier_backends": self.record["backends"][:-1],
            "seconds": round(sum(row["seconds"] for row in history), 3),
            "compile_seconds": round(self.engine.compile_seconds - self.compiled_before, 3),
        }
        return Result(history, summary, state)
