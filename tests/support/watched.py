"""A real training process that is watched from outside, and what of its finished results must be the same however often
it was interrupted. For tests and `benchmarks/interrupt.py`."""

import collections
import hashlib
import os
import re
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import jax

import jaxresnet as jr
from support.tiny import contents

ROOT = Path(__file__).resolve().parents[2]
# Three runs of one, two and three epochs, 12 steps each, which share what is compiled.
NETWORK = ["--stage-sizes", "1", "--pool-size", "32", "--width", "4", "--train-size", "1024", "--val-size", "256"]
STEPWISE = ["--precision", "float32"]  # a dispatch is a step then on every CPU, and there is something to interrupt
COMMAND = [str(ROOT / "experiments" / "num_epochs.py"), "--demo", *NETWORK, "--seeds", "0", "--out", "out", *STEPWISE]
# One device; and no commit, which results record, as somebody may work on the checkout meanwhile.
ENVIRONMENT = {"XLA_FLAGS": "", "JAX_PLATFORMS": "cpu", "GIT_DIR": os.devnull}

# What can be seen of the process from outside: what it prints, and what appears in its folder. A file's temporary name
# counts, and so does its final one.
PRINTED = {"epoch printed": r".*: epoch \d+/\d+ .*"}
APPEARED = {
    "run begins": r"runs/[^/]+/\.?config\.json(\.\d+\.tmp)?",
    "checkpoint begun": r"runs/[^/]+/checkpoints/\d+",
    "checkpoint complete": r"runs/[^/]+/checkpoints/\d+/record\.json",
    "history written": r"runs/[^/]+/\.?history\.jsonl(\.\d+\.tmp)?",
    "scores written": r"runs/[^/]+/\.?scores\.json(\.\d+\.tmp)?",
    "report written": r"[^/]+/\.?(summary|figure|report)\.\w+(\.\d+\.tmp)?",
}
END = "the end"
LONGEST = 600  # seconds of one process, that a hanging one is not waited for


class Training:
    """The training command in `folder`, as a process that is watched from outside. events: [(seconds since its start,
    what was seen), ...]. lines: what it printed."""

    def __init__(self, folder: Path):
        self.out, self.stderr = folder / "out", folder / "stderr"
        self.events: list[tuple[float, str]] = []
        self.lines: list[str] = []
        self._printed: collections.deque[str] = collections.deque()
        self._seen = self._appeared()
        self._start = time.monotonic()
        with self.stderr.open("w") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *COMMAND],
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
                cwd=folder,
                env={**os.environ, **ENVIRONMENT},
            )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> "Training":
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.kill()
        self.ended()

    def wait(self, event: str | None = None, nth: int = 1, delay: float = 0.0) -> bool:
        """Until `delay` seconds after the `nth` such event (after the start, where it is None). False where the
        process ended before. With END as the event, until then."""
        due = delay if event is None else None
        while self.process.poll() is None:
            self._look()
            if due is None and sum(name == event for _, name in self.events) >= nth:
                due = self.seconds() + delay
            if due is not None and self.seconds() >= due:
                return True
            if self.seconds() > LONGEST:
                raise TimeoutError(f"{event or 'the instant'} did not come in {LONGEST} s")
            time.sleep(0.001)
        self.ended()
        return False

    def signal(self, signum: int) -> float:
        """Send it and wait for the end. Returns the seconds that this took."""
        start = time.monotonic()
        self.process.send_signal(signum)
        self.process.wait(LONGEST)
        self.ended()
        return time.monotonic() - start

    def ended(self) -> str:
        """Everything that the process, which is to end by itself, has said on stderr."""
        self.process.wait(LONGEST)
        self._reader.join()
        if not self.events or self.events[-1][1] != END:
            self._look()
            self.events.append((self.seconds(), END))
        return self.stderr.read_text().strip()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.rstrip())
            self._printed.append(line.rstrip())

    def _look(self) -> None:
        now, appeared = self.seconds(), self._appeared()
        new = [(name, APPEARED) for name in sorted(path for path, inode in appeared - self._seen)]
        self._seen = appeared  # not all ever seen: a file that is replaced may get a number that was in use before
        while self._printed:
            new.append((self._printed.popleft(), PRINTED))
        for text, patterns in new:
            self.events += [(now, event) for event, pattern in patterns.items() if re.fullmatch(pattern, text)]

    def _appeared(self) -> set[tuple[str, int]]:
        """{(path below the output folder, inode), ...}."""
        found = set()
        for folder in ("*", "runs/*", "runs/*/checkpoints", "runs/*/checkpoints/*"):
            for path in self.out.glob(folder):
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(path) as entries:
                    found |= {(f"{path.relative_to(self.out)}/{entry.name}", entry.inode()) for entry in entries}
        return found


def results_of(out: Path) -> dict[str, str | bytes]:
    """What is to be the same: {path: bytes}, and {run: checksum of its weights}."""
    found = contents(out, timed=False)
    for run in sorted(path.parent for path in out.glob("runs/*/checkpoints")):
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(jr.load_variables(run).variables):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode() + leaf.tobytes())
        found[f"weights of {run.name}"] = digest.hexdigest()
    return found


def differing(reference: dict[str, str | bytes], results: dict[str, str | bytes]) -> list[str]:
    """Names of what is not the same, or is in one of them only."""
    return sorted(name for name in reference | results if reference.get(name) != results.get(name))
