"""A fake archive from a local server is downloaded, or not: whatever comes, the file is whole or not there."""

import contextlib
import functools
import hashlib
import importlib.util
import io
import os
import socket
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from support.fake_server import archive_server, send, unused_port

from jaxresnet.data import cifar10_download
from jaxresnet.data.cifar10_download import download_archive, is_verified
from jaxresnet.errors import DataError


@pytest.fixture
def archive(monkeypatch):
    """Bytes that pass for the official archive; without a server, so that nothing can be downloaded."""
    content = np.random.default_rng(0).bytes(100_000)
    monkeypatch.setattr(cifar10_download, "ARCHIVE_BYTES", len(content))
    monkeypatch.setattr(cifar10_download, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    monkeypatch.setattr(cifar10_download, "ARCHIVE_URL", f"http://127.0.0.1:{unused_port()}/cifar-10-binary.tar.gz")
    return content


@pytest.fixture
def serve(archive, monkeypatch):
    with archive_server(monkeypatch) as start:
        yield start


@pytest.fixture
def target(archive, tmp_path):
    (tmp_path / "downloads").mkdir()
    return tmp_path / "downloads" / "cifar-10-binary.tar.gz"


def test_the_archive_is_the_one_that_tfds_knows():
    package = Path(importlib.util.find_spec("tensorflow_datasets").origin).parent
    known = (package / "url_checksums" / "cifar10.txt").read_text().split()
    assert known[:3] == [
        cifar10_download.ARCHIVE_URL,
        str(cifar10_download.ARCHIVE_BYTES),
        cifar10_download.ARCHIVE_SHA256,
    ]


def test_what_comes_is_what_is_kept(archive, target, serve):
    requests = serve(lambda handler: send(handler, archive))
    assert not is_verified(target)
    download_archive(target)
    assert target.read_bytes() == archive and is_verified(target)
    assert list(target.parent.iterdir()) == [target]
    assert requests == ["/cifar-10-binary.tar.gz"]


def test_is_verified_looks_at_every_byte(archive, target):
    for content in (archive[:-1], archive + b"x", archive[:-1] + bytes([archive[-1] ^ 1]), b""):
        target.write_bytes(content)
        assert not is_verified(target)
    target.write_bytes(archive)
    assert is_verified(target)


def answer_nothing(handler, archive):
    time.sleep(30)


def answer_not_found(handler, archive):
    send(handler, b"no such page", status=404)


def answer_error_page(handler, archive):
    send(handler, b"<html>please log in</html>")


def answer_corrupt(handler, archive):
    send(handler, archive[:1000] + bytes([archive[1000] ^ 1]) + archive[1001:])


def answer_truncated(handler, archive):
    send(handler, archive[:-1000], length=len(archive))


def answer_stalled(handler, archive):
    send(handler, archive[:1000], length=len(archive))
    time.sleep(30)


def answer_endless(handler, archive):
    handler.send_response(200)
    handler.end_headers()
    deadline = time.monotonic() + 30
    try:
        while time.monotonic() < deadline:
            handler.wfile.write(bytes(1 << 16))
    except OSError:
        handler.close_connection = True


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (answer_nothing, "no answer within 0\\.5 seconds|timed out"),
        (answer_not_found, "404"),
        (answer_error_page, "expected [0-9]+ bytes with SHA-256 [0-9a-f]{64}, got 26 bytes with [0-9a-f]{64}"),
        (answer_corrupt, "expected ([0-9]+) bytes with SHA-256 [0-9a-f]{64}, got \\1 bytes"),
        (answer_truncated, "closed 1000 bytes before the end"),
        (answer_stalled, "timed out"),
        (answer_endless, "expected [0-9]+ bytes"),
    ],
)
def test_a_failed_download_leaves_nothing(answer, message, archive, target, serve, monkeypatch):
    monkeypatch.setattr(cifar10_download, "NETWORK_TIMEOUT", 0.5)
    serve(functools.partial(answer, archive=archive))
    start = time.monotonic()
    with pytest.raises(DataError, match=message) as raised:
        download_archive(target)
    assert time.monotonic() - start < 10
    assert cifar10_download.ARCHIVE_URL in str(raised.value)
    assert "cifar-10-binary.tar.gz on another machine" in str(raised.value) and "--data-dir" in str(raised.value)
    assert list(target.parent.iterdir()) == []
    serve(lambda handler: send(handler, archive))  # the next attempt starts afresh
    download_archive(target)
    assert target.read_bytes() == archive and is_verified(target)


def test_no_network_fails_at_once(target):
    start = time.monotonic()
    with pytest.raises(DataError, match=r"cannot download http://127.*--data-dir"):
        download_archive(target)
    assert time.monotonic() - start < 10


def test_the_limit_holds_while_a_name_is_resolved(target, monkeypatch):
    monkeypatch.setattr(cifar10_download, "NETWORK_TIMEOUT", 0.3)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: time.sleep(30))
    start = time.monotonic()
    with pytest.raises(DataError, match=r"no answer within 0\.3 seconds"):
        download_archive(target)
    assert time.monotonic() - start < 10


def test_the_limit_holds_for_a_proxy_that_accepts_and_is_silent(target, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as proxy:  # the kernel accepts, nobody answers
        monkeypatch.setattr(cifar10_download, "ARCHIVE_URL", "https://cifar10.invalid/cifar-10-binary.tar.gz")
        monkeypatch.setattr(cifar10_download, "NETWORK_TIMEOUT", 0.5)
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.setattr(urllib.request, "_opener", None)
        start = time.monotonic()
        with pytest.raises(DataError, match=r"no answer within|timed out"):
            download_archive(target)
        assert time.monotonic() - start < 10


def test_the_real_limit_keeps_the_promise_of_15_seconds():
    assert cifar10_download.NETWORK_TIMEOUT < 14


def test_ctrl_c_leaves_nothing(archive, target, monkeypatch):
    def interrupted(url):
        yield archive[:100]
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10_download, "_fetch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        download_archive(target)
    assert list(target.parent.iterdir()) == []


def test_remove_abandoned_deletes_old_files_and_folders_only(tmp_path):
    paths = [tmp_path / name for name in ("new", "new_folder", "old", "old_folder")]
    for path in paths:
        if path.name.endswith("folder"):
            path.mkdir()
            (path / "shard").write_bytes(b"part")
        else:
            path.write_bytes(b"part")
        age = cifar10_download.ABANDONED_AFTER + (60 if path.name.startswith("old") else -60)
        os.utime(path, (time.time() - age,) * 2)
    cifar10_download.remove_abandoned([*paths, tmp_path / "gone"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "new_folder"]


# --- what the user sees -----------------------------------------------------------------------------------------------


def test_plain_progress_lines_now_and_then(capsys, monkeypatch):
    clock = iter([0.0, 3.0, 11.0, 11.0, 15.0])
    monkeypatch.setattr(cifar10_download.time, "monotonic", lambda: next(clock))
    with cifar10_download.show_progress("Reading", 200) as advance:
        for amount in (50, 50, 50):
            advance(amount)
    assert capsys.readouterr().err.splitlines() == ["Reading ...", "Reading: 50 %"]


def test_a_bar_on_a_terminal(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with cifar10_download.show_progress("Reading", 200) as advance, contextlib.redirect_stderr(io.StringIO()):
        advance(200)
    assert "Reading" in sys.stderr.getvalue() and "100%" in sys.stderr.getvalue()
