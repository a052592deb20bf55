"""What a person sees while runs go on: a live line with rich on a terminal, one plain line an epoch otherwise."""

import sys
import time
from typing import Any

from jaxresnet.train import Row


class Progress:
    """Counts images over all runs of a comparison, so that the time left is that of the whole.

    images_per_run: training images of one run, all epochs. Use as a context manager.
    """

    def __init__(self, num_runs: int, images_per_epoch: int, num_epochs: int):
        self._per_epoch, self._num_epochs, self._num_runs = images_per_epoch, num_epochs, num_runs
        self._run = -1
        self._name = ""
        self._seen = 0.0  # seconds of training, this process
        self._images = 0  # images trained in them
        self._done = 0  # images done in this run, all epochs
        self._bar: Any = None
        self._task: Any = None

    def __enter__(self) -> "Progress":
        if sys.stdout.isatty():
            from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[speed]}"))
            self._bar = Progress(*columns, TimeElapsedColumn())
            self._task = self._bar.add_task("compiling", total=self._num_epochs * self._per_epoch, speed="")
            self._bar.start()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def on_run(self, arm: str, seed: int) -> None:
        self._run += 1
        self._name, self._done = f"{arm}, seed {seed}", 0
        self._clock = time.perf_counter()
        if self._bar is not None:
            self._bar.reset(self._task, description=self._name)

    def on_progress(self, epoch: int, images: int) -> None:
        if self._bar is None:
            return
        done = epoch * self._per_epoch + images
        elapsed = time.perf_counter() - self._clock
        if 0 < self._done < done and elapsed > 0:
            speed = (done - self._done) / elapsed
            left = self._left(speed, self._num_epochs * self._per_epoch - done)
            self._bar.update(self._task, completed=done, speed=f"{speed:,.0f} images/s, {left} left")
        self._done, self._clock = done, time.perf_counter()

    def on_epoch(self, history: list[Row]) -> None:
        row = history[-1]
        self._seen += row["seconds"]
        self._images += self._per_epoch
        remaining = (self._num_epochs - len(history)) * self._per_epoch
        left = self._left(self._images / max(self._seen, 1e-9), remaining)
        parts = [f"{self._name}: epoch {len(history)}/{self._num_epochs}", _scores(row, "train")]
        parts += [_scores(row, name) for name in ("val", "test") if row[f"{name}_accuracy"] is not None]
        parts += [f"lr {row['learning_rate']:.2e}", f"{row['images_per_second']:,.0f} images/s", f"about {left} left"]
        self.print("  ".join(parts))
        self._done, self._clock = len(history) * self._per_epoch, time.perf_counter()

    def print(self, text: str) -> None:
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, markup=False)
        else:
            print(text, flush=True)

    def _left(self, speed: float, in_run: int) -> str:
        runs = max(self._num_runs - self._run - 1, 0)
        return duration((in_run + runs * self._num_epochs * self._per_epoch) / max(speed, 1e-9))


def _scores(row: Row, name: str) -> str:
    return f"{name} loss {row[f'{name}_loss']:.3f} acc {row[f'{name}_accuracy']:.2f} %"


def duration(seconds: float) -> str:
    """12 s, 3 min, 2.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
