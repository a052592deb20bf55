"""One run, from a config and a data set to a history and the weights of the chosen epoch."""

import math
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxresnet.config import TrainConfig, to_dict
from jaxresnet.data.dataset import Dataset, as_dataset, fingerprint, run_splits
from jaxresnet.distributed import agreed, check_same, from_main, on_main
from jaxresnet.errors import Interrupted, NonFiniteError
from jaxresnet.files import local_path, lock
from jaxresnet.hardware import backend, resolved, some_devices
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training import checkpoint, engine
from jaxresnet.training.checkpoint import Record, Saved
from jaxresnet.training.compilation import own_numerics
from jaxresnet.training.devices import replicate
from jaxresnet.training.metrics import Row, averages, best_epoch
from jaxresnet.training.resume import resume
from jaxresnet.training.state import TrainState, Weights

# On accelerators an epoch may take less time than its checkpoint. So the next waits 20 times as long as the last took:
# they cost a twentieth of a long run. (After the first and the last epoch there always is one.)
CHECKPOINT_EVERY = 20


class Result(NamedTuple):
    """What `fit` returns.

    history: a row an epoch. Loss in nats, accuracy in percent, learning_rate of the epoch's first step, norms
    averaged over steps, skipped_steps (see TrainConfig.skip_nonfinite), seconds of training alone (no compilation, no
    evaluation), images_per_second. summary: the chosen epoch and its figures. weights: of the chosen epoch. state:
    after the last epoch.
    """

    history: list[Row]
    summary: dict[str, Any]
    weights: Weights
    state: TrainState


@own_numerics()
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
    data: uint8 images (N, 32, 32, 3), integer labels (N,).
    workdir: keeps the last two checkpoints; None keeps nothing on disk. On CPU there is one after every epoch, on
    accelerators after the first, the last, and so often that they cost a twentieth of the time. Where the last is
    damaged, the one before it is used, with a warning.
    restart: begin anew where all checkpoints are damaged, instead of raising.
    devices: share every batch; default all, of all processes. Several processes call this alike, see `distributed`.
    on_epoch(rows so far): called after each epoch, once its checkpoint, if it has one, is safe on disk.
    on_progress(epoch, images done in it): called after every dispatch.
    should_stop(): asked after every dispatch but the run's last; True saves a checkpoint and raises Interrupted.

    A run does not depend on JAX's settings: those that would change its numbers have JAX's defaults while it trains.
    On CPU a run that was interrupted and continued is bit-identical to one that was not (timing fields aside).
    Raises DataError or ConfigError where data or config do not fit, NonFiniteError when the loss, a gradient or batch
    statistics stop being finite (the checkpoint before it stays), ResultsError when `workdir` belongs to another run,
    is in use or holds damaged checkpoints only, StorageError when it cannot be written to.
    """
    workdir = None if workdir is None else local_path(workdir)
    devices = some_devices(devices)
    config, data = resolved(config, devices[0]), as_dataset(data)
    train, val = run_splits(config, data)
    programs = engine.make_engine(config, train.num_examples, devices)
    engine.check_moves(config, train.num_examples)
    record = Record(to_dict(config), fingerprint(data), backends=[{"step": 0, **backend(devices)}])
    check_same("a run", {"config": record.config, "data": record.data, "jax": jax.__version__})
    stop = agreed(should_stop or (lambda: False))  # of several processes all stop, or none

    images, labels = replicate((train.images, train.labels), devices)
    splits = {"val": val, "test": data.test}
    batches = {name: engine.place_batches(split, config.eval_batch_size, devices) for name, split in splits.items()}

    def score(weights: Weights, split: str, epoch: int) -> tuple[float, float]:
        """(loss in nats, accuracy in percent) of an epoch's weights on a split."""
        loss, accuracy = averages(engine.evaluate(programs, weights.variables(config.eval_weights), batches[split]))
        if not math.isfinite(loss):  # running statistics lag behind the weights, and training may be well
            raise _not_finite(config, f"the {split} loss is {loss} after epoch {epoch + 1}")
        return loss, accuracy

    with nullcontext() if workdir is None else on_main(lock(workdir)):
        state = engine.init_state(programs, config.seed)
        run = Saved(state, engine.init_totals(programs), engine.copy_weights(state), record)
        if workdir is not None:
            run = resume(workdir, _converted(run, programs, engine.unpacked), restart)
            run = _converted(run, programs, engine.packed)
        saved_at = save_seconds = 0.0  # when the last checkpoint was finished, and what it took: the first is due
        record = run.record  # the one thing that is changed in place: its history and seconds grow with every epoch
        start = time.perf_counter()
        if len(record.history) < config.num_epochs:
            engine.compile_programs(programs, {len(labels) for placed in batches.values() for _, labels in placed})
        compile_seconds = time.perf_counter() - start

        while len(record.history) < config.num_epochs:
            epoch = len(record.history)
            run, stopped = _train_epoch(config, programs, run, images, labels, on_progress, stop)
            due = stopped
            if not stopped:
                run = _finish_epoch(config, programs, run, train.num_examples, score)
                last = epoch + 1 == config.num_epochs
                stopped = not last and stop()
                due = stopped or last or programs.platform == "cpu" or _is_due(saved_at, save_seconds)
            if workdir is not None and due:
                start = time.monotonic()
                checkpoint.save(workdir, _converted(run, programs, engine.unpacked))
                saved_at = time.monotonic()
                save_seconds = saved_at - start
            if on_epoch and len(record.history) > epoch:
                on_epoch(record.history)
            if stopped:
                kept = f"checkpoint in {workdir}" if workdir else "nothing was kept: the run has no work folder"
                raise Interrupted(kept)

        summary, run = _summary(config, run, score, compile_seconds), _converted(run, programs, engine.unpacked)
        return Result(record.history, summary, *replicate((run.best, run.state), devices))


def _converted(run: Saved, programs: engine.Engine, convert: Callable[[engine.Engine, Any], Any]) -> Saved:
    """The run with its arrays packed into vectors on the devices, as it trains, or unpacked on the host, as it is
    saved. See `packing`."""
    state, totals, best = convert(programs, (run.state, run.totals, run.best))
    return Saved(state, totals, best, run.record)


def _train_epoch(
    config: TrainConfig,
    programs: engine.Engine,
    run: Saved,
    images: jax.Array,
    labels: jax.Array,
    on_progress: Callable[[int, int], None] | None,
    stop: Callable[[], bool],
) -> tuple[Saved, bool]:
    """The epoch in progress to its end, or until `stop`. Returns the run and whether it was stopped before the end.

    Raises NonFiniteError once more steps than config.skip_nonfinite were not finite."""
    state, totals, record = run.state, run.totals, run.record
    epoch, num_train, steps = len(record.history), programs.num_train, programs.steps_per_epoch
    before = sum(row["skipped_steps"] for row in record.history)
    hypers = replicate(epoch_hypers(config.optim, steps, config.num_epochs, epoch), programs.devices)
    plan = engine.plan_epoch(programs, state, epoch)
    stopped = False

    start = time.perf_counter()
    for dispatch in engine.dispatches(programs, int(state.step) - epoch * steps):
        state, totals = engine.train(programs, state, totals, hypers, images, labels, plan, dispatch)
        # Without this wait the host would queue a whole epoch, and progress and Ctrl-C would mean nothing.
        bad_step, taken = int(totals.bad_step), int(totals.steps)
        done = min(num_train, (dispatch[0] + dispatch[1]) * config.batch_size)
        if on_progress:
            on_progress(epoch, done)
        # Of the epoch's steps so far `taken` were finite. Where none may be skipped a bad one is counted as taken.
        skipped = int(state.step) - epoch * steps - taken if config.skip_nonfinite else int(bad_step >= 0)
        if before + skipped > config.skip_nonfinite or skipped == steps:
            first = f"step {bad_step - epoch * steps + 1} of {steps}"
            if skipped == steps > 1:
                first += ", and so in every step of it"
            elif config.skip_nonfinite:
                earlier = f", after {before} in those before" if before else ""
                first += f", the first of {skipped} in it{earlier}: more than "
                first += f"skip_nonfinite={config.skip_nonfinite} allows"
            raise _not_finite(
                config,
                "the loss, a gradient, an update or batch statistics stopped being finite in epoch "
                f"{epoch + 1}, {first}",
            )
        if done < num_train and stop():
            stopped = True
            break
    record.seconds += time.perf_counter() - start
    return run._replace(state=state, totals=totals), stopped


def _finish_epoch(
    config: TrainConfig,
    programs: engine.Engine,
    run: Saved,
    num_train: int,
    score: Callable[[Weights, str, int], tuple[float, float]],
) -> Saved:
    """Score the epoch that was trained, add its row to the history, and keep its weights if they are the best."""
    state, totals, record = run.state, run.totals, run.record
    epoch, steps, taken = len(record.history), programs.steps_per_epoch, int(totals.steps)
    rates = epoch_hypers(config.optim, steps, config.num_epochs, epoch).learning_rate
    loss, accuracy = averages(totals.sums)
    weights = engine.copy_weights(state)
    row: Row = {
        "epoch": epoch,
        "step": int(state.step),
        "learning_rate": float(np.asarray(rates)[0]),
        "train_loss": loss,
        "train_accuracy": accuracy,
    }
    for split, wanted in (("val", config.val_size > 0), ("test", config.test_every_epoch)):
        row[f"{split}_loss"], row[f"{split}_accuracy"] = score(weights, split, epoch) if wanted else (None, None)
    for name, total in zip(("grad_norm", "param_norm", "update_norm"), np.asarray(totals.norms), strict=True):
        row[name] = float(total) / taken
    row["skipped_steps"] = int(state.step) - epoch * steps - taken
    row["seconds"] = round(record.seconds, 3)
    row["images_per_second"] = round(num_train / record.seconds, 1)
    times = ("seconds", "images_per_second")
    check_same(f"what epoch {epoch} gave", {name: value for name, value in row.items() if name not in times})
    record.history.append(row)
    record.seconds = 0.0
    best = weights if best_epoch(config.selection, record.history) == epoch else run.best
    return Saved(state, engine.init_totals(programs), best, record)


def _summary(
    config: TrainConfig, run: Saved, score: Callable[[Weights, str, int], tuple[float, float]], compile_seconds: float
) -> dict[str, Any]:
    """The chosen epoch and its figures: what a run's scores.json holds."""
    history = run.record.history
    best = history[best_epoch(config.selection, history)]
    test_loss, test_accuracy = best["test_loss"], best["test_accuracy"]
    if test_accuracy is None:  # the one time that this run sees the test set
        test_loss, test_accuracy = score(run.best, "test", best["epoch"])
    data = run.record.data
    return {
        "seed": config.seed,
        "selection": config.selection,
        "weights": config.eval_weights if config.optim.lookahead else "fast",
        "best_epoch": best["epoch"],
        "last_epoch": history[-1]["epoch"],
        "val_accuracy": best["val_accuracy"],
        "test_accuracy": test_accuracy,
        "test_loss": test_loss,
        "num_train": (config.train_size or data["num_train"]) - config.val_size,
        "num_val": config.val_size,
        "num_test": data["num_test"],
        "skipped_steps": sum(row["skipped_steps"] for row in history),
        "earlier_backends": run.record.backends[:-1],
        "seconds": round(sum(row["seconds"] for row in history), 3),
        "compile_seconds": round(compile_seconds, 3),
    }


def _is_due(saved_at: float, save_seconds: float) -> bool:
    """Whether a checkpoint may be written again. Process 0 decides, as clocks differ."""
    return from_main(lambda: time.monotonic() - saved_at >= CHECKPOINT_EVERY * save_seconds)


def _not_finite(config: TrainConfig, what: str) -> NonFiniteError:
    return NonFiniteError(
        f"seed {config.seed}: {what}. Try a lower learning rate, a warm-up, or precision float32. "
        "Checkpoints before it are intact"
    )
