"""One run of a store, and many of them on the devices of this process.

`run_one` needs nothing but the run's folder, its config and its data, so that a worker of a cluster can call it too.
"""

import threading
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

import jax

from jaxresnet.config import TrainConfig
from jaxresnet.data.dataset import Dataset, fingerprint
from jaxresnet.distributed import from_main, on_main, several
from jaxresnet.errors import Interrupted, ResultsError, StorageError, UserError, printable, say
from jaxresnet.files import lock, write_json, write_rows
from jaxresnet.hardware import environment
from jaxresnet.results.store import CHECKPOINTS, FAILURE, HISTORY, SCORES, begin_run, is_finished
from jaxresnet.training.fit import fit
from jaxresnet.training.metrics import Row

R = TypeVar("R")


def run_one(
    folder: Path,
    config: TrainConfig,
    data: Dataset,
    *,
    devices: Sequence[jax.Device],
    restart: bool = False,
    on_epoch: Callable[[list[Row]], None] | None = None,
    **hooks: Any,
) -> str | None:
    """Train the run in `folder` of a store, or what is missing of it, while holding the folder's lock.

    config: with its seed, and a precision that is not "auto". restart, on_epoch, hooks: see `fit`.
    Returns None when it is finished, else in one line why it cannot go on: it is another process's at the moment, its
    loss stopped being finite, its checkpoints are damaged, the device has too little memory. All but the first are
    written to failed.json. Raises ResultsError where the folder is another run's, and what is not this run's trouble
    alone: StorageError, Interrupted, and what a hook raises.
    """
    with ExitStack() as held:
        try:
            held.enter_context(on_main(lock(folder)))
        except StorageError:
            raise
        except ResultsError as e:
            return str(e)
        if from_main(lambda: is_finished(folder)):  # by another process, a moment ago
            return None
        from_main(lambda: begin_run(folder, config, fingerprint(data)))

        def keep(history: list[Row]) -> None:
            from_main(lambda: write_rows(folder / HISTORY, history))
            if on_epoch:
                on_epoch(history)

        of_hooks: list[Exception] = []
        calls = {name: hook and _noting(hook, of_hooks) for name, hook in {"on_epoch": keep, **hooks}.items()}
        try:
            from_main(lambda: _check_checkpoints(folder, restart))
            checkpoints = folder / CHECKPOINTS
            result = fit(config, data, checkpoints, restart=restart, devices=devices, **calls)
        except Exception as e:
            lost = several() and not isinstance(e, UserError)  # another process may be
            if lost or e in of_hooks or isinstance(e, StorageError | Interrupted):
                raise  # everyone's: also the disk, a request to stop, and the caller's hooks
            reason = _reason(e, config.seed)
            from_main(lambda: write_json(folder / FAILURE, {"error": reason}))
            return reason
        # Its rows also when all its epochs were in the checkpoint.
        from_main(lambda: write_rows(folder / HISTORY, result.history))
        scores = {**result.summary, "environment": environment(devices)}
        from_main(lambda: write_json(folder / SCORES, scores))
    return None


def _noting(hook: Callable[..., R], errors: list[Exception]) -> Callable[..., R]:
    """`hook`, whose errors are added to `errors`: they are the caller's, and not the run's."""

    def call(*args: Any) -> R:
        try:
            return hook(*args)
        except Exception as e:
            errors.append(e)
            raise

    return call


def _check_checkpoints(folder: Path, restart: bool) -> None:
    """Raise ResultsError where epochs were finished and their checkpoint is gone: to begin anew is not to continue."""
    rows, checkpoints = folder / HISTORY, folder / CHECKPOINTS
    if restart or not rows.is_file() or not rows.stat().st_size:
        return
    if not any(checkpoints.glob("[!.]*")):  # but for the lock
        raise ResultsError(
            f"{checkpoints}: holds no checkpoint, but {rows.name} has finished epochs. Put the checkpoints back, or "
            "begin the run anew with --restart (compare: restart=True)"
        )


def _reason(error: Exception, seed: int) -> str:
    """In one line, for the results. What nobody foresaw is printed with its traceback as well."""
    text = printable(str(error)).replace("\n", " ")[:10_000]
    if isinstance(error, UserError):
        return text.removeprefix(f"seed {seed}: ")
    say("".join(traceback.format_exception(error)).rstrip())
    remedy = "; try a smaller batch_size" if "RESOURCE_EXHAUSTED" in text or isinstance(error, MemoryError) else ""
    return f"{type(error).__name__}: {text[:300]}{remedy}"


def spread_over(
    runs: Sequence[R],
    teams: Sequence[Sequence[jax.Device]],
    train: Callable[[R, Sequence[jax.Device], Callable[[], bool]], None],
    should_stop: Callable[[], bool],
) -> None:
    """Call train(run, team, should_stop) for every run, each team of devices with one at a time, in a thread each.

    When one raises, or Ctrl-C is pressed, the others stop as if asked to, with their checkpoints saved, and the error
    is raised.
    """
    waiting, failed = iter(runs), threading.Event()

    def work(team: Sequence[jax.Device]) -> None:
        try:
            for run in waiting:
                train(run, team, lambda: failed.is_set() or should_stop())
        except BaseException:
            failed.set()
            raise

    if len(teams) == 1:
        return work(teams[0])
    with ThreadPoolExecutor(len(teams)) as pool:
        try:
            ends = [pool.submit(work, team) for team in teams]
            wait(ends)
        except BaseException:  # Ctrl-C, which only this thread hears of
            failed.set()
            raise
    errors = [error for end in ends if (error := end.exception())]
    for error in errors:
        if not isinstance(error, Interrupted):  # what the others were stopped for
            raise error
    if errors:
        raise Interrupted("; ".join(dict.fromkeys(map(str, errors))))
