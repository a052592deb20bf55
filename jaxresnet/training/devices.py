"""Several devices: `jax.pmap` with arguments and results that keep their logical shapes.

A program takes all its arguments whole (in_axes=None), apart from the number of the device, and gives its results whole
(out_axes=None), not stacked along a leading axis of devices. So a checkpoint does not know how many devices wrote it.
That is right only because gradients, metrics and batch statistics are averaged over the axis: `out_axes=None` would
silently return device 0's.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxresnet.training.compilation import compile_lowered
from jaxresnet.training.steps import AXIS

Devices = tuple[jax.Device, ...]


def replicate(tree: Any, devices: Devices) -> Any:
    """Copies of a tree of arrays on every device, as the compiled programs take and return them.

    With devices of several processes each puts its own copy on its own devices; the copies must be the same.
    """
    sharding = _replicated(devices)
    local = sorted(sharding.addressable_devices, key=devices.index)
    if len(local) == len(devices):
        return jax.device_put(tree, sharding)
    # `device_put` would compare what all processes have, with a collective each time.
    copies = [jax.device_put(tree, device) for device in local]
    return jax.tree.map(
        lambda *shards: jax.make_array_from_single_device_arrays(shards[0].shape, sharding, shards), *copies
    )


@cache
def _replicated(devices: Devices) -> NamedSharding:
    return NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec())


@cache
def _ranks(devices: Devices) -> Array:
    """0, 1, 2 ... as an int32 array of which each device holds its own element."""
    sharding = NamedSharding(Mesh(np.array(devices), (AXIS,)), PartitionSpec(AXIS))
    ranks = np.arange(len(devices), dtype=np.int32)
    return jax.make_array_from_callback(ranks.shape, sharding, lambda index: ranks[index])


def map_and_compile(
    fn: Callable[..., Any], arguments: tuple[Any, ...], devices: Devices, donate: tuple[int, ...] = ()
) -> Callable[..., Any]:
    """`fn(*arguments, rank)` mapped over devices and compiled for the shapes of `arguments`; NumPy numbers among the
    arguments of a call are replicated."""
    in_axes = (None,) * len(arguments) + (0,)
    mapped = jax.pmap(fn, axis_name=AXIS, in_axes=in_axes, out_axes=None, devices=devices, donate_argnums=donate)
    sharding, ranks = _replicated(devices), _ranks(devices)
    if sharding.is_fully_addressable:
        like = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding), arguments)
    else:  # `pmap` over several processes is lowered with arrays only
        like = replicate(jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), arguments), devices)
    program = compile_lowered(mapped.lower(*like, ranks), devices[0].platform)

    def call(*args: Any) -> Any:
        return program(*(replicate(arg, devices) if isinstance(arg, np.generic) else arg for arg in args), ranks)

    return call
