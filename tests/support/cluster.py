"""Several processes on this machine that share one run, as a scheduler would start them."""

import os
import socket


def environments_of(processes, devices_per_process):
    """The whole environment of each process. Each has so many virtual CPU devices."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    common = {
        **os.environ,
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices_per_process}",
    }
    return [{**common, "JAX_PROCESS_ID": str(rank)} for rank in range(processes)]
