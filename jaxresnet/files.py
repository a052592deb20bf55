"""Files: replaced in one step, read back with every damage named, and one process at a time in a folder."""

import errno
import json
import math
import os
import platform
import re
import shlex
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from platformdirs import user_cache_path

from jaxresnet.errors import ConfigError, ResultsError, StorageError, warn

LONGEST_NAME = 500  # characters of what stands in a figure


# ---------------------------------------------------------------------------------------------------------- paths


def local_path(path: str | os.PathLike[str]) -> Path:
    """A path that a user gives, with ~ expanded. Raises ConfigError for what names no place on this machine."""
    try:
        text = os.fspath(path)
        if isinstance(text, str) and not re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text) and "\0" not in text:
            return Path(text).expanduser()
    except (TypeError, RuntimeError):  # no text, or a user whose home is not known
        pass
    raise ConfigError(f"{path}: is no path on this machine; give a file or folder here, without gs:// or the like")


def cache_folder() -> Path:
    """The user's cache folder of this library, on Linux ~/.cache/jaxresnet; without a home a temporary one."""
    try:
        folder = user_cache_path("jaxresnet")
    except (RuntimeError, KeyError):
        folder = Path("~")
    if folder.is_absolute():
        return folder
    folder = Path(tempfile.gettempdir()) / f"jaxresnet-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    # Another user may have put programs there for us to run.
    return folder if folder.stat().st_uid == os.getuid() else Path(tempfile.mkdtemp(prefix="jaxresnet-"))


# -------------------------------------------------------------------------------------------------------- writing


def write_bytes(path: str | Path, data: bytes) -> None:
    """Replace `path` by `data` in one step, creating its folder: a crash leaves the old file or the new one.

    Raises StorageError where it cannot be written."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder: os.replace is atomic within a disk
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as e:
        raise StorageError(
            f"{path}: cannot be written ({e.strerror or e}). Make room or allow it, and the same command continues; or "
            "choose another folder"
        ) from e


def write_text(path: str | Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8", "backslashreplace"))  # half a character, as of a name that is no UTF-8


def write_json(path: str | Path, obj: Any) -> None:
    """Write `obj` as indented JSON. Raises ValueError for NaN or infinity, which JSON cannot hold."""
    write_text(path, _dumps(path, obj, indent=2) + "\n")


def write_rows(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one JSON object a line. Raises ValueError for NaN or infinity, which JSON cannot hold."""
    write_text(path, "".join(_dumps(path, dict(row)) + "\n" for row in rows))


def _dumps(path: str | Path, obj: Any, indent: int | None = None) -> str:
    try:
        return json.dumps(obj, indent=indent, allow_nan=False, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{path}: not written: {error}") from error


# -------------------------------------------------------------------------------------------------------- reading


def read_text(path: Path) -> str:
    """The whole file. Raises ResultsError for one that cannot be read or is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not a text file ({error}); restore it from a copy or delete it") from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror or error}); restore it from a copy") from error


def read_json(path: Path, remedy: str) -> Any:
    """The whole file as JSON.

    remedy: what to do where it is not JSON, or holds NaN or infinity: the end of the ResultsError that is then
    raised."""
    return parse_json(path, read_text(path), remedy)


def parse_json(path: Path, text: str, remedy: str, line: int | None = None) -> Any:
    """`text`, which is the file `path` or one `line` of it (from 1), as JSON. Raises as `read_json` does."""
    try:
        return json.loads(text, parse_constant=_finite, parse_float=_finite)
    except json.JSONDecodeError as error:
        cut = "cut off or damaged" if text.strip() else "empty"
        raise ResultsError(f"{path}, line {line or error.lineno}: {cut} ({error.msg}); {remedy}") from error
    except (ValueError, RecursionError) as error:
        where = str(path) if line is None else f"{path}, line {line}"
        raise ResultsError(f"{where}: damaged ({error}); {remedy}") from error


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def is_name(value: Any) -> bool:
    """A text that fits into a figure and can be printed."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME and value.isprintable()


def is_whole(value: Any, highest: int) -> bool:
    """0..highest, and neither True nor 1.0."""
    return type(value) is int and 0 <= value <= highest


def is_number(value: Any, highest: float) -> bool:
    """0..highest, whole or not. NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest


# -------------------------------------------------------------------------------------------------------- locking


@contextmanager
def lock(folder: str | Path) -> Iterator[None]:
    """Hold `folder`, which is made if it is not there, until the end of the block.

    The lock is the kernel's (on the file `.lock`), so it ends with the process that holds it, however that ends.
    Raises ResultsError that names the holder where another process, or another thread of this one, has it, and
    StorageError where the folder cannot be written to. Where the file system has no locks, a warning says so.
    """
    from filelock import FileLock, Timeout

    folder = Path(folder)
    holder = folder / ".holder.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = FileLock(folder / ".lock", blocking=False)
        try:
            held.acquire()
        except Timeout:
            raise ResultsError(
                f"{folder}: in use by {_named(holder)}. Wait for it, or choose another output folder (--out)"
            ) from None
        except OSError as e:
            if e.errno not in (errno.ENOLCK, errno.EOPNOTSUPP):
                raise
            warn(f"{folder}: no locks here ({e.strerror}); see that no other process writes there")
        write_json(holder, _myself())
    except OSError as e:
        raise StorageError(f"{folder}: cannot be written to ({e.strerror or e}); choose another folder") from e
    try:
        yield
    finally:
        holder.unlink(missing_ok=True)
        held.release()


def _myself() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "since": datetime.now(UTC).isoformat(sep=" ", timespec="seconds"),
        "command": shlex.join(sys.orig_argv),
    }


def _named(holder: Path) -> str:
    """The process that holds a folder, in words. It may be writing its name just now."""
    try:
        told = json.loads(holder.read_text("utf-8"))
        return f"process {told['pid']} on {told['host']} since {told['since']} ({told['command']})"
    except (ValueError, TypeError, KeyError, OSError):
        return "another process"
