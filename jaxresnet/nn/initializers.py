"""How weights start. `ModelConfig.initializer` names one of `INITIALIZERS`.

Kernels have the shape (..., in, out), and fan_in is the number of inputs to one output: the product of all sides but
the last. Numbers are drawn flat and then reshaped, as XLA:CPU compiles a four-dimensional draw ten times more slowly.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


def pytorch_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, fan_in: int | None = None) -> Array:
    """U(-b, b) with b = sqrt(1 / fan_in): PyTorch's default for convolutions and linear layers.

    fan_in: None takes it from `shape`, that of a kernel.
    """
    bound = (math.prod(shape[:-1]) if fan_in is None else fan_in) ** -0.5
    return jax.random.uniform(key, (math.prod(shape),), dtype, -bound, bound).reshape(shape)


def scaled_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32, *, gain: float) -> Array:
    """N(0, gain / fan_in), not truncated."""
    deviation = math.sqrt(gain / math.prod(shape[:-1]))
    return deviation * jax.random.normal(key, (math.prod(shape),), dtype).reshape(shape)


class Initializer(NamedTuple):
    """kernel: draws the kernel of a convolution or of the linear layer, from (key, shape, dtype).
    bias: takes the linear layer's fan_in and gives the function that draws its bias, from the same."""

    kernel: Callable[..., Array]
    bias: Callable[[int], Callable[..., Array]]


INITIALIZERS = {
    "pytorch": Initializer(pytorch_uniform, lambda fan_in: partial(pytorch_uniform, fan_in=fan_in)),
    # He et al. 2015, https://arxiv.org/abs/1502.01852, eq. 10, in every layer. The factor of 2 makes up for the ReLU in
    # front of a layer. The first layer has none and takes it all the same, as in the paper. PyTorch's kaiming_normal_
    # is the same; Flax's he_normal has the same variance, but is truncated.
    "he": Initializer(partial(scaled_normal, gain=2.0), lambda fan_in: jax.nn.initializers.zeros),
    # LeCun et al. 1998, "Efficient BackProp", section 4.6.
    "lecun": Initializer(partial(scaled_normal, gain=1.0), lambda fan_in: jax.nn.initializers.zeros),
}
