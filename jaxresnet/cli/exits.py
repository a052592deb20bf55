"""How a command ends: its exit status, what it says then, and what it makes of Ctrl-C and SIGTERM."""

import os
import shlex
import signal
import sys
import threading
from contextlib import contextmanager
from typing import Any, NoReturn

from jaxresnet.cli.launch import COMMAND, EXIT_INTERRUPTED
from jaxresnet.cli.progress import UNREAD
from jaxresnet.errors import UserError
from jaxresnet.training.fit import Interrupted
from jaxresnet.training.processes import is_main

EXIT_USER_ERROR = 2


@contextmanager
def exit_status() -> Any:
    """Turns a user's error and an interruption into a line on stderr and the exit status."""
    # A request to end is taken like Ctrl-C wherever it comes; `stop_on_signal` does better while runs train.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (Interrupted, KeyboardInterrupt, BrokenPipeError) as e:
        where = f", {e}" if isinstance(e, Interrupted) else ""
        if isinstance(e, BrokenPipeError):
            where = f", {UNREAD}"
        _drop_what_nobody_reads()
        if is_main():
            print(f"\nStopped{where}. The same command continues:\n  {_command()}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as e:
        fail(e)
    finally:
        signal.signal(signal.SIGTERM, before)


def fail(error: UserError) -> NoReturn:
    if is_main() or COMMAND not in os.environ:  # those that `launch` started share a terminal
        print(f"error: {error}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)


@contextmanager
def stop_on_signal(threads: bool = False) -> Any:
    """Yield should_stop(). The first Ctrl-C or SIGTERM asks for a stop, the second Ctrl-C ends without saving.

    threads: runs train in threads of their own, which a KeyboardInterrupt would wait for; the process is ended instead.
    To be entered before `Progress`, which replaces stderr by one that takes rich's locks: a signal's handler that waits
    for a lock, which the code that it interrupted may hold, could wait for ever.
    """
    asked, stream = threading.Event(), sys.stderr

    def ask(signum: int, frame: Any) -> None:
        print(
            "\nstopping after the steps under way (on accelerators, this epoch; while compiling, after that) "
            "and saving; press again not to save",
            file=stream,
            flush=True,
        )
        asked.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL if threads else signal.default_int_handler)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _drop_what_nobody_reads() -> None:
    """Else Python would complain at its exit that it cannot print it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _command() -> str:
    if COMMAND in os.environ:
        return os.environ[COMMAND]
    return shlex.join([sys.orig_argv[0], *sys.argv])  # the interpreter as it was called: .venv/bin/python, for one
