"""What is printed, whatever becomes of the stream: a line that cannot be shown is no reason for a run to fail."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO


class Output:
    """A text stream that loses what cannot be written (a full disk, a terminal that is gone), and says so once on
    stderr. Only BrokenPipeError is raised: nobody reads on, which is a reason to stop."""

    def __init__(self, stream: TextIO, name: str):
        self._stream, self._name, self._lost = stream, name, False

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def isatty(self) -> bool:
        with suppress(OSError, ValueError):
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
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextmanager
def robust_output() -> Iterator[None]:
    """Around a whole program: stdout and stderr are `Output`s, and show "?" for what their encoding lacks."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = _robust(sys.stdout, "stdout"), _robust(sys.stderr, "stderr")
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(BrokenPipeError):
                stream.flush()
        sys.stdout, sys.stderr = before


def _robust(stream: TextIO | None, name: str) -> Any:
    if stream is None:  # closed by the one who started this program, as by `>&-`
        return open(os.devnull, "w")
    if hasattr(stream, "reconfigure"):
        with suppress(OSError, ValueError):  # it is closed
            stream.reconfigure(errors="replace")
    return Output(stream, name)
