"""Batch normalisation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167) as PyTorch computes it: the
layer with its running statistics, the normalisation, and its gradient.

Each pass reads the activations twice, once for the sums and once to use them, and writes them once. Activations stay
in their own dtype; the sums, and all that is made of them, are float32 at least.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

EPS = 1e-5
DECAY = 0.9  # of the running statistics; PyTorch's momentum of 0.1 is 1 - DECAY


class BatchNorm(nnx.Module):
    """The layer. It differs from `nnx.BatchNorm` in two ways: the running variance is the unbiased one, and training or
    inference is an argument of the call.

    axis_name: the mapped axis over whose devices the statistics are taken, None for one device.
    """

    def __init__(self, num_features: int, axis_name: str | None = None):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.axis_name = axis_name

    def __call__(self, x: Array, train: bool) -> Array:
        """x: (B, H, W, C) -> the same shape and dtype. With train=True the running statistics move."""
        if not train:
            scale = self.scale[...] * lax.rsqrt(self.var[...] + EPS)
            return (x * scale + (self.bias[...] - self.mean[...] * scale)).astype(x.dtype)
        y, mean, var = normalise_batch(x, self.scale[...], self.bias[...], self.axis_name)
        count = x.size // x.shape[-1]
        self.mean[...], self.var[...] = moved(self.mean[...], self.var[...], mean, var, count, self.axis_name)
        return y


def moved(
    running_mean: Array, running_var: Array, mean: Array, var: Array, count: int, axis_name: str | None
) -> tuple[Array, Array]:
    """The running statistics after a batch. mean, var: (C,), the batch's own, `var` biased. count: numbers a channel on
    a device."""
    count *= 1 if axis_name is None else lax.axis_size(axis_name)
    unbiased = var * (count / max(count - 1, 1))
    return DECAY * running_mean + (1 - DECAY) * mean, DECAY * running_var + (1 - DECAY) * unbiased


# ------------------------------------------------------------------------------------------------- normalisation


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def normalise_batch(x: Array, scale: Array, bias: Array, axis_name: str | None) -> tuple[Array, Array, Array]:
    """Normalise `x` (B, H, W, C) by its own statistics, over the batches of all devices where `axis_name` names the
    mapped axis. scale, bias: (C,) float32.

    Returns (y of x's shape and dtype, mean (C,), biased variance (C,)). Mean and variance are for the running
    statistics: no gradient goes through them. For reverse mode only: `jax.jvp` raises TypeError.
    """
    return _normalise_forward(x, scale, bias, axis_name)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, axis_name: str | None):
    means = _sums(lambda x: (x, jnp.square(x)), x) / (x.size // x.shape[-1])
    mean, square = means if axis_name is None else lax.pmean(means, axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)  # rounding can take it below zero
    factor = lax.rsqrt(var + EPS)
    y = (at_least_float32(x) * (scale * factor) + (bias - mean * scale * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, factor)


def _normalise_backward(axis_name: str | None, residuals, cotangents):
    """With n the normalised x and means over the batch: dx = scale factor (dy - mean(dy) - n mean(dy n))."""
    x, scale, mean, factor = residuals
    dy = cotangents[0]
    dbias, dscale = sums = _sums(lambda dy, x: (dy, dy * ((x - mean) * factor)), dy, x)
    count = x.size // x.shape[-1]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    normalised = (at_least_float32(x) - mean) * factor
    dx = scale * factor * (at_least_float32(dy) - sums[0] / count - normalised * (sums[1] / count))
    return dx.astype(x.dtype), dscale, dbias


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _sums(terms: Callable[..., tuple[Array, Array]], *arrays: Array) -> Array:
    """The sums of two terms, each (B, H, W, C), over all but the channels: (2, C). terms: makes them of `arrays` in
    float32 at least.

    Image by image, then over the images: on a GPU XLA adds up in two rounds anyway, and would start two kernels for
    the second."""
    return jnp.stack([term.sum((1, 2)) for term in terms(*map(at_least_float32, arrays))]).sum(1)


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype where that has more."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))
