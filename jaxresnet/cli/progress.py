"""What a person sees while runs go on: a live line with rich on a terminal, one plain line an epoch otherwise."""

import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxresnet.training.fit import Interrupted, Row

UNREAD = "nobody reads the output any more"


@dataclass(frozen=True)
class PlannedRun:
    """images: trained an epoch. macs: multiply-adds for each. done: finished by an earlier call. comparison: its name
    before the arm's, where there are several."""

    arm: str
    seed: int
    images: int
    num_epochs: int
    macs: int
    done: bool = False
    comparison: str = ""

    @property
    def work(self) -> int:
        """Multiply-adds of the whole run."""
        return self.images * self.num_epochs * self.macs

    @property
    def name(self) -> str:
        return f"{self.comparison}: " * bool(self.comparison) + f"{self.arm}, seed {self.seed}"


class Progress:
    """Counts multiply-adds over all runs of all comparisons, so that bar, clock and time left are those of the whole.

    Runs may go on at the same time, from several threads. Use as a context manager.
    """

    def __init__(self, runs: Sequence[PlannedRun]):
        self._lock = threading.RLock()
        self._total = sum(run.work for run in runs)
        self._done = {run: run.work if run.done else 0 for run in runs}
        self._since: dict[PlannedRun, tuple[int, float]] = {}  # work and clock from where an epoch's speed is measured
        self._active: set[PlannedRun] = set()
        self._work, self._seconds = 0, 0.0  # in the epochs that this process finished
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
            from rich.table import Column

            # The name takes what is left of the line: in a narrow terminal it gives way, not the numbers.
            speed = TextColumn("{task.fields[speed]}", table_column=Column(no_wrap=True, min_width=28))
            name = TextColumn(
                "{task.description}", markup=False, table_column=Column(no_wrap=True, overflow="ellipsis", ratio=1)
            )
            columns = (TimeElapsedColumn(), BarColumn(bar_width=16), speed, name)
            self._bar = Progress(*columns, console=Console(), transient=True, expand=True)
            self._task = self._bar.add_task("", total=self._total, speed="starting")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_run(self, run: PlannedRun) -> None:
        with self._lock:
            self._active.add(run)
            if self._bar is not None:
                done = sum(self._done.values())
                self._bar.update(self._task, completed=done, description=run.name, speed="starting, may compile")

    def on_progress(self, run: PlannedRun, epoch: int, images: int) -> None:
        """After every dispatch. On accelerators that is an epoch, and `on_epoch` is all there is."""
        with self._lock:
            now, done = time.perf_counter(), (epoch * run.images + images) * run.macs
            self._done[run] = done
            if run not in self._since:  # the dispatch before compiled, or continued an epoch that another process began
                self._since[run] = done, now
                return
            done_before, start = self._since[run]
            self._show(run, self._speed(done - done_before, now - start))

    def on_epoch(self, run: PlannedRun, history: list[Row]) -> None:
        row, epochs = history[-1], len(history)
        with self._lock:
            self._work += run.images * run.macs
            self._seconds += row["seconds"]
            self._done[run] = epochs * run.images * run.macs
            speed = self._speed()
            self._show(run, speed)
            parts = [f"{run.name}: epoch {epochs}/{run.num_epochs}", _scores(row, "train")]
            parts += [_scores(row, name) for name in ("val", "test") if row[f"{name}_accuracy"] is not None]
            parts += [f"lr {row['learning_rate']:.2e}", f"{row['images_per_second']:,.0f} images/s"]
            self.print("  ".join([*parts, f"about {self._left(speed)} left"]))
            self._since[run] = self._done[run], time.perf_counter()

    def on_end(self, run: PlannedRun) -> None:
        with self._lock:
            self._active.discard(run)
            self._done[run] = run.work  # also when all its epochs were in a checkpoint

    def print(self, text: str) -> None:
        if self._bar is not None:
            # soft_wrap: a long line stays one line, which can be copied and searched as such.
            self._bar.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            try:
                print(text, flush=True)
            except BrokenPipeError as e:  # as with `| head`: a reason to stop, and none for this run to have failed
                raise Interrupted(UNREAD) from e

    def _speed(self, work: int = 0, seconds: float = 0.0) -> float:
        """Multiply-adds a second of one run in this process, with those of an unfinished epoch: steadier than that of
        one step."""
        return (self._work + work) / max(self._seconds + seconds, 1e-9)

    def _left(self, speed: float) -> str:
        left = self._total - sum(self._done.values())
        return duration(left / max(speed * max(1, len(self._active)), 1e-9))

    def _show(self, run: PlannedRun, speed: float) -> None:
        if self._bar is not None:
            images = speed / run.macs * max(1, len(self._active))
            text = f"{images:,.0f} images/s, {self._left(speed)} left"
            self._bar.update(self._task, completed=sum(self._done.values()), description=run.name, speed=text)


def _scores(row: Row, name: str) -> str:
    return f"{name} loss {row[f'{name}_loss']:.3f} acc {row[f'{name}_accuracy']:.2f} %"


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
