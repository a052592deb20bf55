"""Several processes on this machine that share one run, as a scheduler would start them."""

import os
import socket
import subprocess
import sys
from pathlib import Path


def start(folder, args, processes=2, devices_per_process=1):
    """Python with `args` in each process, in `folder`. Each process has so many virtual CPU devices."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[1]), *sys.path]),
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_per_process}",
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": folder}
    ranks = [{**env, "JAX_PROCESS_ID": str(rank)} for rank in range(processes)]
    return [subprocess.Popen([sys.executable, *args], env=each, **pipes) for each in ranks]


def ends(processes, status):
    """[(stdout, stderr), ...], where all of them end with `status`."""
    outputs = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), outputs
    return outputs
