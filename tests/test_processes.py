"""What processes tell one another, and what they say when one of them is gone. Real processes throughout."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import jaxresnet.training.peers
from jaxresnet.cli.launch import environments_of
from jaxresnet.training.processes import (
    arrays_from_main,
    check_same,
    distributed,
    from_main,
    gather,
    is_main,
    several,
    together,
)

# ------------------------------------------------------------------------------------------------ connections alone

PEERS = f"""
import importlib.util, os, sys, threading, time
from pathlib import Path
# By its path: the package would import JAX, which these need not wait for.
spec = importlib.util.spec_from_file_location("peers", {jaxresnet.training.peers.__file__!r})
peers = importlib.util.module_from_spec(spec)
spec.loader.exec_module(peers)
peers.SECONDS_TO_END = peers.SECONDS_TO_FOLLOW = 1
peers.SECONDS_BETWEEN_BEATS, peers.SECONDS_OF_SILENCE = 0.1, 2
rank, count, told = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
if rank == 0:
    text, accept = peers.listen(count, "localhost")
    told.with_suffix(".tmp").write_text(text)
    told.with_suffix(".tmp").rename(told)
    here = accept()
else:
    while not told.exists():
        time.sleep(0.01)
    here = peers.connect(rank, count, told.read_text())
def send(payload):
    for peer in range(1, count) if rank == 0 else [0]:
        here.send(peer, payload)
def receive():
    return [here.receive(peer) for peer in (range(1, count) if rank == 0 else [0])]
print("joined", flush=True)
"""


def start_peers(body, tmp_path, count=3, ranks=None):
    script = tmp_path / "peers.py"
    script.write_text(PEERS + body)
    return [
        subprocess.Popen(
            [sys.executable, str(script), str(rank), str(count), str(tmp_path / "told")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (range(count) if ranks is None else ranks)
    ]


def ends(processes):
    """[(exit status, stdout, stderr), ...]"""
    outputs = [process.communicate(timeout=30) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_messages_arrive_whole_and_in_order(tmp_path):
    body = """
send(b"from %d" % rank)
send(bytes(range(256)) * 100_000)
print([m.decode() for m in receive()], [m == bytes(range(256)) * 100_000 for m in receive()])
"""
    told = [out.splitlines()[1] for code, out, err in ends(start_peers(body, tmp_path)) if (code, err) == (0, "")]
    assert told == ["['from 1', 'from 2'] [True, True]", "['from 0'] [True]", "['from 0'] [True]"]


@pytest.mark.parametrize("rank", [0, 2])
def test_a_killed_process_is_named_by_all_others_at_once(rank, tmp_path):
    """By those that wait for a message, and by those that are stuck in something else."""
    body = """
try:
    receive() if rank == 1 else time.sleep(60)
except peers.PeerLost as e:
    print("told:", e, flush=True)
    here.leave()
"""
    processes = start_peers(body, tmp_path)
    for process in processes:
        assert process.stdout.readline() == "joined\n"
    processes[rank].kill()
    start = time.monotonic()
    for other, (code, out, err) in enumerate(ends(processes)):
        if other == rank:
            assert code == -signal.SIGKILL
            continue
        gone = f"process {rank} of 3 (pid {processes[rank].pid} on {os.uname().nodename}) is gone"
        assert code == 1 and err.startswith(f"error: {gone}") and err.count("error") == 1
        assert f"process {other} of 3 (pid {processes[other].pid}" in err and "continues" in err
        assert out == (f"told: {gone}: killed, crashed, or cut off\n" if other == 1 else "")
    assert time.monotonic() - start < 10


def test_a_process_that_hangs_is_named_by_all_others(tmp_path):
    body = """
send(b"ready"), receive(), print("ready", flush=True)
time.sleep(4)  # longer than silence is suffered: the beats count
print("still there", flush=True)
time.sleep(60)
"""
    processes = start_peers(body, tmp_path)
    for process in processes:
        assert [process.stdout.readline() for _ in range(3)] == ["joined\n", "ready\n", "still there\n"]
    processes[2].send_signal(signal.SIGSTOP)
    zero, one = ends(processes[:2])
    processes[2].kill()
    processes[2].communicate()
    for code, _, err in (zero, one):
        assert code == 1
        assert err.startswith(f"error: process 2 of 3 (pid {processes[2].pid} on ")
        assert "has not answered for 2 seconds" in err


def test_a_process_that_hangs_while_it_is_sent_much_is_named_and_no_other(tmp_path):
    """As at a restore: the send does not return, and the beats of the others must not wait for it."""
    body = """
send(b"ready"), receive(), print("ready", flush=True)
while not Path("stopped").exists():
    time.sleep(0.01)
if rank == 0:
    here.send(1, bytes(100_000_000))
receive()
"""
    body = body.replace('"stopped"', repr(str(tmp_path / "stopped")))
    processes = start_peers(body, tmp_path)
    for process in processes:
        assert [process.stdout.readline() for _ in range(2)] == ["joined\n", "ready\n"]
    processes[1].send_signal(signal.SIGSTOP)
    (tmp_path / "stopped").touch()
    zero, two = ends([processes[0], processes[2]])
    processes[1].kill()
    processes[1].communicate()
    for code, _, err in (zero, two):
        assert code == 1 and f"error: process 1 of 3 (pid {processes[1].pid} on " in err


def test_an_exception_in_one_is_told_to_all(tmp_path):
    body = """
if rank == 1:
    raise ZeroDivisionError("a bug")
time.sleep(60)
"""
    for rank, (code, _, err) in enumerate(ends(start_peers(body, tmp_path))):
        assert code == 1
        if rank == 1:
            assert err.startswith("Traceback")
        else:
            assert re.match(r"error: process 1 of 3 \(pid \d+ on .*\) failed: ZeroDivisionError: a bug\. ", err), err


def test_one_that_ends_before_the_others_is_named(tmp_path):
    body = """
if rank == 1:
    sys.exit(0)
time.sleep(60)
"""
    (zero, *_), one, _ = ends(start_peers(body, tmp_path))
    assert zero == 1 and one == (0, "joined\n", "")


def test_who_does_not_know_the_key_is_not_let_in(tmp_path):
    body = """
if rank == 0:
    receive()
elif rank == 1:
    send(b"done")
"""
    stranger = """
import json, sys, time
from multiprocessing import AuthenticationError
from multiprocessing.connection import Client
from pathlib import Path
told = Path(sys.argv[1])
while not told.exists():
    time.sleep(0.01)
where = json.loads(told.read_text())
try:
    Client((where["host"], where["port"]), authkey=b"guessed")
except (AuthenticationError, ConnectionError, EOFError):
    print("refused")
"""
    zero = start_peers(body, tmp_path, count=2, ranks=[0])
    told = subprocess.run([sys.executable, "-c", stranger, str(tmp_path / "told")], capture_output=True, text=True)
    assert told.stdout == "refused\n"
    one = start_peers(body, tmp_path, count=2, ranks=[1])
    assert [end[0] for end in ends(zero + one)] == [0, 0]


# ------------------------------------------------------------------------------------------------- of two processes

SCRIPT = """
import json, sys, time
from pathlib import Path

import jax
import numpy as np

from jaxresnet.errors import DataError, ResultsError
from jaxresnet.training.checkpoint import DamagedError
from jaxresnet.training.peers import PeerLost
from jaxresnet.training.processes import *

seen = {}

def error(fn):
    try:
        return fn()
    except Exception as e:
        return [type(e).__name__, str(e)]

def fail(error):
    raise error

with distributed():
    rank = jax.process_index()
    print("printed by", rank)
    seen["main"], seen["several"] = is_main(), several()
    seen["gather"] = gather({"rank": rank})
    seen["from main"] = from_main(lambda: [rank, "text", None, 1.5])
    like = {"a": np.zeros((2, 3), np.float32), "b": np.zeros((), np.int32), "c": np.zeros((0, 4), np.uint8)}
    arrays = {"a": np.array([[-0.0, np.nan, 1e-45], [1, 2, 3]], np.float32), "b": np.int32(rank), "c": like["c"]}
    got = arrays_from_main(lambda: arrays, like)
    seen["arrays"] = {name: [str(a.dtype), list(a.shape), a.tobytes().hex()] for name, a in got.items()}
    seen["user error"] = error(lambda: from_main(lambda: fail(DamagedError("a file"))))
    seen["bug"] = error(lambda: from_main(lambda: fail(OSError(28, "No space left"))))
    seen["together"] = together(lambda: [rank])
    seen["one fails"] = error(lambda: together(lambda: fail(DataError("no data here")) if rank == 1 else 0))
    seen["main fails"] = error(lambda: together(lambda: fail(DataError("no data at all")) if rank == 0 else 0))
    seen["same"] = error(lambda: check_same("a run", {"seed": 1, "name": "x"}))
    seen["not same"] = error(lambda: check_same("a run", {"seed": rank, "name": "x"}))
    held = []

    class Hold:
        def __enter__(self):
            held.append("in")
        def __exit__(self, *_):
            held.append("out")

    with on_main(Hold()):
        pass
    seen["held"] = held
    Path(sys.argv[1], f"{rank}.json").write_text(json.dumps(seen))
    if rank == 1:
        time.sleep(1)  # the main one waits before it ends
print("left", time.monotonic())
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """(what two processes saw, their ends)."""
    folder = tmp_path_factory.mktemp("two")
    (folder / "script.py").write_text(SCRIPT)
    processes = [
        subprocess.Popen(
            [sys.executable, str(folder / "script.py"), str(folder)],
            env={**os.environ, **own, "PYTHONPATH": str(Path(jaxresnet.training.peers.__file__).parent.parent)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in environments_of(2, 1, {})
    ]
    told = ends(processes)
    assert [code for code, *_ in told] == [0, 0], told
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in (0, 1)], told


def test_one_is_the_main_one_and_prints(two):
    (zero, one), ends = two
    assert (zero["main"], one["main"]) == (True, False) and zero["several"] and one["several"]
    assert ends[0][1].startswith("printed by 0\n") and "printed" not in ends[1][1]
    assert "Gloo" not in ends[0][1] + ends[1][1]


def test_values_of_all_and_of_the_main_one(two):
    for seen in two[0]:
        assert seen["gather"] == [{"rank": 0}, {"rank": 1}]
        assert seen["from main"] == [0, "text", None, 1.5]
    assert [seen["together"] for seen in two[0]] == [[0], [1]]


def test_arrays_arrive_bit_for_bit(two):
    zero, one = (seen["arrays"] for seen in two[0])
    assert zero == one
    assert zero["a"] == ["float32", [2, 3], "000000800000c07f01000000" + "0000803f0000004000004040"]
    assert zero["b"] == ["int32", [], "00000000"] and zero["c"] == ["uint8", [0, 4], ""]


def test_an_error_of_the_main_one_is_raised_in_all(two):
    zero, one = two[0]
    assert zero["user error"] == one["user error"] == ["DamagedError", "a file"]
    assert zero["bug"] == ["OSError", "[Errno 28] No space left"]
    assert one["bug"][0] == "PeerLost" and re.fullmatch(
        r"process 0 of 2 \(pid \d+ on .*\) failed: OSError: \[Errno 28\] No space left", one["bug"][1]
    )


def test_an_error_of_any_is_raised_in_all_where_all_are_asked(two):
    zero, one = two[0]
    assert zero["one fails"] == one["one fails"] and zero["main fails"] == one["main fails"]
    assert zero["one fails"][0] == "DataError" and zero["one fails"][1].startswith("process 1 of 2 (pid ")
    assert zero["one fails"][1].endswith(": no data here") and zero["main fails"] == ["DataError", "no data at all"]


def test_what_differs_is_named(two):
    for seen in two[0]:
        assert seen["same"] is None
        kind, text = seen["not same"]
        assert kind == "ConfigError" and text.startswith("a run must be the same in all processes; process 0 of 2")
        assert text.endswith(": seed: 0 -> 1")


def test_a_context_of_the_main_one(two):
    assert [seen["held"] for seen in two[0]] == [["in", "out"], []]


# -------------------------------------------------------------------------------------------------- of one process


def test_with_one_process_nothing_is_different(monkeypatch, capsys):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAXRESNET_DISTRIBUTED"):
        monkeypatch.delenv(name, raising=False)
    with distributed():
        print("printed")
        assert is_main() and not several()
        assert gather(1) == [1] and from_main(lambda: (1, 2)) == (1, 2) and together(lambda: "x") == "x"
        assert arrays_from_main(lambda: {"a": 1}, None) == {"a": 1}
        check_same("a run", {})
    assert capsys.readouterr().out == "printed\n"


@pytest.mark.parametrize(
    "environment, told",
    [
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID (from 0) are needed"),
        ({"JAX_COORDINATOR_ADDRESS": "localhost:1", "JAX_NUM_PROCESSES": "two"}, "must be a whole number"),
        ({"JAXRESNET_DISTRIBUTED": "1"}, "on a cluster that JAX knows"),
    ],
)
def test_an_environment_that_is_not_complete_is_refused(environment, told):
    code = "import jaxresnet as jr\nwith jr.distributed(): pass"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert done.returncode == 1 and "ConfigError" in done.stderr and told in done.stderr
