"""Connections between the processes that share one run: what they tell one another, and who is still there.

A star around process 0, over TCP. The kernel closes the connections of a process that ends, however that ends, so the
others hear of it at once and know which one it was; one that hangs, or whose machine is gone, falls silent. JAX alone
would leave them in a collective that fails or never returns, and say after its heartbeats' time that a task has died.
"""

import atexit
import ctypes
import json
import os
import platform
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client, Connection, Listener
from queue import SimpleQueue
from typing import Any

EXIT_FAILED = 1
SECONDS_TO_END = 10  # after a process was lost, for this one to end in its own way
SECONDS_TO_FOLLOW = 30  # after another process has ended in its own way, for this one to do so
SECONDS_BETWEEN_BEATS, SECONDS_OF_SILENCE = 5, 25
MESSAGE, LOST, LEFT, BEAT = b"m", b"l", b"e", b"b"  # first byte of what is sent


class PeerLost(Exception):
    """Another process ended while this one still needed it. The message names it."""


class Peers:
    """The processes of a run, numbered from 0; this one is `rank` of `count`.

    names: of every process, for people: number, process id and machine. lost: the one that was lost first, in words.
    Connections are authenticated with a key that `listen` makes and `connect` needs; what is sent is bytes, never
    objects. Only the main thread sends and receives.
    """

    def __init__(self, rank: int, connections: dict[int, Connection], names: list[str]):
        self.rank, self.count, self.names = rank, len(names), names
        self.lost: str | None = None
        self._connections = connections
        self._sending = {peer: threading.Lock() for peer in connections}
        self._inbox: dict[int, SimpleQueue[bytes | None]] = {peer: SimpleQueue() for peer in connections}
        self._left: set[int] = set()
        self._closed = self._said = False
        self._lock, self._lost = threading.Lock(), threading.Event()
        for peer, connection in connections.items():
            _send_small_messages_at_once(connection)
            _in_background(self._read, peer)
            _in_background(self._beat, peer)  # each by itself: one that hangs may keep its sender waiting
        atexit.register(self.close)  # before JAX's, which waits for all processes
        self._abort_handler = _on_abort(self._say_when_aborted)

    def send(self, peer: int, payload: bytes) -> None:
        try:
            self._send(peer, MESSAGE + payload)
        except OSError:
            self._lost.wait(SECONDS_TO_END)
            raise PeerLost(self.lost or self._gone(peer)) from None

    def receive(self, peer: int) -> bytes:
        """The next message of `peer`, waited for as long as it takes. Raises PeerLost when a process ends."""
        payload = self._inbox[peer].get()
        if payload is None:
            self._inbox[peer].put(None)
            raise PeerLost(self.lost or f"{self.names[peer]} ended before this one")
        return payload

    def wait_for_loss(self) -> str | None:
        """Which process was lost, if one was: a collective that failed may be heard of before its reason is."""
        self._lost.wait(SECONDS_TO_END / 2)
        return self.lost

    def say(self) -> None:
        """Print the loss to stderr, once."""
        with self._lock:
            said, self._said = self._said, True
        if not said:
            text = (
                f"error: {self.lost}. {self.names[self.rank]} ends too: see what that one printed last. The same "
                "command, started again for all processes, continues\n"
            )
            os.write(2, text.encode())

    def leave(self) -> None:
        """End this process now, without waiting for any other, after the loss of one."""
        self.say()
        _flush()
        os._exit(EXIT_FAILED)

    def close(self) -> None:
        """Tell the others that this process ends, and with which error if it does not end in its own way."""
        if self.lost:
            self.leave()
        self._closed = True
        error = getattr(sys, "last_value", None)  # an exception that nobody caught
        last = LEFT if error is None else LOST + f"{self.names[self.rank]} failed: {_in_words(error)}".encode()
        self._tell_all(last)
        if error is not None:  # which Python has printed; JAX would wait for the others first
            _flush()
            os._exit(EXIT_FAILED)

    def _read(self, peer: int) -> None:
        connection = self._connections[peer]
        while True:
            try:
                if not connection.poll(SECONDS_OF_SILENCE):
                    self._lose(f"{self.names[peer]} has not answered for {SECONDS_OF_SILENCE} seconds")
                    return
                frame = connection.recv_bytes()
            except (EOFError, OSError):
                if peer not in self._left:
                    self._lose(self._gone(peer))
                return
            kind, payload = frame[:1], frame[1:]
            if kind == MESSAGE:
                self._inbox[peer].put(payload)
            elif kind == LOST:
                self._lose(payload.decode())
            elif kind == LEFT:
                self._left.add(peer)
                self._inbox[peer].put(None)
                _after(SECONDS_TO_FOLLOW, lambda: self._lose(f"{self.names[peer]} ended before this one"))

    def _beat(self, peer: int) -> None:
        with suppress(OSError):  # it may be gone
            while True:
                time.sleep(SECONDS_BETWEEN_BEATS)
                self._send(peer, BEAT)

    def _send(self, peer: int, frame: bytes) -> None:
        with self._sending[peer]:
            self._connections[peer].send_bytes(frame)

    def _tell_all(self, frame: bytes) -> None:
        """Within a second, or not: one that hangs reads nothing."""

        def tell(peer: int) -> None:
            with suppress(OSError):  # it may be gone
                self._send(peer, frame)

        telling = [_in_background(tell, peer) for peer in self._connections]
        deadline = time.monotonic() + 1
        for thread in telling:
            thread.join(max(0, deadline - time.monotonic()))

    def _gone(self, peer: int) -> str:
        return f"{self.names[peer]} is gone: killed, crashed, or cut off"

    def _lose(self, text: str) -> None:
        with self._lock:
            if self.lost or self._closed:
                return
            self.lost = text
        _after(SECONDS_TO_END, self.leave)  # the main thread may wait in a collective for ever
        if self.rank == 0:
            self._tell_all(LOST + text.encode())
        self._lost.set()  # from here on the main thread may end this process
        for inbox in self._inbox.values():
            inbox.put(None)

    def _say_when_aborted(self) -> None:
        """JAX's client aborts the process when process 0, its coordinator, is gone, and says little."""
        if self._lost.wait(1):
            self.leave()


def listen(count: int, host: str) -> tuple[str, Callable[[], Peers]]:
    """For process 0: (what `connect` needs, a function that waits for the other `count - 1`).

    host: of the coordinator, as the others know it.
    """
    key = secrets.token_hex(16)
    bind = host if host == "localhost" or host.startswith("127.") else "0.0.0.0"
    listener = Listener((bind, 0), backlog=count, authkey=key.encode())
    told = json.dumps({"host": host, "port": listener.address[1], "key": key})

    def accept() -> Peers:
        connections: dict[int, Connection] = {}
        names = {0: _name(0, count)}
        while len(connections) < count - 1:
            try:
                connection = listener.accept()
                rank, name = json.loads(connection.recv_bytes())
            except (AuthenticationError, EOFError, OSError):
                continue  # not one of ours
            connections[rank], names[rank] = connection, name
        listener.close()
        ordered = [names[rank] for rank in range(count)]
        for connection in connections.values():
            connection.send_bytes(json.dumps(ordered).encode())
        return Peers(0, connections, ordered)

    return told, accept


def connect(rank: int, count: int, told: str) -> Peers:
    """For the others: the connection to process 0. told: by its `listen`."""
    where = json.loads(told)
    connection = Client((where["host"], where["port"]), authkey=where["key"].encode())
    connection.send_bytes(json.dumps([rank, _name(rank, count)]).encode())
    return Peers(rank, {0: connection}, json.loads(connection.recv_bytes()))


def _name(rank: int, count: int) -> str:
    return f"process {rank} of {count} (pid {os.getpid()} on {platform.node()})"


def _in_words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0]


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _in_background(fn: Callable[[int], None], peer: int) -> threading.Thread:
    thread = threading.Thread(target=fn, args=(peer,), daemon=True, name=f"peer {peer}")
    thread.start()
    return thread


def _after(seconds: float, fn: Callable[[], Any]) -> None:
    timer = threading.Timer(seconds, fn)
    timer.daemon = True
    timer.start()


def _send_small_messages_at_once(connection: Connection) -> None:
    with socket.socket(fileno=os.dup(connection.fileno())) as s:
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def _on_abort(fn: Callable[[], None]) -> Any:
    """Call `fn` when C++ calls abort(), which Python's own signal handlers never see. Returns what must be kept."""
    if os.name != "posix":
        return None
    handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda signum: fn())
    ctypes.CDLL(None).signal(signal.SIGABRT, handler)
    return handler
