"""One process at a time in a folder that is written to.

The lock is the kernel's (`flock` on the file `.lock` in the folder), so that it goes with the process that holds it,
however that ends, and a stale one cannot be. The file says who holds it, for the one who is turned away.
"""

import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from jaxresnet.errors import ResultsError, StorageError

LOCK = ".lock"


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold `folder`, which is made if it is not there, until the end of the block.

    Raises ResultsError that names the holder (process, machine, since when, command) where another process, or another
    thread of this one, holds it, StorageError where the folder cannot be written to. On a filesystem that knows no
    locks there is none: a warning says so.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = _taken(folder)
    except OSError as e:
        raise StorageError(f"{folder}: cannot write results there ({e.strerror or e}); choose another folder") from e
    with file:
        try:
            yield
        finally:
            (folder / LOCK).unlink(missing_ok=True)


def _taken(folder: Path) -> IO[str]:
    """The lock's file, open and locked. It is removed by who gives the lock back, so the one that was opened and then
    locked may not be there any more: then once more."""
    path = folder / LOCK
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(folder, file)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                os.ftruncate(file.fileno(), 0)
                os.write(file.fileno(), f"{json.dumps(_myself())}\n".encode())
                return file
        except FileNotFoundError:
            pass
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(folder: Path, file: IO[str]) -> None:
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ResultsError(
            f"{folder}: in use by {_holder(file)}. Wait for it, or choose another output folder (--out)"
        ) from None
    except OSError as e:
        print(
            f"warning: {folder}: this filesystem has no locks ({e.strerror}); see that no other process writes there",
            file=sys.stderr,
        )


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
    }


def _holder(file: IO[str]) -> str:
    """The process that the file names, in words. It may be writing it just now."""
    file.seek(0)
    try:
        told = json.loads(file.read())
        return f"process {told['pid']} on {told['host']} since {told['since']} ({told['command']})"
    except (ValueError, TypeError, KeyError, OSError):
        return "another process"
