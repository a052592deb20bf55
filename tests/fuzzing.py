"""One damaged input after another for one reader: each is accepted with the right types, or refused with `UserError`.

Anything else is a failure: another exception, an answer that is late, memory beyond all need, a message that nobody
can read, and whatever reaches beyond the folder given: files written elsewhere, programs, connections, and modules
imported by a name that the input gives.
"""

import contextlib
import dataclasses
import gc
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

from jaxresnet.errors import UserError

SECONDS = 10.0  # for one input; valid ones take some milliseconds, and drawn ones a second
MEMORY = 1 << 30  # bytes that one input may need beyond what the process has
MESSAGE = 20_000  # characters of a message
CANARY = "fuzz_canary"  # a module that only a damaged input names

_ELSEWHERE = ("os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "subprocess.Popen", "socket.connect",
              "socket.getaddrinfo", "urllib.Request")  # fmt: skip
_CHANGES = ("os.remove", "os.rename", "os.mkdir", "os.rmdir", "os.symlink", "os.link", "os.truncate", "os.chmod")


@dataclasses.dataclass(frozen=True)
class Target:
    """A reader, and a folder that holds what it accepts.

    read: takes the folder, and raises AssertionError for an answer of wrong types. change: takes the valid files as
    {name: bytes} and gives those to write instead; None as bytes removes one. share: of the inputs asked for, as some
    readers take a second.
    """

    name: str
    folder: Path
    read: Callable[[Path], Any]
    change: Callable[[Random, dict[str, bytes]], dict[str, bytes | None]]
    share: float = 1.0


@dataclasses.dataclass
class Count:
    """What became of the inputs of one reader. failures: {number of the input: what happened}."""

    inputs: int = 0
    accepted: int = 0
    refused: int = 0
    failures: dict[int, str] = dataclasses.field(default_factory=dict)


class TooSlow(BaseException):
    """Not an Exception: readers turn those into refusals."""


def fuzz(target: Target, inputs: int, seed: int, first: int = 0) -> Count:
    """Give `inputs` damaged copies to the reader. Number i of a seed is always the same input."""
    valid = {path.relative_to(target.folder).as_posix(): path.read_bytes() for path in files(target.folder)}
    target.read(target.folder)  # imports and compiles what is needed, and fails where valid files are refused
    count = Count()
    for number in range(first, first + inputs):
        changed = target.change(Random(f"{seed} {target.name} {number}"), valid)
        write(target.folder, changed)
        count.inputs += 1
        outcome = observe(target.read, target.folder)
        if outcome == "accepted":
            count.accepted += 1
        elif outcome == "refused":
            count.refused += 1
        else:
            count.failures[number] = outcome
        for path in set(files(target.folder)) - {target.folder / name for name in valid}:
            path.unlink()  # what the reader wrote, pages say
        write(target.folder, {name: valid[name] for name in changed if name in valid})
    return count


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def write(folder: Path, changed: dict[str, Any]) -> None:
    for name, content in changed.items():
        if content is None:
            (folder / name).unlink(missing_ok=True)
        else:
            (folder / name).write_bytes(content)


def observe(read: Callable[[Path], Any], folder: Path) -> str:
    """ "accepted", "refused", or what went wrong."""
    reset_peak_memory()
    before = peak_memory()
    start = time.perf_counter()
    with watched(folder) as seen, time_limit(SECONDS), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            read(folder)
            outcome = "accepted"
        except UserError as error:
            outcome = _readable(str(error))
        except TooSlow:
            outcome = f"no answer within {SECONDS:g} s"
        except Exception as error:
            outcome = f"{type(error).__name__}: {str(error)[:300]}{_where(error)}"
    taken = time.perf_counter() - start
    if seen:
        return f"reached beyond its folder: {', '.join(sorted(set(seen)))[:300]}"
    if outcome in ("accepted", "refused") and taken > SECONDS:
        return f"answered after {taken:.0f} s"
    if (grown := peak_memory() - before) > MEMORY:
        return f"took {grown / 2**20:.0f} MiB of memory"
    return outcome


def _readable(message: str) -> str:
    if not 0 < len(message) <= MESSAGE:
        return f"a message of {len(message)} characters: {message[:80]!r}"
    if found := [c for c in message if not c.isprintable() and c not in "\n\t"]:
        return f"a message with {found[0]!r}: {message[:300]!r}"
    return "refused"


def _where(error: BaseException) -> str:
    """The last line of our own code that the exception passed through."""
    found, trace = "", error.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.parent.name == "jaxresnet":
            found = f" ({file.name}:{trace.tb_lineno})"
        trace = trace.tb_next
    return found


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# --------------------------------------------------------------------------------- what Python tells of what it does

_watching: list[tuple[str, list[str]]] = []  # (folder in which all is allowed, what was seen)


@contextlib.contextmanager
def watched(folder: Path) -> Iterator[list[str]]:
    """A list of what was done beyond `folder` meanwhile, as Python's audit events tell of it."""
    _install()
    seen: list[str] = []
    _watching.append((f"{folder}/", seen))
    try:
        yield seen
    finally:
        _watching.pop()


def _install(installed: list[bool] = []) -> None:  # noqa: B006 - an audit hook cannot be taken away again
    if not installed:
        installed.append(True)
        sys.addaudithook(_hook)


def _hook(event: str, args: tuple) -> None:
    if not _watching:
        return
    allowed, seen = _watching[-1]
    if event.startswith(_ELSEWHERE):
        seen.append(f"{event} {args!r:.100}")
    elif event == "import" and str(args[0]).split(".")[0] == CANARY:
        seen.append(f"import {args[0]}")
    elif event == "open" and isinstance(args[0], str | bytes | Path) and _writes(args[1], args[2]):
        _note(event, [args[0]], allowed, seen)
    elif event in _CHANGES:
        _note(event, [arg for arg in args[:2] if isinstance(arg, str | bytes | Path)], allowed, seen)


def _writes(mode: Any, flags: Any) -> bool:
    return any(letter in mode for letter in "wax+") if isinstance(mode, str) else bool((flags or 0) & 0b11)


def _note(event: str, paths: list[Any], allowed: str, seen: list[str]) -> None:
    for path in paths:
        text = path.decode(errors="replace") if isinstance(path, bytes) else str(path)
        if not f"{text}/".startswith((allowed, "/dev/null", "/proc/")) and "__pycache__" not in text:
            seen.append(f"{event} {text}")


# ------------------------------------------------------------------------------------------------ memory, on Linux


def reset_peak_memory() -> None:
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> int:
    """The most memory that this process has had since the last reset, in bytes; 0 where that is not known."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


# -------------------------------------------------------------------------------------------- what libraries print


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what libraries of C++ and of abandoned event loops print to standard error, a page an input."""
    kept = os.dup(2)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 2)
    try:
        yield
        gc.collect()  # of reads that Orbax never awaited, which print a page each then
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(null)
