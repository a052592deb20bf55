"""Where a run happens: versions, devices, commit, what the processor can do, and what `precision="auto"` is there."""

import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from jaxresnet.config import TrainConfig
from jaxresnet.errors import ConfigError, UserError, first_line

CPUINFO = Path("/proc/cpuinfo")
BFLOAT16_SINCE = 8.0  # compute capability of NVIDIA's GPUs whose tensor cores multiply bfloat16 (Ampere)


def environment(devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """`backend`, the commit and the command line. JSON types. `commit` ends in "-dirty" where the checkout had
    changes; outside a checkout it is $JAXRESNET_COMMIT, or None."""
    return {
        **backend(devices),
        "commit": commit() or os.environ.get("JAXRESNET_COMMIT"),
        "command": shlex.join(["python", *sys.argv]),
    }


def all_devices() -> list[Any]:
    """The devices of all processes. Raises UserError where JAX finds none, as with JAX_PLATFORMS=cuda and no GPU."""
    import jax

    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as e:  # without any text, for some platforms
        asked = os.environ.get("JAX_PLATFORMS")
        raise UserError(
            f"JAX finds no device{f' with JAX_PLATFORMS={asked}' if asked else ''} ({first_line(e)}). "
            "Unset JAX_PLATFORMS, or set it to cpu; for a GPU install '.[cuda]', for a TPU '.[tpu]'"
        ) from e


def use_cores() -> bool:
    """Make every core that this process may use a CPU device of its own, to share the batches of one run. Call it
    before JAX finds its devices.

    Returns whether it did: not with one core, where the user has said how many devices there are (in XLA_FLAGS, or by
    `jax_num_cpu_devices`), where several processes share the work, and where JAX takes an accelerator."""
    import jax

    chosen = "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    chosen = chosen or getattr(jax.config, "jax_num_cpu_devices", -1) != -1
    if chosen or jax.distributed.is_initialized() or num_cores() == 1:
        return False
    try:
        jax.config.update("jax_num_cpu_devices", num_cores())
    except RuntimeError:  # JAX has found its devices, as in a notebook
        return False
    return all_devices()[0].platform == "cpu"


def num_cores() -> int:
    """The number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def some_devices(devices: Sequence[Any] | None) -> tuple[Any, ...]:
    """`devices`, or all. Raises ConfigError for none."""
    if devices is not None and not devices:
        raise ConfigError("devices: at least one is needed; leave it out for all")
    return tuple(all_devices() if devices is None else devices)


def backend(devices: Sequence[Any] | None = None) -> dict[str, Any]:
    """What the last bits of a run may depend on: versions and devices. JSON types.

    devices: those in use, default all, of all processes."""
    devices = devices or all_devices()
    return {
        "jaxresnet": _version("jaxresnet"),
        **{name: _version(name) for name in ("jax", "flax", "optax", "orbax-checkpoint", "numpy")},
        "python": platform.python_version(),
        "platform": devices[0].platform,
        "device": device_name(devices[0]),
        "num_devices": len(devices),
        "num_processes": len({device.process_index for device in devices}),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


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


# ---------------------------------------------------------------------------------------------------- processor


@cache
def cpu_info(path: Path = CPUINFO) -> dict[str, str]:
    """{name: value} of the first processor in Linux's /proc/cpuinfo; empty on other systems."""
    if not path.is_file():
        return {}
    first, _, _ = path.read_text().partition("\n\n")
    lines = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in lines}


def device_name(device: Any) -> str:
    """An accelerator's kind as JAX names it; for a CPU the processor's name and the number of cores in use."""
    if device.platform != "cpu":
        return str(device.device_kind)
    name = cpu_info().get("model name") or platform.processor() or platform.machine()
    return f"{name}, {num_cores()} cores"


def instructions() -> str:
    """What instructions the processor has, as far as the system tells: compiled programs are for these."""
    told = [cpu_info().get(name, "") for name in ("flags", "Features", "CPU part")]
    return " ".join(filter(None, told)) or platform.processor()


def multiplies_bfloat16() -> bool:
    """Whether the CPU has instructions for products of bfloat16: AVX512-BF16 or AMX.

    JAXRESNET_CPU_BFLOAT16=0 says no and 1 says yes, whatever there is; ConfigError is raised for anything else. Where
    the system does not tell, no. XLA's option for fewer instructions (--xla_cpu_max_isa) does not matter: its library
    for products does not heed it.
    """
    chosen = os.environ.get("JAXRESNET_CPU_BFLOAT16", "")
    if chosen not in ("", "0", "1"):
        raise ConfigError(f"JAXRESNET_CPU_BFLOAT16={chosen!r}: must be 0 (no) or 1 (yes), or not set")
    if chosen:
        return chosen == "1"
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(cpu_info().get("flags", "").split())


# ---------------------------------------------------------------------------------------------------- precision


def automatic_precision(device: Any) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it faster than float32: TPUs, GPUs (NVIDIA's since Ampere), and CPUs
    with AVX512-BF16 or AMX.

    device: a `jax.Device`."""
    if device.platform == "cpu":
        return "bfloat16" if multiplies_bfloat16() else "float32"
    try:
        capability = float(getattr(device, "compute_capability", ""))
    except ValueError:  # no GPU of NVIDIA
        return "bfloat16"
    return "bfloat16" if capability >= BFLOAT16_SINCE else "float32"


def resolved(config: TrainConfig, device: Any) -> TrainConfig:
    """`config` with the precision that it has on `device`, in place of "auto"."""
    if config.model.precision != "auto":
        return config
    return replace(config, model=replace(config.model, precision=automatic_precision(device)))
