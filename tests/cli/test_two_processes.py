"""A script in two processes, as a scheduler starts them: one speaks, Ctrl-C at one stops both, and both continue."""

import re
import signal
import subprocess
import sys

import numpy as np
from support.cluster import environments_of

from jaxresnet.results.store import read_results

SCRIPT = """
import jaxresnet as jr
jr.run_experiment(jr.Experiment("", {"one": {"A": jr.published["adam_512"].config}}, demo_images=2560))
"""
NETWORK = ["--stage-sizes", "1", "--pool-size", "32", "--width", "4", "--num-epochs", "3", "--batch-size", "128"]
COMMAND = [sys.executable, "script.py", "--demo", "--seeds", "0", *NETWORK]
EPOCH_LINE = re.compile(r"^A, seed 0: epoch (\d)/3 .* left$", re.MULTILINE)


def start(folder, processes, devices_per_process):
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    return [subprocess.Popen(COMMAND, env=env, **pipes) for env in environments_of(processes, devices_per_process)]


def ends(processes):
    """[(exit status, stdout, stderr), ...]"""
    outputs = [process.communicate(timeout=300) for process in processes]
    return [(process.returncode, *output) for process, output in zip(processes, outputs, strict=True)]


def test_two_processes_stop_together_and_continue_to_the_results_of_one(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "script.py").write_text(SCRIPT)
    processes = start(tmp_path / "two", 2, 1)
    before = ""
    for line in processes[0].stdout:
        before += line
        if EPOCH_LINE.match(line):
            processes[1].send_signal(signal.SIGINT)
            break
    (status, out, err), (other_status, other_out, _) = ends(processes)
    assert (status, other_status) == (75, 75), err
    assert "2 (sharing batches, in 2 processes) x " in before
    assert "The same command continues" in err and "seed 0" not in other_out, "one process speaks"
    done = EPOCH_LINE.findall(before + out)
    assert 0 < len(done) < 3

    (status, out, err), (other_status, other_out, other_err) = ends(start(tmp_path / "two", 2, 1))
    assert (status, other_status) == (0, 0), err + other_err
    assert done + EPOCH_LINE.findall(out) == ["1", "2", "3"]

    ((status, out, err),) = ends(start(tmp_path / "one", 1, 2))
    assert status == 0, err
    two, one = (read_results(tmp_path / n / "out/one-demo").runs["A"][0] for n in ("two", "one"))
    assert (one.scores["environment"]["num_processes"], two.scores["environment"]["num_processes"]) == (1, 2)
    for row, other in zip(one.rows, two.rows, strict=True):
        np.testing.assert_allclose(other["train_loss"], row["train_loss"], rtol=1e-4)
