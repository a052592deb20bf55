"""One process at a time in a folder: who holds it is named, and nobody holds it after death."""

import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from jaxresnet.errors import ResultsError, StorageError
from jaxresnet.lock import LOCK, lock

HOLD = "import sys, time; from jaxresnet.lock import lock\nwith lock(sys.argv[1]): print(0, flush=True); time.sleep(60)"


@pytest.fixture
def holder(tmp_path):
    """A process of its own that holds `tmp_path / 'out'`."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "out")], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "0\n"
    yield process
    process.kill()
    process.wait()


def test_the_folder_is_made_and_free_again_afterwards(tmp_path):
    for _ in range(2):
        with lock(tmp_path / "new" / "out"):
            assert json.loads((tmp_path / "new" / "out" / LOCK).read_text())["pid"] == os.getpid()
        assert not (tmp_path / "new" / "out" / LOCK).exists()


def test_another_process_is_told_who_holds_it(tmp_path, holder):
    with pytest.raises(ResultsError) as error, lock(tmp_path / "out"):
        raise AssertionError
    text = str(error.value)
    assert f"out: in use by process {holder.pid} on " in text and " since 2" in text and "--out" in text
    assert "-c 'import sys, time" in text  # its command


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_process_holds_nothing(tmp_path, holder, signum):
    holder.send_signal(signum)
    holder.wait()
    told = json.loads((tmp_path / "out" / LOCK).read_text())
    assert told["pid"] == holder.pid  # what it left
    with lock(tmp_path / "out"):
        assert json.loads((tmp_path / "out" / LOCK).read_text())["pid"] == os.getpid()


def test_a_disk_without_room_for_the_lock_is_an_error_in_a_line(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(StorageError, match="No space left"):
        patch.setattr(os, "write", full)
        with lock(tmp_path):
            raise AssertionError
    with lock(tmp_path):  # nobody holds it
        pass


def test_a_lock_whose_file_was_removed_meanwhile_is_taken_anew(tmp_path, monkeypatch):
    """Opened just before its holder gave it back and removed it: a lock on that file would keep nobody out."""
    flock, path = fcntl.flock, tmp_path / LOCK

    def late(file, how):
        monkeypatch.setattr(fcntl, "flock", flock)
        path.unlink()
        flock(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with lock(tmp_path):
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(ResultsError, match="in use"), lock(tmp_path):
            raise AssertionError


def test_another_thread_of_the_process_is_turned_away(tmp_path):
    refused = []

    def try_it():
        try:
            with lock(tmp_path):
                pass
        except ResultsError as e:
            refused.append(str(e))

    with lock(tmp_path):
        thread = threading.Thread(target=try_it)
        thread.start()
        thread.join()
    assert len(refused) == 1 and f"process {os.getpid()}" in refused[0]


def test_an_error_inside_frees_it(tmp_path):
    with pytest.raises(KeyError), lock(tmp_path):
        raise KeyError
    with lock(tmp_path):
        pass


def test_a_file_that_says_nothing_of_the_holder(tmp_path, holder):
    (tmp_path / "out" / LOCK).write_text("{")
    with pytest.raises(ResultsError, match="in use by another process"), lock(tmp_path / "out"):
        raise AssertionError


def test_of_two_that_start_at_once_one_gets_it(tmp_path):
    """Twenty threads, again and again: never two inside."""
    inside, most, start = 0, 0, threading.Barrier(20)
    guard = threading.Lock()

    def take():
        nonlocal inside, most
        start.wait()
        for _ in range(20):
            try:
                with lock(tmp_path):
                    with guard:
                        inside += 1
                        most = max(most, inside)
                    time.sleep(0.0005)
                    with guard:
                        inside -= 1
            except ResultsError:
                pass

    threads = [threading.Thread(target=take) for _ in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1 and inside == 0


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ResultsError, match="file: cannot write results there"), lock(tmp_path / "file"):
        raise AssertionError
    assert (tmp_path / "file").read_text() == "mine"


def test_a_filesystem_without_locks_is_said_and_used(tmp_path, monkeypatch, capsys):
    import fcntl

    def flock(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", flock)
    with lock(tmp_path):
        pass
    assert "this filesystem has no locks (Operation not supported)" in capsys.readouterr().err
