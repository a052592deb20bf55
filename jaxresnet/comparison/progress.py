"""What a person sees while runs train: a live line with rich on a terminal, else one plain line an epoch."""

import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxresnet.comparison.plan import Plan
from jaxresnet.data.dataset import check_data
from jaxresnet.errors import Interrupted
from jaxresnet.nn.summary import count_macs
from jaxresnet.output import UNREAD
from jaxresnet.training.metrics import Row


class Hooks(NamedTuple):
    """What a comparison tells its caller while it runs. All may be None; where runs train side by side they are
    called from several threads.

    on_run(arm, seed): a run has its turn. on_epoch(arm, seed, history): rows so far, the last one new.
    on_progress(arm, seed, epoch from 0, images done in it). on_end(arm, seed): its turn is over, whether it is finished
    or failed, maybe without an epoch here. should_stop(): True saves a checkpoint and raises `Interrupted`.
    """

    on_run: Callable[[str, int], None] | None = None
    on_epoch: Callable[[str, int, list[Row]], None] | None = None
    on_progress: Callable[[str, int, int, int], None] | None = None
    on_end: Callable[[str, int], None] | None = None
    should_stop: Callable[[], bool] | None = None


class Job(NamedTuple):
    """A run, and how much work it is.

    arm: with the folder of its comparison before it, where a command runs several. images: trained an epoch. macs:
    multiply-adds of a training step for each image. done: finished by an earlier call.
    """

    arm: str
    seed: int
    images: int
    num_epochs: int
    macs: int
    done: bool = False

    @property
    def epoch(self) -> int:
        """Multiply-adds of an epoch."""
        return self.images * self.macs

    @property
    def work(self) -> int:
        """Multiply-adds of the run."""
        return self.num_epochs * self.epoch

    def __str__(self) -> str:
        return f"{self.arm}, seed {self.seed}"


def jobs_of(plans: Sequence[Plan]) -> dict[str, Job]:
    """{run id: job} of all runs, each once, though several comparisons may have it."""
    jobs: dict[str, Job] = {}
    for plan in plans:
        for run in plan.runs:
            arm = f"{plan.folder.name}: {run.arm}" if len(plans) > 1 else run.arm
            macs = 3 * count_macs(run.config.model)  # backward is twice the work of forward
            images, epochs = check_data(run.config, plan.data), run.config.num_epochs
            jobs.setdefault(run.id, Job(arm, run.seed, images, epochs, macs, run.done))
    return jobs


def is_watched() -> bool:
    """Whether somebody sees what is printed: on a terminal or in a notebook. Ask inside `robust_output`."""
    from rich.console import Console

    return sys.stdout.isatty() or bool(Console().is_jupyter)


class Progress:
    """Progress over all runs of a command. Use as a context manager; runs may train in several threads.

    The time left is the work left at the pace of the epochs that this process finished, by the clock: evaluation and
    checkpoints are part of an epoch. The first epoch of an arm compiles. What it takes beyond its training is left out
    of the pace, and added for every arm that is still to begin. Runs that train at the same time divide the time left.
    """

    def __init__(self, jobs: Iterable[Job]):
        self._lock = threading.RLock()
        self._done = {job: job.work if job.done else 0 for job in jobs}  # multiply-adds
        self._total = sum(job.work for job in self._done)
        self._work, self._seconds = 0, 0.0  # of the epochs finished here
        self._starts: dict[str, float] = {}  # {arm: what its first epoch took beyond training, seconds}
        self._active: dict[Job, float] = {}  # {run: clock at its beginning, or at the end of its last epoch}
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            # The name takes what is left of the line: in a narrow terminal it gives way, not the numbers.
            at = TextColumn("{task.fields[at]}", table_column=Column(no_wrap=True, min_width=24))
            name = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            )
            columns = (TimeElapsedColumn(), BarColumn(bar_width=16), at, name)
            self._bar = Progress(*columns, console=Console(), transient=True, expand=True)
            self._task = self._bar.add_task("", total=self._total, at="starting")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def hooks(self, plan: Plan, all_jobs: Mapping[str, Job], should_stop: Callable[[], bool] | None) -> Hooks:
        """What the comparison of `plan` calls. all_jobs: see `jobs_of`."""
        jobs = {(run.arm, run.seed): all_jobs[run.id] for run in plan.runs}
        return Hooks(
            on_run=lambda arm, seed: self.on_run(jobs[arm, seed]),
            on_epoch=lambda arm, seed, history: self.on_epoch(jobs[arm, seed], history),
            on_progress=lambda arm, seed, epoch, images: self.on_progress(jobs[arm, seed], epoch, images),
            on_end=lambda arm, seed: self.on_end(jobs[arm, seed]),
            should_stop=should_stop,
        )

    def on_run(self, job: Job) -> None:
        with self._lock:
            self._active[job] = time.perf_counter()
            self._show(job, "starting" if job.arm in self._starts else "compiling")
            if self._bar is None and job.arm not in self._starts:
                self.print(f"{job}: compiling")

    def on_progress(self, job: Job, epoch: int, images: int) -> None:
        """After every dispatch. On accelerators that is an epoch."""
        with self._lock:
            self._done[job] = epoch * job.epoch + images * job.macs
            self._show(job, f"epoch {epoch + 1}/{job.num_epochs}")

    def on_epoch(self, job: Job, history: list[Row]) -> None:
        row, epochs = history[-1], len(history)
        with self._lock:
            now = time.perf_counter()
            seconds, self._active[job] = now - self._active[job], now
            if job.arm not in self._starts:
                self._starts[job.arm] = max(seconds - row["seconds"], 0.0)
                seconds = row["seconds"]
            self._work += job.epoch
            self._seconds += seconds
            self._done[job] = epochs * job.epoch
            parts = [f"{job}: epoch {epochs}/{job.num_epochs}", _scores(row, "train")]
            parts += [_scores(row, name) for name in ("val", "test") if row[f"{name}_accuracy"] is not None]
            parts += [f"lr {row['learning_rate']:.2e}", f"{row['images_per_second']:,.0f} images/s"]
            self.print("  ".join([*parts, f"about {self._left()} left"]))
            self._show(job, f"epoch {epochs}/{job.num_epochs}")

    def on_end(self, job: Job) -> None:
        with self._lock:
            self._active.pop(job)
            self._done[job] = job.work  # also when all its epochs were in a checkpoint

    def print(self, text: str) -> None:
        if self._bar is not None:
            # soft_wrap: a long line stays one line, which can be copied and searched as such.
            self._bar.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            try:
                print(text, flush=True)
            except BrokenPipeError as e:  # as with `| head`: a reason to stop, not for this run to have failed
                raise Interrupted(UNREAD) from e

    def _left(self) -> str:
        to_begin = {job.arm for job, done in self._done.items() if done < job.work} - self._starts.keys()
        seconds = (self._total - sum(self._done.values())) * self._seconds / max(self._work, 1)
        seconds += len(to_begin) * sum(self._starts.values()) / len(self._starts)
        return duration(seconds / max(len(self._active), 1))

    def _show(self, job: Job, text: str) -> None:
        if self._bar is not None:
            text += f", {self._left()} left" if self._work else ""
            self._bar.update(self._task, completed=sum(self._done.values()), description=str(job), at=text)


def _scores(row: Row, name: str) -> str:
    return f"{name} loss {row[f'{name}_loss']:.3f} acc {row[f'{name}_accuracy']:.2f} %"


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
