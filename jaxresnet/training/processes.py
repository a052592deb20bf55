"""Several processes that share one run: how they find each other, and how they agree.

Every process runs the same program on its own devices, and `jax.pmap` joins these. Only process 0, the main one,
touches the disk and prints; it tells the others what they need. With one process nothing here does anything.
"""

import json
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, redirect_stdout
from functools import cache
from typing import Any, TypeVar

import jax
import numpy as np

from jaxresnet.config import differing_fields
from jaxresnet.errors import ConfigError, UserError
from jaxresnet.training.peers import PeerLost, Peers, connect, listen

T = TypeVar("T")

HEARTBEAT_SECONDS = 50  # JAX's own, for when ours, which come first and say who it was, fail
SECONDS_TO_WAIT_QUIETLY = 20  # for the others to start
LIFELINE = "JAXRESNET_LIFELINE"  # a file descriptor of the launcher's, which ends when that does
PEERS_KEY = "jaxresnet/peers"  # in the coordinator's key-value store


@contextmanager
def distributed() -> Iterator[None]:
    """Around a whole program, before it touches a device: joins the other processes, see `initialize`, and ends with
    them. The main one alone prints to stdout. When one is lost, the others say which and end.

    With one process it does nothing.
    """
    _end_with_launcher()
    initialize()
    try:
        with ExitStack() as held:
            if not is_main():
                held.enter_context(redirect_stdout(held.enter_context(open(os.devnull, "w"))))
            yield
        gather(None)  # the main one may have more to do
    except (PeerLost, jax.errors.JaxRuntimeError) as e:
        if not several():
            raise
        # A collective that failed is a consequence: the reason is told.
        if lost := _peers().wait_for_loss() or (str(e) if isinstance(e, PeerLost) else None):
            _peers().lost = lost
            _peers().leave()
        raise


def initialize() -> None:
    """Join the other processes of this run, where the environment says that there are any. Before JAX touches a device.

    JAX_COORDINATOR_ADDRESS=host:port, with JAX_NUM_PROCESSES and JAX_PROCESS_ID unless a cluster that JAX knows tells
    them; or JAXRESNET_DISTRIBUTED=1, where JAX finds its peers by itself: SLURM, Open MPI, Kubernetes, TPU pods.
    Without either, and when called again, it does nothing. Raises ConfigError where they do not find each other.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not address and os.environ.get("JAXRESNET_DISTRIBUTED", "0") in ("", "0"):
        return
    if jax.distributed.is_initialized():
        return
    # Its handler of SIGTERM would take the signal from ours; the processes agree on stopping through `gather`.
    jax.config.update("jax_enable_preemption_service", False)
    waiting = threading.Timer(SECONDS_TO_WAIT_QUIETLY, _say_waiting, [address])
    waiting.daemon = True
    waiting.start()
    try:
        jax.distributed.initialize(
            address,
            _integer("JAX_NUM_PROCESSES"),
            _integer("JAX_PROCESS_ID"),
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            shutdown_timeout_seconds=HEARTBEAT_SECONDS,  # all arrive together, see `distributed`
        )
    except (ValueError, TypeError, RuntimeError) as e:
        given = " ".join(f"{k}={v}" for k, v in os.environ.items() if k.startswith(("JAX_", "JAXRESNET_")))
        raise ConfigError(
            f"the processes of this run did not find each other ({str(e).splitlines()[0]}); the environment: {given}. "
            "JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) are needed, or "
            "JAXRESNET_DISTRIBUTED=1 on a cluster that JAX knows; unset them to run alone"
        ) from e
    finally:
        waiting.cancel()
    if jax.process_count() > 1:
        if jax.default_backend() == "cpu":
            _silence_gloo()
        _peers()


def _end_with_launcher() -> None:
    """Take the end of `launch`, even by `kill -9`, for a request to stop: nobody would know of this process."""
    if LIFELINE not in os.environ:
        return
    descriptor = int(os.environ[LIFELINE])

    def watch() -> None:
        os.read(descriptor, 1)  # nothing is ever written: it returns when the launcher is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=watch, daemon=True, name="lifeline").start()


def several() -> bool:
    """Whether this run has several processes."""
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_main() -> bool:
    """Whether this is the process that touches the disk and prints."""
    return not several() or jax.process_index() == 0


def from_main(fn: Callable[[], T]) -> T:
    """What `fn` returns in the main process, in all of them; JSON types. It is called in the main process alone.

    A UserError there is raised in every process; after any other exception there PeerLost is raised in the others.
    """
    return _from_main(fn, lambda value: json.dumps(value).encode(), json.loads)


def arrays_from_main(fn: Callable[[], Any], like: Any) -> Any:
    """As `from_main`, for a tree of arrays with the structure, shapes and dtypes of `like`, bit for bit, in NumPy."""

    def encode(tree: Any) -> bytes:
        return b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(tree))

    def decode(data: bytes) -> Any:
        arrays, start = [], 0
        for leaf in jax.tree.leaves(like):
            count = int(np.prod(leaf.shape))
            arrays.append(np.frombuffer(data, leaf.dtype, count, start).reshape(leaf.shape))
            start += count * np.dtype(leaf.dtype).itemsize
        return jax.tree.unflatten(jax.tree.structure(like), arrays)

    return jax.tree.map(np.asarray, _from_main(fn, encode, decode))


def _from_main(fn: Callable[[], Any], encode: Callable[[Any], bytes], decode: Callable[[bytes], Any]) -> Any:
    if not several():
        return fn()
    peers = _peers()
    if peers.rank > 0:
        kind, told = _split(peers.receive(0), b"ve")
        if kind == b"v":
            return decode(told)
        raise _error(json.loads(told), peers)
    try:
        value = fn()
        message = b"v" + encode(value)
    except Exception as e:
        _tell_all(peers, b"e" + json.dumps([type(e).__name__, str(e), isinstance(e, UserError)]).encode())
        raise
    _tell_all(peers, message)
    return value


def gather(value: T) -> list[T]:
    """The `value` of every process, by its number; JSON types. All wait for the last."""
    if not several():
        return [value]
    peers = _peers()
    if peers.rank > 0:
        peers.send(0, b"g" + json.dumps(value).encode())
        return json.loads(_split(peers.receive(0), b"g")[1])
    others = [json.loads(_split(peers.receive(peer), b"g")[1]) for peer in range(1, peers.count)]
    values = [value, *others]
    _tell_all(peers, b"g" + json.dumps(values).encode())
    return values


def together(fn: Callable[[], T]) -> T:
    """What `fn` returns, called in every process, the main one first: what that leaves on disk, the others find there.

    A UserError in any is raised in all.
    """
    if not several():
        return fn()
    result, problem = None, None
    for turn in (True, False):
        try:
            if is_main() == turn:
                result = fn()
        except UserError as e:
            problem = [type(e).__name__, str(e), True]
        problems = [(rank, p) for rank, p in enumerate(gather(problem)) if p]
        if problems:
            rank, (name, text, _) = problems[0]
            peers = _peers()
            raise _error([name, text if rank == 0 else f"{peers.names[rank]}: {text}", True], peers)
    return result  # type: ignore[return-value]


def check_same(what: str, value: Mapping[str, Any]) -> None:
    """Raise ConfigError unless `value`, of JSON types, is the same in every process. what: what it describes."""
    if not several():
        return
    told = gather(dict(value))
    for rank, theirs in enumerate(told):
        different = [name for name in told[0] if theirs.get(name) != told[0][name]]
        if different:
            names = _peers().names
            lines = differing_fields({n: told[0][n] for n in different}, {n: theirs.get(n) for n in different})
            raise ConfigError(
                f"{what} must be the same in all processes; {names[0]} -> {names[rank]}: {'; '.join(lines)}"
            )


@contextmanager
def on_main(context: AbstractContextManager[Any]) -> Iterator[None]:
    """Hold `context` in the main process alone. An error on entering it is raised in every process."""
    with ExitStack() as held:

        def enter() -> None:
            held.enter_context(context)

        from_main(enter)
        yield


@cache
def _peers() -> Peers:
    """The connections to the other processes, made when they are first needed."""
    # Neither is public: where process 0 can be reached, and the key-value store that all processes reach already.
    from jax._src import distributed

    client, address = distributed.global_state.client, str(distributed.global_state.coordinator_address)
    assert client is not None
    rank, count = jax.process_index(), jax.process_count()
    if rank > 0:
        return connect(rank, count, client.blocking_key_value_get(PEERS_KEY, 300_000))  # milliseconds
    told, accept = listen(count, address.rpartition(":")[0])
    client.key_value_set(PEERS_KEY, told)
    return accept()


def _tell_all(peers: Peers, message: bytes) -> None:
    for peer in range(1, peers.count):
        peers.send(peer, message)


def _split(message: bytes, expected: bytes) -> tuple[bytes, bytes]:
    if message[:1] not in [expected[i : i + 1] for i in range(len(expected))]:
        raise RuntimeError("the processes of this run do not do the same thing: start all with the same command")
    return message[:1], message[1:]


def _error(told: list[Any], peers: Peers) -> Exception:
    """The error that another process told of: of the same class for a UserError."""
    name, text, of_user = told
    if not of_user:
        return PeerLost(f"{peers.names[0]} failed: {name}: {text}")
    classes = [UserError]
    for known in classes:  # grows while it is walked
        classes += known.__subclasses__()
    kind = next((known for known in classes if known.__name__ == name), UserError)
    return kind.__new__(kind, text)


def _say_waiting(address: str | None) -> None:
    print(f"waiting for the other processes of this run at {address or 'an address that JAX found'}", file=sys.stderr)


def _integer(name: str) -> int | None:
    value = os.environ.get(name)
    if value is None:
        return None
    if not value.isdecimal():
        raise ConfigError(f"{name}={value!r}: must be a whole number")
    return int(value)


def _silence_gloo() -> None:
    """Gloo prints a line for every group of devices to C++'s stdout, between the tables. Python keeps its own."""
    sys.stdout.flush()
    sys.stdout = os.fdopen(os.dup(1), "w", buffering=1, encoding=sys.stdout.encoding, errors=sys.stdout.errors)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 1)
