"""How a command ends: its exit status, what it says then, and what it makes of signals. It needs no JAX."""

import os
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from jaxresnet.errors import DataError, Interrupted, StorageError, UserError
from jaxresnet.output import UNREAD, robust_output

EXIT_USER_ERROR = 2
EXIT_INTERRUPTED = 75  # sysexits.h: "temporary failure, try again". The same command continues
# Beside Ctrl-C: the system stops, the connection to the terminal is lost, SLURM warns that the time is up.
STOPPING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGUSR1") if hasattr(signal, name))


@contextmanager
def exit_status(continues: bool = True) -> Iterator[None]:
    """Around a whole program: turn a user's error and an interruption into a line on stderr and an exit status.

    continues: the same command continues what was stopped. Else the status is that of any program that a signal ends.
    Of several processes the first one says it, and another one what is wrong with its own data or disk."""
    # They are taken like Ctrl-C; `stop_on_signal` does better while runs train.
    with _handled(STOPPING, signal.default_int_handler), robust_output():
        try:
            yield
            sys.stdout.flush()
        except (Interrupted, KeyboardInterrupt, BrokenPipeError) as e:
            if not continues:
                sys.exit(128 + (13 if isinstance(e, BrokenPipeError) else signal.SIGINT))  # as SIGPIPE, and silent
            why = UNREAD if isinstance(e, BrokenPipeError) else str(e)
            if _is_main():
                command = shlex.join([sys.orig_argv[0], *sys.argv])  # the interpreter as it was called
                print(f"\nStopped{why and ', '}{why}. The same command continues:\n  {command}", file=sys.stderr)
            sys.exit(EXIT_INTERRUPTED)
        except UserError as e:
            if _is_main() or isinstance(e, DataError | StorageError):
                print(f"error: {e}", file=sys.stderr)
            sys.exit(EXIT_USER_ERROR)


@contextmanager
def stop_on_signal(threads: bool = False) -> Iterator[Callable[[], bool]]:
    """Yield should_stop(). The first Ctrl-C or signal of `STOPPING` asks for a stop, the second Ctrl-C ends without
    saving.

    With several processes SIGTERM is left to JAX's preemption service, which stops all of them (see
    `distributed.agreed`), and all other signals send it. threads: runs train in threads of their own, for which a
    KeyboardInterrupt would wait; the second Ctrl-C then ends the process. Enter this before `Progress`, whose stderr
    takes locks: a signal may interrupt the code that holds them.
    """
    asked, stream, shared = threading.Event(), sys.stderr, _several()

    def ask(signum: int, frame: Any) -> None:
        print(
            "\nstopping: saves after the steps under way (on accelerators after this epoch; while compiling, after "
            "that); press again to stop without saving",
            file=stream,
            flush=True,
        )
        asked.set()
        signal.signal(signal.SIGINT, signal.SIG_DFL if threads else signal.default_int_handler)
        if shared:
            os.kill(os.getpid(), signal.SIGTERM)

    signals = (signal.SIGINT, *STOPPING)
    with _handled([s for s in signals if not (shared and s == signal.SIGTERM)], ask):
        yield asked.is_set


@contextmanager
def _handled(signals: Iterable[int], handler: Any) -> Iterator[None]:
    """Handle `signals` so inside. What is ignored stays so, as Ctrl-C in a shell's background job, or after `nohup`."""
    before = {s: signal.getsignal(s) for s in signals if signal.getsignal(s) is not signal.SIG_IGN}
    for s in before:
        signal.signal(s, handler)
    try:
        yield
    finally:
        for s, old in before.items():
            if old is not None:  # of a library in C
                signal.signal(s, old)


def _several() -> bool:
    """Whether this is one of several processes, which only a program that has JAX can be."""
    if "jax" not in sys.modules:
        return False
    from jaxresnet.distributed import several

    return several()


def _is_main() -> bool:
    if not _several():
        return True
    from jaxresnet.distributed import is_main

    return is_main()
