"""Atomic files, JSON that may be damaged, and one process at a time in a folder."""

import errno
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import filelock
import pytest

from jaxresnet.errors import ResultsError, StorageError
from jaxresnet.files import lock, read_json, write_bytes, write_json, write_rows

HOLD = """
import sys, time
from jaxresnet.files import lock
with lock(sys.argv[1]):
    print(0, flush=True)
    time.sleep(60)
"""


def test_the_holder_is_named_and_killed_it_leaves_no_lock(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    try:
        process.stdout.readline()
        with pytest.raises(ResultsError, match=rf"in use by process {process.pid} on .* since (.|\n)*Wait for it"):
            lock(tmp_path).__enter__()
        (tmp_path / ".holder.json").write_text("")  # it has not written its name yet
        with pytest.raises(ResultsError, match="in use by another process"):
            lock(tmp_path).__enter__()
    finally:
        process.kill()
        process.wait()
    with lock(tmp_path):
        pass


def test_another_thread_is_turned_away(tmp_path):
    with lock(tmp_path), ThreadPoolExecutor(1) as other:
        refused = other.submit(lock(tmp_path).__enter__).exception()
    assert isinstance(refused, ResultsError) and f"process {os.getpid()}" in str(refused)
    with lock(tmp_path):  # given back
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with lock(tmp_path):
        pass
    assert "no locks here (No locks available)" in capsys.readouterr().err


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot be written to"):
        lock(tmp_path / "file" / "x").__enter__()


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "new" / "a.bin"
    write_bytes(path, b"old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError, match=r"a\.bin: cannot be written \(No space left on device\)"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["a.bin"]


def test_json_has_no_nan(tmp_path):
    with pytest.raises(ValueError, match=r"x\.json: not written"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    with pytest.raises(ValueError, match=r"x\.jsonl: not written"):
        write_rows(tmp_path / "x.jsonl", [{"loss": float("inf")}])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b'{"a": 1,\n "b": ', ", line 2: cut off or damaged"),
        (b"", ", line 1: empty"),
        (b'{"a": NaN}', r": damaged \(NaN is not a finite number\)"),
        (b'[-Infinity, "NaN"]', r": damaged \(-Infinity is not a finite number\)"),
        (b"\xff\xfe", ": not a text file"),
    ],
)
def test_damaged_json_is_named(tmp_path, content, reason):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ResultsError, match=rf"^{path}{reason}.*; .*delete it$"):
        read_json(path, "delete it")
