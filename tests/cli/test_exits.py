"""How a command ends: signals, closed pipes and errors."""

import shlex
import signal
import subprocess
import sys
import threading

import pytest
from support.terminal import frames

from jaxresnet.cli import exits
from jaxresnet.cli.exits import stop_on_signal
from jaxresnet.comparison.progress import Job, Progress

SAID = (
    "stopping: saves after the steps under way (on accelerators after this epoch; while compiling, after that); "
    "press again to stop without saving"
)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=lambda s: s.name)
def test_the_first_signal_asks_to_stop_and_the_second_ctrl_c_ends(signum, capsys):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with stop_on_signal() as should_stop:
        assert not should_stop()
        signal.raise_signal(signum)
        assert should_stop() and capsys.readouterr().err.strip() == SAID
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    with stop_on_signal(threads=True):
        signal.raise_signal(signal.SIGINT)
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL, "the second one waits for no thread"


def test_with_several_processes_ctrl_c_is_sent_on_to_the_service_that_tells_all(monkeypatch):
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("SIGTERM"))  # in the place of JAX's
    monkeypatch.setattr(exits, "_several", lambda: True)
    with stop_on_signal():
        signal.raise_signal(signal.SIGINT)
    signal.signal(signal.SIGTERM, before)
    assert heard == ["SIGTERM"]


def test_ctrl_c_says_so_in_a_line_of_its_own_and_waits_for_no_lock_of_the_live_line(terminal):
    """Another thread, as the one that draws the live line, holds its locks while the signal comes."""
    screen, held, release = terminal(120), threading.Event(), threading.Event()
    with stop_on_signal() as should_stop, Progress([Job("Adam", 0, 800, 2, 1000)]) as progress:

        def hold():
            with progress._bar._lock, progress._bar.live._lock:
                held.set()
                release.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10)
        signal.raise_signal(signal.SIGINT)
        waited = not holder.is_alive()
        release.set()
        holder.join()
        assert should_stop() and not waited
    assert SAID in frames(screen.text())


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        ("while True: print(1, flush=True)", 75, "Stopped, nobody reads the output any more. The same command"),
        ("print(1, flush=True); os.kill(os.getpid(), 15); time.sleep(9)", 75, "Stopped. The same command continues:"),
        ("print(1, flush=True); raise jr.UserError('what to do')", 2, "error: what to do"),
        ("while True: print(1, flush=True)", 141, ""),
        ("print(1, flush=True); os.kill(os.getpid(), 15); time.sleep(9)", 130, ""),
    ],
    ids=["closed pipe", "SIGTERM", "user's error", "closed pipe of a short command", "SIGTERM to a short command"],
)
def test_a_command_ends_with_its_status_and_a_line_and_names_the_command_that_continues(tmp_path, body, status, said):
    start = "import os, time, jaxresnet as jr\nfrom jaxresnet.cli.exits import exit_status\nwith exit_status({}):\n "
    (tmp_path / "a script.py").write_text(start.format(status < 128) + body)
    command = [sys.executable, str(tmp_path / "a script.py"), "--out", "a b"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait() == status
    assert (said in err if said else not err) and "Traceback" not in err and "Exception ignored" not in err
    assert (shlex.split(err.splitlines()[-1]) == command if err else False) == (status == 75)
