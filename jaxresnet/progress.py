"""What a person sees while runs go on: a live line with rich on a terminal, one plain line an epoch otherwise."""

import sys
import time
from collections.abc import Sequence
from typing import Any

from jaxresnet.train import Row


class Progress:
    """Counts images over all runs of a comparison, so that bar, clock and time left are those of the whole.

    runs: (arm, seed) of every run in their order; those that an earlier call finished are counted as done.
    images_per_epoch: training images. num_epochs: of each run. Use as a context manager.
    """

    def __init__(self, runs: Sequence[tuple[str, int]], images_per_epoch: int, num_epochs: int):
        self._runs, self._per_epoch, self._num_epochs = list(runs), images_per_epoch, num_epochs
        self._run = 0
        self._images, self._seconds = 0, 0.0  # trained in the epochs that this process finished
        self._since: tuple[int, float] | None = None  # images of this epoch and clock, from where speed is measured
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
            total = len(self._runs) * self._num_epochs * self._per_epoch
            self._task = self._bar.add_task("", total=total, speed="starting")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_run(self, arm: str, seed: int) -> None:
        self._run, self._since = self._runs.index((arm, seed)), None
        if self._bar is not None:
            self._bar.update(
                self._task, completed=self._done(0, 0), description=self._name, speed="starting, may compile"
            )

    def on_progress(self, epoch: int, images: int) -> None:
        """After every step on CPU. On accelerators an epoch is one dispatch, and `on_epoch` is all there is."""
        now = time.perf_counter()
        if self._since is None:  # the step before compiled, or continued an epoch that another process began
            self._since = images, now
            return
        images_before, start = self._since
        self._show(epoch, images, self._speed(images - images_before, now - start))

    def on_epoch(self, history: list[Row]) -> None:
        row, epochs = history[-1], len(history)
        self._images += self._per_epoch
        self._seconds += row["seconds"]
        speed = self._speed()
        self._show(epochs, 0, speed)
        parts = [f"{self._name}: epoch {epochs}/{self._num_epochs}", _scores(row, "train")]
        parts += [_scores(row, name) for name in ("val", "test") if row[f"{name}_accuracy"] is not None]
        parts += [f"lr {row['learning_rate']:.2e}", f"{row['images_per_second']:,.0f} images/s"]
        self.print("  ".join([*parts, f"about {self._left(epochs, 0, speed)} left"]))
        self._since = 0, time.perf_counter()

    def print(self, text: str) -> None:
        if self._bar is not None:
            # soft_wrap: a long line stays one line, which can be copied and searched as such.
            self._bar.console.print(text, highlight=False, markup=False, emoji=False, soft_wrap=True)
        else:
            print(text, flush=True)

    @property
    def _name(self) -> str:
        arm, seed = self._runs[self._run]
        return f"{arm}, seed {seed}"

    def _done(self, epoch: int, images: int) -> int:
        """Images of all runs so far."""
        return (self._run * self._num_epochs + epoch) * self._per_epoch + images

    def _speed(self, images: int = 0, seconds: float = 0.0) -> float:
        """Images a second in this process, with those of an unfinished epoch: steadier than that of one step."""
        return (self._images + images) / max(self._seconds + seconds, 1e-9)

    def _left(self, epoch: int, images: int, speed: float) -> str:
        left = len(self._runs) * self._num_epochs * self._per_epoch - self._done(epoch, images)
        return duration(left / max(speed, 1e-9))

    def _show(self, epoch: int, images: int, speed: float) -> None:
        if self._bar is not None:
            text = f"{speed:,.0f} images/s, {self._left(epoch, images, speed)} left"
            self._bar.update(self._task, completed=self._done(epoch, images), speed=text)


def _scores(row: Row, name: str) -> str:
    return f"{name} loss {row[f'{name}_loss']:.3f} acc {row[f'{name}_accuracy']:.2f} %"


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
