"""Download the official CIFAR-10 archive (170 MB): verified, whole or not at all, and quick to fail offline."""

import contextlib
import hashlib
import http.client
import os
import queue
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from jaxresnet.errors import DataError

# The official archive, as TFDS knows it (tensorflow_datasets/url_checksums/cifar10.txt).
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

UNFINISHED = f"{ARCHIVE_NAME}.*.incomplete"  # pattern of the names of unfinished downloads

NETWORK_TIMEOUT = 12.0  # s until the first byte, and s without a byte after that
PROGRESS_INTERVAL = 10.0  # s between progress lines when stderr is not a terminal
ABANDONED_AFTER = 3600.0  # s without a change after which a temporary file belongs to nobody

OWN_COPY = "with --data-dir (data_dir=... in Python) or $JAXRESNET_DATA"
GET_IT = f"Try again, or get {ARCHIVE_NAME} on another machine, put it in a folder, and pass that folder {OWN_COPY}."


def is_verified(archive: Path) -> bool:
    """Whether an earlier call, which did not finish preparing, left the whole archive."""
    if not archive.is_file() or archive.stat().st_size != ARCHIVE_BYTES:
        return False
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == ARCHIVE_SHA256


def download_archive(target: Path) -> None:
    """Fetch the archive from ARCHIVE_URL into `target`, which appears whole and verified or not at all.

    The folder of `target` must exist. Raises DataError when the network fails (within 15 seconds when there is none) or
    when something else came, OSError when the file cannot be written.
    """
    descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".incomplete", dir=target.parent)
    digest, received = hashlib.sha256(), 0
    try:
        what = f"Downloading CIFAR-10 ({ARCHIVE_BYTES / 1e6:.0f} MB)"
        with open(descriptor, "wb") as file, show_progress(what, ARCHIVE_BYTES) as advance:
            for chunk in _fetch(ARCHIVE_URL):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                advance(len(chunk))
                if received > ARCHIVE_BYTES:
                    break  # something else, perhaps endless
        if digest.hexdigest() != ARCHIVE_SHA256:
            raise DataError(
                f"{ARCHIVE_URL}: what came is not the CIFAR-10 archive: expected {ARCHIVE_BYTES} bytes with SHA-256 "
                f"{ARCHIVE_SHA256}, got {received} bytes with {digest.hexdigest()}. {GET_IT}"
            )
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def remove_abandoned(paths: Iterable[Path]) -> None:
    """Delete those of `paths`, unfinished files and folders, that a process which was killed left behind."""
    for path in paths:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@contextlib.contextmanager
def show_progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(amount)`, of `total`: a bar on a terminal, otherwise a plain line now and then, on stderr."""
    stream = sys.stderr  # as it is now: the caller may silence it meanwhile
    if stream.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=stream)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    done, last_line = 0, time.monotonic()
    print(f"{what} ...", file=stream, flush=True)

    def advance(amount: int) -> None:
        nonlocal done, last_line
        done += amount
        if time.monotonic() - last_line >= PROGRESS_INTERVAL:
            last_line = time.monotonic()
            print(f"{what}: {100 * done // total} %", file=stream, flush=True)

    yield advance


# --- the network ------------------------------------------------------------------------------------------------------


def _fetch(url: str) -> Iterator[bytes]:
    """The bytes at `url` in chunks; every failure of the network is a DataError."""
    try:
        response, chunk = _open(url)
        with response:
            while chunk:
                yield chunk
                chunk = response.read1(1 << 18)
            if response.length:  # what is left of Content-Length
                raise ConnectionError(f"the connection closed {response.length} bytes before the end")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error  # without "<urlopen error ...>"
        raise DataError(f"cannot download {url} ({reason or type(error).__name__}). {GET_IT}") from error


def _open(url: str) -> tuple[http.client.HTTPResponse, bytes]:
    """The response and its first bytes, or an OSError after NETWORK_TIMEOUT.

    urllib's own timeout holds for one socket operation and not for resolving a name, so that several addresses, a
    proxy and redirects could add up to minutes: the thread makes it a limit on the whole.
    """
    outcome: queue.Queue = queue.Queue()

    def connect() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "jaxresnet"})
            response = urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT)
            outcome.put((response, response.read1(1 << 18)))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = outcome.get(timeout=NETWORK_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {NETWORK_TIMEOUT:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result
