"""Batch normalisation (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167) as PyTorch computes it, and the ReLU
that follows it: the layer with its running statistics, the normalisation, and the gradients of both.

Each pass reads the activations twice, once for the sums and once to use them, and writes them once. Activations stay
in their own dtype; the sums, and all that is made of them, are float32 at least.

In bfloat16 on a CPU the sums are taken in chunks of the batch, and activations are read as bits, for the reasons that
`cpu.chunks` gives. The results are the same to rounding.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array, lax

from jaxresnet.nn.cpu.chunks import as_bits, as_numbers, float32_by_bits, over_chunks

EPS = 1e-5
DECAY = 0.9  # of the running statistics; PyTorch's momentum of 0.1 is 1 - DECAY


class BatchNorm(nnx.Module):
    """The layer. It differs from `nnx.BatchNorm` in two ways: the running variance is the unbiased one, and training or
    inference is an argument of the call.

    axis_name: the mapped axis over whose devices the statistics are taken, None for one device. platform: where it
    will run, "cpu" for what is faster there.
    """

    def __init__(self, num_features: int, axis_name: str | None = None, platform: str | None = None):
        self.scale = nnx.Param(jnp.ones(num_features, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(num_features, jnp.float32))
        self.mean = nnx.BatchStat(jnp.zeros(num_features, jnp.float32))
        self.var = nnx.BatchStat(jnp.ones(num_features, jnp.float32))
        self.axis_name, self.platform = axis_name, platform

    def __call__(self, x: Array, train: bool) -> Array:
        """x: (B, H, W, C) -> the same shape and dtype. With train=True the running statistics move."""
        if not train:
            scale = self.scale[...] * lax.rsqrt(self.var[...] + EPS)
            return (x * scale + (self.bias[...] - self.mean[...] * scale)).astype(x.dtype)
        y, mean, var = normalise_batch(x, self.scale[...], self.bias[...], self.axis_name, self.platform)
        count = x.size // x.shape[-1] * (1 if self.axis_name is None else lax.axis_size(self.axis_name))
        unbiased = var * (count / max(count - 1, 1))
        self.mean[...] = DECAY * self.mean[...] + (1 - DECAY) * mean
        self.var[...] = DECAY * self.var[...] + (1 - DECAY) * unbiased
        return y


# ------------------------------------------------------------------------------------------------- normalisation


@partial(jax.custom_vjp, nondiff_argnums=(3, 4))
def normalise_batch(
    x: Array, scale: Array, bias: Array, axis_name: str | None, platform: str | None
) -> tuple[Array, Array, Array]:
    """Normalise `x` (B, H, W, C) by its own statistics, over the batches of all devices where `axis_name` names the
    mapped axis. scale, bias: (C,) float32. platform: where it will run.

    Returns (y of x's shape and dtype, mean (C,), biased variance (C,)). Mean and variance are for the running
    statistics: no gradient goes through them. For reverse mode only: `jax.jvp` raises TypeError.
    """
    return _normalise_forward(x, scale, bias, axis_name, platform)[0]


def _normalise_forward(x: Array, scale: Array, bias: Array, axis_name: str | None, platform: str | None):
    means = _sums(lambda x: (x, jnp.square(x)), x, platform=platform) / (x.size // x.shape[-1])
    mean, square = means if axis_name is None else lax.pmean(means, axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)  # rounding can take it below zero
    factor = lax.rsqrt(var + EPS)
    y = (_float32(x, platform) * (scale * factor) + (bias - mean * scale * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, factor)


def _normalise_backward(axis_name: str | None, platform: str | None, residuals, cotangents):
    """With n the normalised x and means over the batch: dx = scale factor (dy - mean(dy) - n mean(dy n))."""
    x, scale, mean, factor = residuals
    dy = cotangents[0]
    dbias, dscale = sums = _sums(lambda dy, x: (dy, dy * ((x - mean) * factor)), dy, x, platform=platform)
    count = x.size // x.shape[-1]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    normalised = (_float32(x, platform) - mean) * factor
    dx = scale * factor * (_float32(dy, platform) - sums[0] / count - normalised * (sums[1] / count))
    return dx.astype(x.dtype), dscale, dbias


normalise_batch.defvjp(_normalise_forward, _normalise_backward)


def _sums(terms: Callable[..., tuple[Array, Array]], *arrays: Array, platform: str | None) -> Array:
    """The sums of two terms, each (B, H, W, C), over all but the channels: (2, C). terms: makes them of `arrays` in
    float32 at least.

    Image by image, then over the images: on a GPU XLA adds up in two rounds anyway, and would start two kernels for
    the second."""

    def add_up(*arrays: Array) -> Array:
        return jnp.stack([term.sum((1, 2)) for term in terms(*(_float32(array, platform) for array in arrays))]).sum(1)

    if not keeps_bits(arrays[0], platform):
        return add_up(*arrays)
    numbers_per_image = 5 * arrays[0][0].size  # an activation, and two terms in float32
    return over_chunks(lambda *chunk: ((), add_up(*chunk)), *arrays, numbers_per_image=numbers_per_image)[1]


# ---------------------------------------------------------------------------------------------------------- ReLU


def relu(*terms: Array, platform: str | None = None) -> Array:
    """max(sum of terms, 0), in their dtype."""
    return _relu_by_bits(terms) if keeps_bits(terms[0], platform) else jax.nn.relu(sum(terms[1:], terms[0]))


@jax.custom_vjp
def _relu_by_bits(terms: tuple[Array, ...]) -> Array:
    first, *others = map(float32_by_bits, terms)
    return jnp.maximum(sum(others, first), 0).astype(jnp.bfloat16)


def _relu_forward(terms: tuple[Array, ...]) -> tuple[Array, tuple[Array, int]]:
    y = _relu_by_bits(terms)
    return y, (y, len(terms))


def _relu_backward(residuals: tuple[Array, int], dy: Array) -> tuple[tuple[Array, ...]]:
    y, count = residuals  # y > 0 exactly where the sum was, which so need not be kept
    return ((as_numbers(jnp.where(float32_by_bits(y) > 0, as_bits(dy), 0)),) * count,)


_relu_by_bits.defvjp(_relu_forward, _relu_backward)


# -------------------------------------------------------------------------------------------------------- dtypes


def keeps_bits(x: Array, platform: str | None) -> bool:
    """Whether activations such as `x` are best read as bits."""
    return platform == "cpu" and x.dtype == jnp.bfloat16


def at_least_float32(x: Array) -> Array:
    """`x` in float32, or in its own dtype where that has more."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _float32(x: Array, platform: str | None) -> Array:
    return float32_by_bits(x) if keeps_bits(x, platform) else at_least_float32(x)
