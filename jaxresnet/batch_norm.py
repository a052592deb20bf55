"""Batch normalisation with a gradient of its own (Ioffe and Szegedy 2015, https://arxiv.org/abs/1502.03167).

Both passes are what an ideal compiler would make of them: one pass over the activations for the sums, one that uses
them. Activations stay in their own dtype; sums and all that is made of them are float32 at least.
"""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxresnet.chunks import NUMBERS_PER_CHUNK, float32_by_bits, over_chunks

NUMBERS_PER_SUM = 2**19  # of an activation, in a chunk whose sums are taken


def at_least_float32(x: Array) -> Array:
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


@partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def batch_norm(
    x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None, platform: str | None = None
) -> tuple[Array, Array, Array]:
    """Normalise `x` (B, H, W, C) by its own statistics, over the batches of all devices where `axis_name` names the
    mapped axis. scale, bias: (C,) float32. platform: "cpu" takes the sums in chunks that stay in the cache.

    Returns (y of x's shape and dtype, mean (C,), biased variance (C,)). No gradient goes through the latter two: they
    are for the running statistics. For reverse mode only (`jax.grad`, `jax.vjp`): `jax.jvp` raises TypeError.
    """
    return _forward(x, scale, bias, eps, axis_name, platform)[0]


def _forward(x: Array, scale: Array, bias: Array, eps: float, axis_name: str | None, platform: str | None):
    means = _sums(lambda x: (x, jnp.square(x)), x, platform=platform) / (x.size // x.shape[-1])
    mean, square = means if axis_name is None else lax.pmean(means, axis_name)
    var = jnp.maximum(square - jnp.square(mean), 0)  # rounding can take it below zero
    factor = lax.rsqrt(var + eps)
    y = (_float32(x, platform) * (scale * factor) + (bias - mean * scale * factor)).astype(x.dtype)
    return (y, mean, var), (x, scale, mean, factor)


def _backward(eps: float, axis_name: str | None, platform: str | None, residuals, cotangents):
    x, scale, mean, factor = residuals
    dy = cotangents[0]
    dbias, dscale = sums = _sums(lambda dy, x: (dy, dy * ((x - mean) * factor)), dy, x, platform=platform)
    count = x.size // x.shape[-1]
    if axis_name is not None:
        sums = lax.pmean(sums, axis_name)
    normalised = (_float32(x, platform) - mean) * factor
    dx = scale * factor * (_float32(dy, platform) - sums[0] / count - normalised * (sums[1] / count))
    return dx.astype(x.dtype), dscale, dbias


batch_norm.defvjp(_forward, _backward)


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def relu(terms: tuple[Array, ...], platform: str | None = None) -> Array:
    """max(sum of terms, 0). The gradient looks at the result, where `jax.nn.relu`'s looks at what is under it: that
    need not be kept."""
    dtype = terms[0].dtype
    if platform == "cpu":
        terms = tuple(map(float32_by_bits, terms))
    return jnp.maximum(sum(terms[1:], terms[0]), 0).astype(dtype)


def _relu_forward(terms: tuple[Array, ...], platform: str | None) -> tuple[Array, tuple[Array, int]]:
    y = relu(terms, platform)
    return y, (y, len(terms))


def _relu_backward(platform: str | None, residuals: tuple[Array, int], dy: Array) -> tuple[tuple[Array, ...]]:
    y, count = residuals
    return ((jnp.where(_float32(y, platform) > 0, dy, 0),) * count,)


relu.defvjp(_relu_forward, _relu_backward)


def _float32(x: Array, platform: str | None) -> Array:
    return at_least_float32(float32_by_bits(x) if platform == "cpu" else x)


def _sums(terms: Callable[..., tuple[Array, Array]], *arrays: Array, platform: str | None) -> Array:
    """The sums of both terms, each (B, H, W, C), over all but the channels: (2, C). terms: of `arrays`, given in
    float32 at least.

    Image by image, then both over the images at once: on a GPU XLA adds up in two rounds anyway, and would start two
    kernels for the second."""

    def add_up(*arrays: Array) -> Array:
        return jnp.stack([term.sum((1, 2)) for term in terms(*(_float32(array, platform) for array in arrays))]).sum(1)

    if platform != "cpu":
        return add_up(*arrays)
    numbers_per_image = NUMBERS_PER_CHUNK // NUMBERS_PER_SUM * arrays[0][0].size
    return over_chunks(lambda *chunk: (chunk[0][:, :0], add_up(*chunk)), *arrays, numbers_per_image=numbers_per_image)[1]
