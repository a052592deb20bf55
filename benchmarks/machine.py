"""What a measurement of speed depends on beside the program: the processor, the driver, the environment variables."""

import os
import platform
import subprocess
from typing import Any

from jaxresnet.hardware import cpu_info, num_cores

# Variables that may change the speed of JAX or PyTorch, by how their names begin.
PREFIXES = (
    *("CUDA_", "NVIDIA_", "JAX", "XLA_", "TF_XLA_", "TORCH", "PYTORCH_", "TRITON_"),
    *("GLIBC_", "GOMP_", "KMP_", "LD_PRELOAD", "MALLOC_", "MKL_", "OMP_", "ONEDNN_", "OPENBLAS_"),
)


def machine() -> dict[str, Any]:
    """JSON types. driver: of the GPU, None where there is none."""
    variables = {name: value for name, value in sorted(os.environ.items()) if name.startswith(PREFIXES)}
    return {"processor": processor(), "driver": gpu_driver(), "variables": variables}


def processor() -> dict[str, Any]:
    """The CPU's name, the number of cores in use, and those of its features that matter to matrix products."""
    found = cpu_info()
    flags = found.get("flags", found.get("Features", "")).split()  # as x86 and ARM call them
    prefixes = ("amx", "avx", "fma", "asimd", "bf16", "i8mm", "sve")
    return {
        "name": found.get("model name") or platform.processor() or platform.machine(),
        "cores": num_cores(),
        "flags": sorted(flag for flag in flags if flag.startswith(prefixes)),
    }


def gpu_driver() -> str | None:
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return None
