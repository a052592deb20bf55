"""How a command ends: its exit status, what it says then, and what it makes of Ctrl-C and SIGTERM."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxresnet.distributed import is_main, several
from jaxresnet.errors import DataError, StorageError, UserError
from jaxresnet.training.fit import Interrupted

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # sysexits.h: "temporary failure, try again". The same command continues
UNREAD = "nobody reads the output any more"


@contextmanager
def exit_status() -> Iterator[None]:
    """Around a whole program: turn a user's error and an interruption into a line on stderr and an exit status.

    Of several processes the first one says it, and another one what is wrong with its own data or disk."""
    # SIGTERM is taken like Ctrl-C; `stop_on_signal` does better while runs train.
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    except (Interrupted, KeyboardInterrupt, BrokenPipeError) as e:
        why = str(e) if isinstance(e, Interrupted) else UNREAD if isinstance(e, BrokenPipeError) else ""
        _drop_unread_output()
        if is_main():
            command = shlex.join([sys.orig_argv[0], *sys.argv])  # the interpreter as it was called
            print(f"\nStopped{why and ', '}{why}. The same command continues:\n  {command}", file=sys.stderr)
        sys.exit(EXIT_INTERRUPTED)
    except UserError as e:
        if is_main() or isinstance(e, DataError | StorageError):
            print(f"error: {e}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def stop_on_signal(threads: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield should_stop(). The first Ctrl-C or SIGTERM asks for a stop, the second Ctrl-C ends without saving.

    With several processes SIGTERM is left to JAX's preemption service, which stops all of them (see
    `distributed.agreed`), and Ctrl-C sends it. threads: runs train in threads of their own, for which a
    KeyboardInterrupt would wait; the second Ctrl-C then ends the process. Enter this before `Progress`, whose stderr
    takes locks: a signal may interrupt the code that holds them.
    """
    asked, stream, shared = threading.Event(), sys.stderr, several()

    def ask(signum: int, frame: Any) -> None:
        print(
            "\nstopping after the steps under way (on accelerators, this epoch; while compiling, after that) "
            "and saving; press again not to save",
            file=stream,
            flush=True,
        )
        asked.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL if threads else signal.default_int_handler)
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)

    before = {s: signal.signal(s, ask) for s in (signal.SIGINT, signal.SIGTERM)[: 1 if shared else 2]}
    try:
        yield asked.is_set
    finally:
        for s, handler in before.items():
            signal.signal(s, handler)


def _drop_unread_output() -> None:
    """Else Python complains at its exit that it cannot print it."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
