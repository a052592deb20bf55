"""Programs that are timed by turns, each in a process of its own: the worker's side and the parent's.

A worker sets itself up, says that it is ready, and then runs one unit of work each time it is told to. Its memory and
its threads are its own, and where it fails, out of memory or killed, the others go on. Messages are lines of JSON: on
the worker's stdin anything, from it `{"ready": {...}}`, then `{"seconds": ..., "peak_memory_bytes": ...}` a unit, or
`{"failed": reason}`.
"""

import json
import os
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

LONGEST_REASON = 500  # letters of what a contender that failed says
SECONDS_TO_END = 20  # of a worker that was asked to

# ------------------------------------------------------------------------------------------------------- the worker


class Unit(NamedTuple):
    """What a worker has set up. run: does one unit of work and waits for its end. peak_memory: bytes so far.
    about: what else is said when it is ready, JSON types, asked for after the warm-up."""

    run: Callable[[], None]
    peak_memory: Callable[[], int]
    about: Callable[[], dict[str, Any]]


def serve(set_up: Callable[[], Unit]) -> None:
    """Be a worker: set up, warm up with two units, and run one for every line on stdin until that ends."""
    messages = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be taken for messages

    def say(message: dict[str, Any]) -> None:
        print(json.dumps(message), file=messages, flush=True)

    try:
        memory_at_start = resident_peak()
        start = time.perf_counter()
        unit = set_up()
        unit.run()
        first = time.perf_counter() - start
        build_seconds = max(first - seconds(unit.run), 0.0)
        say({"ready": {"build_seconds": build_seconds, "memory_at_start_bytes": memory_at_start, **unit.about()}})
        for _ in sys.stdin:
            taken = seconds(unit.run)
            say({"seconds": taken, "peak_memory_bytes": unit.peak_memory()})
    except Exception as e:
        last = traceback.extract_tb(e.__traceback__)[-1]
        where = f"{last.filename}, line {last.lineno}: {last.line}"
        say({"failed": f"{type(e).__name__}: {str(e) or where}"})
        raise  # the traceback, for whoever reads stderr


def seconds(run: Callable[[], None]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def resident_peak() -> int:
    """Bytes: this process's largest resident size so far."""
    status = Path("/proc/self/status")
    # Not ru_maxrss where this can be had: on Linux a process that was started from a larger one begins with its size.
    lines = status.read_text().splitlines() if status.is_file() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


# ------------------------------------------------------------------------------------------------------- the parent


class Contender:
    """A worker process, from the start of this object's `with` block to its end.

    ready: what it said when it was; empty before, and where it failed before.
    units: seconds of every unit so far. peak_memory: bytes, None before the first unit.
    failure: the reason why it is gone, None while it works.
    """

    def __init__(self, name: str, command: Sequence[str], environment: Mapping[str, str], timeout: float):
        """timeout: seconds that it may take for any one answer."""
        self.name, self._timeout = name, timeout
        self.ready: dict[str, Any] = {}
        self.units: list[float] = []
        self.peak_memory: int | None = None
        self.failure: str | None = None
        self._stderr = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (closed in __exit__)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            text=True,
            env=dict(environment),
        )

    def __enter__(self) -> "Contender":
        return self

    def __exit__(self, *exc: object) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):  # a line for it may still be on its way
            self._process.stdin.close()  # which asks it to end
        try:
            self._process.wait(SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._stderr.close()

    def wait_until_ready(self) -> None:
        """Afterwards it is `ready`, or there is a `failure`."""
        answer = self._answer("ready")
        if answer is not None:
            self.ready = answer["ready"]

    def take_turn(self) -> None:
        """Let it run one unit, where it has not failed. Afterwards there is one more in `units`, or a `failure`."""
        if self.failure is not None:
            return
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # where it is gone, its exit status tells
            self._process.stdin.write("run\n")
            self._process.stdin.flush()
        answer = self._answer("seconds")
        if answer is not None:
            self.units.append(answer["seconds"])
            self.peak_memory = answer["peak_memory_bytes"]

    def _answer(self, expected: str) -> dict[str, Any] | None:
        """The next message, None where it failed."""
        assert self._process.stdout is not None
        late = threading.Event()

        def give_up() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(self._timeout, give_up)
        timer.daemon = True
        timer.start()
        line = self._process.stdout.readline()
        timer.cancel()
        message = json.loads(line) if line else {}
        if expected in message:
            return message
        if message:
            self._process.kill()
        status = self._process.wait()
        if late.is_set():
            reason = f"gave no answer in {self._timeout:g} s"
        else:
            reason = message.get("failed") or f"ended with {_status_text(status)}{self._last_words()}"
        self.failure = textwrap.shorten(reason, LONGEST_REASON)
        return None

    def _last_words(self) -> str:
        self._stderr.seek(0)
        lines = [line.strip() for line in self._stderr if line.strip()]
        return f": {lines[-1]}" if lines else ""


def _status_text(status: int) -> str:
    if status >= 0:
        return f"exit status {status}"
    name = signal.Signals(-status).name
    return f"{name} (out of memory?)" if name == "SIGKILL" else name


def take_turns(contenders: Sequence[Contender], rounds: int, pause: float = 0.0) -> None:
    """Each runs one unit a round, in the order given and then in the reverse, and so on, so that neither the first
    place nor a machine that grows slower favours one. One that fails drops out; without the first, which the others
    are compared with, all end.

    pause: seconds before each unit.
    """
    for i in range(rounds):
        for contender in contenders if i % 2 == 0 else reversed(contenders):
            if contender.failure is None:
                time.sleep(pause)
                contender.take_turn()
            if contenders[0].failure is not None:
                return


def speed_against(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, Any]:
    """How many times as fast ours is, from the seconds of the units of every round: median, and smallest and largest
    over the rounds."""
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    return {"speed": statistics.median(ratios), "range": [min(ratios), max(ratios)]}
