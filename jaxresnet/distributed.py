"""Several processes that share one run, by JAX's own means and under the scheduler that started them.

Every process runs the same program on its own devices, and `jax.pmap` joins these. Process 0 alone prints and decides;
all see the same file system. With one process nothing here does anything.
"""

import itertools
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from typing import Any, TypeVar

import jax
import numpy as np

from jaxresnet.config import differing_fields
from jaxresnet.errors import ConfigError, UserError, first_line

T = TypeVar("T")

_questions = itertools.count()  # JAX's preemption service asks for consecutive numbers, the same in every process


@contextmanager
def distributed() -> Iterator[None]:
    """Around a whole program, before it touches a device: join the other processes; only process 0 prints to stdout.

    JAXRESNET_DISTRIBUTED names how they find each other: `slurm`, `ompi`, `mpi4py`, `k8s`, ... (JAX's
    cluster_detection_method), or `auto`. Without a cluster, JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and
    JAX_PROCESS_ID say it. With neither there is one process. Raises ConfigError where they do not find each other.
    """
    method = os.environ.get("JAXRESNET_DISTRIBUTED", "")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if (method or address) and not jax.distributed.is_initialized():
        try:
            jax.distributed.initialize(
                address,
                _integer("JAX_NUM_PROCESSES"),
                _integer("JAX_PROCESS_ID"),
                cluster_detection_method=method if method not in ("", "auto") else None,
            )
        except (KeyError, ValueError, TypeError, RuntimeError) as e:
            raise ConfigError(
                f"the processes of this run did not find each other ({first_line(e)}). Set "
                "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0), or on a cluster "
                "JAXRESNET_DISTRIBUTED=auto, or mpi4py under MPI; unset them to run alone"
            ) from e
    with ExitStack() as held:
        if not is_main():
            held.enter_context(redirect_stdout(held.enter_context(open(os.devnull, "w"))))
        yield


def _integer(name: str) -> int | None:
    value = os.environ.get(name)
    if value is not None and not value.isdecimal():
        raise ConfigError(f"{name}={value!r}: must be a whole number")
    return None if value is None else int(value)


def several() -> bool:
    """Whether this run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that prints and decides."""
    return not several() or jax.process_index() == 0


def from_main(fn: Callable[[], T]) -> T:
    """What `fn` returns in process 0, in all of them; JSON types. It is called in process 0 alone.

    A UserError there is raised in every process, any other exception as RuntimeError in the others.
    """
    if not several():
        return fn()
    told, raised = b"", None
    if is_main():
        try:
            told = json.dumps({"value": fn()}).encode()
        except Exception as e:
            raised = e
            kind = type(e).__name__ if isinstance(e, UserError) else None
            told = json.dumps({"error": kind, "text": str(e)}).encode()
    message = json.loads(_broadcast(told))
    if raised is not None:
        raise raised
    if "value" in message:
        return message["value"]
    if message["error"] is None:
        raise RuntimeError(f"process 0 failed: {message['text']}")
    raise _user_error(message["error"], message["text"])


def _broadcast(data: bytes) -> bytes:
    """Those of process 0, in all processes."""
    from jax.experimental.multihost_utils import broadcast_one_to_all

    length = int(broadcast_one_to_all(np.int32(len(data))))
    buffer = np.zeros(length, np.uint8)
    if is_main():
        buffer[:] = np.frombuffer(data, np.uint8)
    return bytes(broadcast_one_to_all(buffer))


def _user_error(name: str, text: str) -> UserError:
    classes = [UserError]
    for known in classes:  # grows while it is walked
        classes += known.__subclasses__()
    kind = next((known for known in classes if known.__name__ == name), UserError)
    return kind.__new__(kind, text)


def main_first(fn: Callable[[], T]) -> T:
    """What `fn` returns, called in every process, process 0 first: what that leaves on disk, the others find there."""
    made: list[T] = []
    from_main(lambda: made.append(fn()))
    return made[0] if made else fn()


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise ConfigError unless `value`, of JSON types, is the same in every process. what: what it describes."""
    if not several():
        return
    from jax.experimental.multihost_utils import process_allgather

    theirs = from_main(lambda: dict(value))
    lines = differing_fields(theirs, json.loads(json.dumps(dict(value))))
    differs = process_allgather(np.bool_(bool(lines)))
    if differs.any():
        which = "; ".join(lines) or f"process {int(differs.argmax())} differs"
        raise ConfigError(f"{what} must be the same in all processes: {which}")


@contextmanager
def on_main(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Hold `context` in process 0 alone. A UserError on entering it is raised in every process."""
    with ExitStack() as held:

        def enter() -> None:
            held.enter_context(context)

        from_main(enter)
        yield


def agreed(should_stop: Callable[[], bool]) -> Callable[[], bool]:
    """`should_stop`, with the same answer in every process.

    With several, SIGTERM to any of them is the request, which JAX's preemption service carries to all."""
    if not several():
        return should_stop
    from jax.experimental.multihost_utils import reached_preemption_sync_point

    return lambda: reached_preemption_sync_point(next(_questions))
