"""A comparison that two processes share: process 0 alone writes, and both are told the same. Nothing is trained."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

from support.tiny import contents

PROGRAM = """
import json, sys
from dataclasses import replace
from pathlib import Path
from support.fake_results import fake_fit
from support.tiny import RUN, make_tiny_data
import jaxresnet.comparison.compare as module
import jaxresnet.comparison.executors as executors
from jaxresnet.distributed import distributed, is_main
from jaxresnet.errors import NonFiniteError, UserError

def fit(config, data, workdir, *, on_epoch, **kwargs):
    if config.batch_size == 32:
        raise NonFiniteError(f"seed {config.seed}: the loss stopped being finite")
    return fake_fit(config, data, workdir if is_main() else Path(sys.argv[2]), on_epoch=on_epoch, **kwargs)

def attempt(arms, seeds, **settings):
    try:
        made = module.compare(arms, seeds, make_tiny_data(), sys.argv[1], **settings)
        return [str(made.folder), made.report.verdict, str(made.report.html), [str(run) for run in made.runs.values()]]
    except UserError as e:
        return [type(e).__name__, str(e)]

executors.fit = fit
with distributed():
    arms = {"A": RUN, "fails": replace(RUN, batch_size=32)}
    told = [attempt({"A": RUN}, (0, 1)), attempt(arms, (0, 1)), attempt({"A": RUN}, (0,))]
print(json.dumps(told), file=sys.stderr)
"""


def test_two_processes_make_what_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    shared = {**os.environ, "JAX_COORDINATOR_ADDRESS": f"localhost:{port}", "JAX_NUM_PROCESSES": "2"}
    shared["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    shared["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
    command = [sys.executable, "-c", PROGRAM, str(tmp_path / "out"), str(tmp_path / "no use")]
    processes = [
        subprocess.Popen(command, env={**shared, "JAX_PROCESS_ID": str(rank)}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    told, other = (json.loads(error.splitlines()[-1]) for error in errors)
    assert told == other, "both processes are told the same"
    made, failed, dropped = told
    assert made[2] == str(tmp_path / "out" / "comparison" / "report.html") and len(made[3]) == 2
    assert failed[0] == "RunsFailed" and "fails seed 1: the loss stopped being finite" in failed[1]
    assert dropped[0] == "ResultsError" and "also holds arm 'fails', seed 1" in dropped[1]
    runs = [Path(run).name for run in made[3]]
    assert {f"runs/{run}/scores.json" for run in runs} <= contents(tmp_path / "out").keys()
    assert len([path for path in contents(tmp_path / "out") if path.endswith("failed.json")]) == 2
