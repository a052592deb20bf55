"""What `precision="auto"` is on the devices that are there."""

from dataclasses import replace
from typing import Any, Literal

from jaxresnet.config import TrainConfig
from jaxresnet.conv_products import multiplies_bfloat16

BFLOAT16_SINCE = 8.0  # compute capability of NVIDIA's GPUs whose tensor cores multiply bfloat16 (Ampere)


def automatic(device: Any) -> Literal["float32", "bfloat16"]:
    """bfloat16 where the hardware multiplies it faster than float32: TPUs, GPUs (NVIDIA's since Ampere), and
    CPUs with AVX512-BF16 or AMX.

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
    return replace(config, model=replace(config.model, precision=automatic(device)))
