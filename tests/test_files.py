"""Atomic files, JSON that may be damaged, and one process at a time in a folder."""

import errno
import os
import subprocess
import sys
import threading

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


@pytest.fixture
def holder(tmp_path):
    """Another process that holds `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE)
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_the_holder_is_named(tmp_path, holder):
    with (
        pytest.raises(ResultsError, match=rf"in use by process {holder.pid} on .* since (.|\n)*Wait for it"),
        lock(tmp_path),
    ):
        pass


def test_a_killed_holder_leaves_no_lock(tmp_path, holder):
    holder.kill()
    holder.wait()
    with lock(tmp_path):
        pass


def test_another_thread_is_turned_away(tmp_path):
    refused = []

    def enter():
        try:
            with lock(tmp_path):
                pass
        except ResultsError as e:
            refused.append(str(e))

    with lock(tmp_path):
        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
    assert f"process {os.getpid()}" in refused[0]
    with lock(tmp_path):  # given back
        pass


def test_a_holder_that_has_not_said_its_name_yet(tmp_path, holder):
    (tmp_path / ".holder.json").write_text("")
    with pytest.raises(ResultsError, match="in use by another process"), lock(tmp_path):
        pass


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    def no_locks(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", no_locks)
    with lock(tmp_path):
        pass
    assert "no locks here (No locks available)" in capsys.readouterr().out


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(StorageError, match="cannot be written to"),
        lock(tmp_path / "file" / "x"),
    ):
        pass


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
    ("text", "reason"),
    [
        ('{"a": 1', "line 1: cut off or damaged"),
        ("", "line 1: empty"),
        ('{"a": NaN}', "'a' is nan, not a finite number"),
        ('{"a": 9223372036854775808}', "'a' is a whole number of more than 63 bits"),
        ('{"a": ["\\u001b[2J"]}', "'a' holds the character '\\\\x1b', which cannot be printed"),
        ('{"\\u0007": 1}', "a key holds the character"),
        ("[" * 100_000, "damaged"),
        ('{"a": ' + "1" * 10_000 + "}", "damaged"),
    ],
)
def test_damaged_json_is_named(tmp_path, text, reason):
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(ResultsError, match=reason) as e:
        read_json(path, "delete it")
    assert str(e.value).startswith(str(path)) and str(e.value).endswith("delete it")


def test_json_is_read_back(tmp_path):
    value = {"a": [1, 2.5, None, True, "ä\n"], "b": {}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json", "") == value


def test_bytes_that_are_no_text(tmp_path):
    (tmp_path / "x.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ResultsError, match="not a text file"):
        read_json(tmp_path / "x.json", "")
