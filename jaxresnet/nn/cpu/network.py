"""`resnet.ResNet` on a CPU: the same function of the same variables, from `units`."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jaxresnet.config import ModelConfig
from jaxresnet.nn.batch_norm import moved
from jaxresnet.nn.cpu import units
from jaxresnet.nn.cpu.layout import zeros


def apply(
    config: ModelConfig, dtype: Any, axis_name: str | None, variables: dict, images: Array, train: bool
) -> tuple[Array, dict]:
    """As `resnet.Model.apply`, for one or more square images.

    dtype: of the activations, bfloat16 or float32. axis_name: as of `build_model`."""
    config.check_pool(images.shape[1])
    images, stats = images.astype(jnp.float32), variables["batch_stats"]
    # Inside a `shard_map` weights must vary over its devices as the images do, for their gradient to be summed.
    vary = zeros((), jnp.float32, images)
    params = jax.tree.map(lambda a: a.astype(jnp.float32) + vary, variables["params"])
    new: dict[str, Any] = {"stages": {}}
    if train:
        x, norms = units.stem(images, _layers(params, "conv1", "bn1"), dtype, axis_name)
        new |= _moved(stats, norms, axis_name)
    else:
        x, _ = units.stem_forward(images, params, dtype, units.by_running(stats))
    for i, blocks in params["stages"].items():
        new["stages"][i] = {}
        for j, layers in blocks.items():
            stride = 2 if int(i) > 0 and int(j) == 0 else 1
            before = stats["stages"][i][j]
            if train:
                x, norms = units.block(x, layers, stride, axis_name)
                new["stages"][i][j] = _moved(before, norms, axis_name)
            else:
                x, _ = units.block_forward(x, layers, stride, units.by_running(before))
    logits = units.average(x) @ params["linear"]["kernel"] + params["linear"]["bias"]
    return logits, {"params": variables["params"], "batch_stats": new if train else stats}


def _layers(params: dict, *names: str) -> dict:
    return {name: params[name] for name in names}


def _moved(before: dict, norms: dict[str, units.Norm], axis_name: str | None) -> dict:
    """The running statistics of the layers in `norms`."""
    new = {}
    for name, norm in norms.items():
        running = before[name]
        mean, var = moved(running["mean"], running["var"], norm.mean, norm.var, norm.raw[0].size, axis_name)
        new[name] = {"mean": mean, "var": var}
    return new
