"""Where a result came from: versions, device, commit, command. Written into every results folder."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def environment(devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """`backend`, the commit and the command line. JSON types. `commit` ends in "-dirty" where the checkout had
    changes; outside a checkout it is $JAXRESNET_COMMIT, or None."""
    return {
        **backend(devices),
        "commit": commit() or os.environ.get("JAXRESNET_COMMIT"),
        "command": shlex.join(["python", *sys.argv]),
    }


def backend(devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """What the last bits of a run may depend on: versions and devices. JSON types. devices: those in use, default all,
    of all processes."""
    import jax

    devices = devices or jax.devices()
    return {
        "jaxresnet": _version("jaxresnet"),
        **{name: _version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
        "python": platform.python_version(),
        "platform": devices[0].platform,
        "device": device_name(devices[0]),
        "num_devices": len(devices),
        "num_processes": len({device.process_index for device in devices}),
    }


def device_name(device: Any) -> str:
    """An accelerator's kind as JAX names it; for a CPU the processor's name and the number of cores in use."""
    if device.platform != "cpu":
        return str(device.device_kind)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.is_file() else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {cores} cores"


def default_cache_dir() -> Path:
    """Where is kept what can be made again: $XDG_CACHE_HOME/jaxresnet, or ~/.cache/jaxresnet."""
    base = os.environ.get("XDG_CACHE_HOME", "")  # by its specification a relative path is to be ignored
    return Path(base if os.path.isabs(base) else os.path.expanduser("~/.cache")) / "jaxresnet"


def commit() -> str | None:
    """The commit of the checkout that this package runs from."""
    folder = Path(__file__).parent

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *args], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if not git("ls-files", "--error-unmatch", Path(__file__).name):
            return None
        return git("rev-parse", "--short=12", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
