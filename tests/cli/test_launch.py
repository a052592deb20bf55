"""`python -m jaxresnet launch`: the environment of each process, what it prints and returns; and whole comparisons of
two processes, ended in every way and continued."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from support.tiny import STEADY_PARTIAL, contents

import jaxresnet.cli.launch
from jaxresnet.cli.launch import environments_of, launch
from jaxresnet.cli.launch import main as launch_main
from jaxresnet.comparison.compare import compare
from jaxresnet.errors import ConfigError
from jaxresnet.results.store import read_results

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "jaxresnet", "launch", "--processes", "2", "--devices-per-process", "1"]

# ------------------------------------------------------------------------------------------- the environment of each


def test_the_processes_find_each_other():
    first, second = environments_of(2, None, {"JAX_PLATFORMS": "cpu"})
    assert (first.pop("JAX_PROCESS_ID"), second.pop("JAX_PROCESS_ID")) == ("0", "1")
    assert first == second and first["JAX_NUM_PROCESSES"] == "2"
    host, _, port = first["JAX_COORDINATOR_ADDRESS"].partition(":")
    assert host == "127.0.0.1" and 1024 < int(port) < 65536
    assert first["JAX_COORDINATOR_BIND_ADDRESS"] == first["JAX_COORDINATOR_ADDRESS"], "not for the whole network"


def test_virtual_devices_are_those_of_the_cpu():
    for own in environments_of(2, 3, {"XLA_FLAGS": "--xla_other", "CUDA_VISIBLE_DEVICES": "0"}):
        assert own["JAX_PLATFORMS"] == "cpu" and "CUDA_VISIBLE_DEVICES" not in own
        assert own["XLA_FLAGS"] == "--xla_other --xla_force_host_platform_device_count=3"


def test_gpus_are_divided():
    found = environments_of(2, None, {"CUDA_VISIBLE_DEVICES": "4,5,GPU-a,7"})
    assert [own["CUDA_VISIBLE_DEVICES"] for own in found] == ["4,5", "GPU-a,7"]


def test_gpus_are_counted_where_none_are_named(monkeypatch, tmp_path):
    smi = tmp_path / "nvidia-smi"
    smi.write_text('#!/bin/sh\necho "GPU 0: X (UUID: a)"\necho "  MIG 1g"\necho "GPU 1: X (UUID: b)"\n')
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert [own["CUDA_VISIBLE_DEVICES"] for own in environments_of(2, None, {})] == ["0", "1"]


@pytest.mark.parametrize(
    "processes, devices, environment, told",
    [
        (0, None, {}, "--processes 0: must be at least 1"),
        (2, 0, {}, "--devices-per-process 0: must be at least 1"),
        (2, None, {"CUDA_VISIBLE_DEVICES": "0,1,2"}, "the 3 GPUs cannot be divided among them"),
    ],
)
def test_numbers_that_cannot_be_are_refused(processes, devices, environment, told):
    with pytest.raises(ConfigError, match=told):
        environments_of(processes, devices, environment)


# ------------------------------------------------------------------------------------------- what it prints and returns


@pytest.fixture
def run_script(tmp_path, capfd):
    """run(body, processes) -> (exit status, stdout, stderr) of a script that does not use JAX; `rank` is its number."""

    def run(body, processes=2):
        script = tmp_path / "script.py"
        script.write_text(f"import os, signal, sys, time\nrank = int(os.environ['JAX_PROCESS_ID'])\n{body}")
        status = launch([str(script), "--flag", "a b"], processes, 1)
        return status, *capfd.readouterr()

    return run


def test_output_of_the_first_is_left_and_that_of_the_others_marked(run_script):
    body = "print('out', rank, sys.argv[1:])\nsys.stdout.flush()\nprint('err', rank, file=sys.stderr)"
    status, out, err = run_script(body)
    assert status == 0 and out == "out 0 ['--flag', 'a b']\n"
    assert sorted(err.splitlines()) == ["[1] err 1", "[1] out 1 ['--flag', 'a b']", "err 0"]


def test_the_status_is_that_of_the_first_to_fail(run_script):
    assert run_script("sys.exit(75)")[0] == 75
    status, _, err = run_script("rank == 1 and sys.exit(3)\ntime.sleep(0.5)\nsys.exit(4)")
    assert (status, err) == (3, "")


def test_a_killed_process_is_named(run_script):
    status, _, err = run_script("rank == 1 and os.kill(os.getpid(), signal.SIGKILL)\ntime.sleep(0.5)\nsys.exit(1)")
    assert status == 128 + signal.SIGKILL
    assert re.fullmatch(r"error: process 1 of 2 \(pid \d+\) was killed by SIGKILL\n", err)


def test_those_that_do_not_follow_are_killed(run_script, monkeypatch):
    monkeypatch.setattr(jaxresnet.cli.launch, "SECONDS_TO_END", 0.5)
    start = time.monotonic()
    status, _, err = run_script("rank == 1 and sys.exit(3)\ntime.sleep(60)")
    assert status == 3 and "process 0 did not end with the others: killed" in err
    assert time.monotonic() - start < 20


def test_a_signal_reaches_the_first_process_and_the_second_all(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "rank = os.environ['JAX_PROCESS_ID']\n"
        "def heard(*_):\n    print('heard', rank, flush=True)\n    rank == '1' and sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, heard)\n"
        "print('ready', rank, flush=True)\n"
        "while os.getppid() != 1:\n    time.sleep(0.05)\n    rank == '0' and os.path.exists('end') and sys.exit(75)\n"
    )
    process = subprocess.Popen(
        [*LAUNCH, str(script)],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[1] ready 1\n", "ready 0\n"]
    process.terminate()
    assert process.stdout.readline() == "heard 0\n"
    process.terminate()
    assert sorted(process.stdout.readline() for _ in range(2)) == ["[1] heard 1\n", "heard 0\n"]
    (tmp_path / "end").touch()
    assert process.wait(30) == 75


def test_asked_to_end_while_it_starts_it_ends_soon_and_with_the_status_that_says_so(tmp_path):
    """When no process has a handler yet: the first dies of it, and the other would wait for it."""
    script = tmp_path / "script.py"
    script.write_text("import time\nprint('here', flush=True)\ntime.sleep(60)")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    process = subprocess.Popen([*LAUNCH, str(script)], cwd=ROOT, **pipes)
    assert process.stdout.readline() == "here\n"
    start = time.monotonic()
    process.terminate()
    _, err = process.communicate(timeout=30)
    assert process.returncode == 75 and "error" not in err
    assert time.monotonic() - start < 20


def test_processes_end_with_their_launcher(tmp_path):
    """After `kill -9`, too: as if they had been asked to."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys, time\n"
        "from jaxresnet.training.processes import _end_with_launcher\n"
        "rank = os.environ['JAX_PROCESS_ID']\n"
        "def heard(*_):\n    open('ended' + rank, 'w').close()\n    sys.exit(75)\n"
        "signal.signal(signal.SIGTERM, heard)\n"
        "_end_with_launcher()\n"
        "open('ready' + rank, 'w').close()\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([*LAUNCH, str(script)], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)

    def wait_for(name):
        deadline = time.monotonic() + 60
        while not all((tmp_path / f"{name}{rank}").exists() for rank in (0, 1)):
            assert time.monotonic() < deadline, name
            time.sleep(0.05)

    wait_for("ready")
    assert not list(tmp_path.glob("ended*"))
    process.kill()
    process.wait()
    wait_for("ended")


def test_the_command_line(monkeypatch):
    seen = []
    monkeypatch.setattr(jaxresnet.cli.launch, "launch", lambda *args: seen.append(args) or 7)
    assert launch_main(["--processes", "2", "a.py", "--demo", "--processes", "3"]) == 7
    assert launch_main(["--processes", "2", "--devices-per-process", "4", "a.py"]) == 7
    assert seen == [(["a.py", "--demo", "--processes", "3"], 2, None), (["a.py"], 2, 4)]


# ----------------------------------------------------------------------------------------------- whole comparisons

SCRIPT = f"""
import sys
import threading

sys.path.insert(0, {str(Path(__file__).parent)!r})

import jaxresnet as jr
from jaxresnet.cli.exits import exit_status, stop_on_signal
from support.tiny import STEADY_PARTIAL, make_tiny_data

def on_progress(arm, seed, epoch, images):
    print("at", epoch, images, flush=True)

with exit_status(), jr.distributed(), stop_on_signal() as should_stop:
    hooks = jr.Hooks(on_progress=on_progress, should_stop=should_stop)
    jr.compare({{"A": STEADY_PARTIAL}}, (0,), make_tiny_data(), sys.argv[1], name="tiny", hooks=hooks)
"""


class Training:
    """Two processes with two devices each, which write to `folder`/out. cache: of compiled programs."""

    def __init__(self, folder, cache):
        self.folder, self.out = folder, folder / "out"
        (folder / "run.py").write_text(SCRIPT)
        self.environment = {
            **{name: value for name, value in os.environ.items() if name != "XLA_FLAGS"},
            "PYTHONPATH": str(ROOT),
            "JAX_COMPILATION_CACHE_DIR": str(cache),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }

    def start(self):
        """One process for each, as two shells would: without the launcher."""
        self.processes = [
            subprocess.Popen(
                [sys.executable, "run.py", "out"],  # the same command in every folder: results hold it
                env={**self.environment, **own},
                cwd=self.folder,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for own in environments_of(2, 2, {})
        ]
        return self

    def wait_for(self, line):
        for printed in self.processes[0].stdout:
            if printed.strip() == line:
                return
        pytest.fail(f"never printed {line!r}: {self.processes[0].stderr.read()}")

    def ends(self, seconds=60):
        """[(exit status, stderr), ...], within so many seconds."""
        outputs = [process.communicate(timeout=seconds) for process in self.processes]
        return [(process.returncode, err) for process, (_, err) in zip(self.processes, outputs, strict=True)]

    def launch(self):
        """Run to the end with the launcher: (exit status, stdout, stderr)."""
        command = [sys.executable, "-m", "jaxresnet", "launch", "--processes", "2", "--devices-per-process", "2"]
        done = subprocess.run(
            [*command, "run.py", "out"], env=self.environment, cwd=self.folder, capture_output=True, text=True
        )
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("compiled")


@pytest.fixture(scope="module")
def whole(tmp_path_factory, cache):
    """The folder of a comparison that was never interrupted."""
    training = Training(tmp_path_factory.mktemp("whole"), cache)
    status, out, err = training.launch()
    assert status == 0, err
    assert out.splitlines() == [f"at {epoch} {images}" for epoch in range(3) for images in (64, 128, 192, 256, 260)]
    assert "[1]" not in err, "one process speaks"
    return training.out


@pytest.mark.parametrize("num_devices", [4, 1])
def test_two_processes_give_the_history_of_one(num_devices, whole, tiny_data, tmp_path):
    """Of one that has as many devices, and of one device: to rounding, as Gloo adds in another order."""
    one = compare(
        {"A": STEADY_PARTIAL}, (0,), tiny_data, tmp_path / "out", name="tiny", devices=jax.devices()[:num_devices]
    )
    assert contents(one.folder).keys() == contents(whole).keys()
    a, b = (read_results(folder).runs["A"][0] for folder in (one.folder, whole))
    assert (a.scores["environment"]["num_devices"], a.scores["environment"]["num_processes"]) == (num_devices, 1)
    assert (b.scores["environment"]["num_devices"], b.scores["environment"]["num_processes"]) == (4, 2)
    compared = 0
    for row, other in ((a.scores, b.scores), *zip(a.rows, b.rows, strict=True)):
        assert row.keys() == other.keys()
        for name in row.keys() - {"environment", "seconds", "images_per_second", "compile_seconds"}:
            if isinstance(row[name], float):
                np.testing.assert_allclose(other[name], row[name], rtol=1e-4, err_msg=name)
                compared += 1
            else:
                assert other[name] == row[name], name
    assert compared > 20


@pytest.fixture
def training(tmp_path, cache):
    training = Training(tmp_path, cache)
    yield training
    for process in training.processes:
        process.kill()


def test_a_run_that_was_ended_in_every_way_continues_to_the_same_bytes(whole, training):
    """SIGTERM at one process stops both after the same step; when one is killed, the other says so and ends at once."""
    training.start().wait_for("at 0 128")
    training.processes[1].terminate()
    (zero, told), (one, _) = training.ends()
    assert (zero, one) == (75, 75) and "The same command continues" in told

    training.start().wait_for("at 1 64")
    training.processes[1].kill()
    (zero, told), (one, _) = training.ends()
    assert (zero, one) == (1, -signal.SIGKILL)
    assert f"error: process 1 of 2 (pid {training.processes[1].pid} on " in told and "is gone" in told
    assert "Traceback" not in told

    training.start().wait_for("at 2 64")
    training.processes[0].kill()
    (zero, _), (one, told) = training.ends()
    assert (zero, one) == (-signal.SIGKILL, 1)
    assert f"error: process 0 of 2 (pid {training.processes[0].pid} on " in told and "is gone" in told

    status, _, err = training.launch()
    assert status == 0, err
    assert contents(training.out, timed=False) == contents(whole, timed=False)
