"""What is printed, whatever becomes of the stream: a line that cannot be shown is no reason for a run to fail."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO

UNREAD = "nobody reads the output any more"


class Output:
    """A text stream that loses what cannot be written (a full disk, a terminal that is gone), and says so once on
    stderr. Only BrokenPipeError is raised: nobody reads on, which is a reason to stop."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def isatty(self) -> bool:
        with suppress(AttributeError, OSError, ValueError):
            return not self._lost and self._stream.isatty()
        return False

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, call: Any, *args: Any) -> None:
        try:
            if not self._lost:
                call(*args)
        except UnicodeEncodeError:  # of a stream whose encoding cannot be told to replace
            self._try(call, args[0].encode("ascii", "replace").decode())
        except BrokenPipeError:
            self._drop()
            if self._name == "stdout":
                raise
        except (OSError, ValueError) as e:  # ValueError: the stream is closed
            self._drop()
            if self._name == "stdout":
                print(f"warning: stdout cannot be written ({e}): going on without it", file=sys.stderr)

    def _drop(self) -> None:
        """From here on, write nowhere. What the stream still holds would else raise again at Python's exit."""
        self._lost = True
        with suppress(AttributeError, OSError, ValueError), open(os.devnull, "w") as nowhere:
            os.dup2(nowhere.fileno(), self._stream.fileno())


@contextmanager
def robust_output() -> Iterator[None]:
    """While this lasts, stdout and stderr are `Output`s, and stdout shows "?" for what its encoding lacks."""
    before, errors = (sys.stdout, sys.stderr), getattr(sys.stdout, "errors", None)
    _reconfigure(sys.stdout, "replace")
    sys.stdout, sys.stderr = _robust(sys.stdout, "stdout"), _robust(sys.stderr, "stderr")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        sys.stdout, sys.stderr = before
        _reconfigure(sys.stdout, errors)


def _robust(stream: TextIO | None, name: str) -> Any:
    # None: closed by the one who started this program, as by `>&-`.
    return open(os.devnull, "w") if stream is None else Output(stream, name)


def _reconfigure(stream: Any, errors: str | None) -> None:
    with suppress(AttributeError, OSError, ValueError):  # of another kind, or closed
        stream.reconfigure(errors=errors)
