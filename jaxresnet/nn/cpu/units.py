"""What the network is made of on a CPU, each with a gradient of its own: the stem, a block, and the average at the end.

Between units a map is (C, H, W, N) in the dtype of the activations, bfloat16 or float32. It is the output of a ReLU.
The unit that reads a map also sets its gradient to 0 where the map is 0: the loops that compute the gradient read the
map anyway. A unit frames its input as it needs it; XLA writes the frame together with what is inside.

With `raw` the output of a convolution, batch norm is a * raw + b with a = scale / deviation and b = bias - a * mean, in
one pass with the ReLU. Its sums come with the convolution.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxresnet.nn.batch_norm import EPS
from jaxresnet.nn.cpu.conv import Convolved, convolve, gradients, kernel_gradient
from jaxresnet.nn.cpu.layout import (
    as_cells,
    as_numbers,
    framed,
    inside,
    positive,
    to_cells,
    to_float32,
    transposed,
    zeros,
)

Params = dict[str, dict[str, Array]]  # of a unit's layers, by name: {"kernel"} or {"scale", "bias"}, float32


class Norm(NamedTuple):
    """A batch norm at work: a * raw + b. raw: (C, H, W, N) cells. a, b, mean, var: (C,) float32; var is biased."""

    raw: Array
    a: Array
    b: Array
    mean: Array
    var: Array

    def __call__(self) -> Array:
        """(C, H, W, N) float32."""
        return to_float32(self.raw) * _column(self.a) + _column(self.b)


Normalise = Callable[[Convolved, Params, str], Norm]  # what a convolution gave, by the layer of this name


def by_batch(axis_name: str | None) -> Normalise:
    """By the statistics of the batch, that of all devices where `axis_name` names the mapped axis."""

    def normalise(convolved: Convolved, params: Params, name: str) -> Norm:
        means = jnp.stack([convolved.sums, convolved.squares]).sum(2) / convolved.map[0].size
        mean, square = means if axis_name is None else lax.pmean(means, axis_name)
        return _norm(convolved, params[name], mean, jnp.maximum(square - mean * mean, 0))  # rounding can go below 0

    return normalise


def by_running(batch_stats: Params) -> Normalise:
    """By running statistics: {name: {"mean", "var"}}."""

    def normalise(convolved: Convolved, params: Params, name: str) -> Norm:
        return _norm(convolved, params[name], batch_stats[name]["mean"], batch_stats[name]["var"])

    return normalise


def _norm(convolved: Convolved, params: dict[str, Array], mean: Array, var: Array) -> Norm:
    a = params["scale"] * lax.rsqrt(var + EPS)
    return Norm(convolved.map, a, params["bias"] - a * mean, mean, var)


def norm_gradient(
    norm: Norm, dy: Array, sums: Array, products: Array, axis_name: str | None
) -> tuple[Array, dict[str, Array]]:
    """Of a * raw + b with statistics of the batch: (for raw, (C, H, W, N) cells; {"scale", "bias"}).

    dy: cells. sums, products: (C,), over this device's batch, of dy and of dy * raw. With n the normalised raw and
    means over the batch of all devices, draw = a (dy - mean(dy) - n mean(dy n)).
    """
    factor = lax.rsqrt(norm.var + EPS)
    dscale = (products - norm.mean * sums) * factor
    means = jnp.stack([sums, dscale]) / dy[0].size
    dy_mean, slope = means if axis_name is None else lax.pmean(means, axis_name)
    b = -norm.a * factor * slope
    constant = -norm.a * dy_mean - b * norm.mean
    draw = to_float32(dy) * _column(norm.a) + to_float32(norm.raw) * _column(b) + _column(constant)
    return to_cells(draw, dy.dtype), {"scale": dscale, "bias": sums}


def _sums(dy: Array, *raws: Array) -> list[Array]:
    """Of dy, and of dy times each of `raws`: (C,) float32 each, over all else. In a loop, some channels at a time, so
    that every map is read once; image by image, so that XLA adds up vectors."""
    c, h, w, n = dy.shape
    group = next(g for g in range(max(1, min(c, 2**15 // (h * w * n))), 0, -1) if c % g == 0)

    def body(t: Array, carry: list[Array]) -> list[Array]:
        def part(map: Array) -> Array:
            return to_float32(lax.dynamic_slice_in_dim(map, t * group, group)).reshape(group, h * w, n)

        d = part(dy)
        terms = [d, *(d * part(raw) for raw in raws)]
        return [
            lax.dynamic_update_slice_in_dim(total, term.sum(1), t * group, 0)
            for total, term in zip(carry, terms, strict=True)
        ]

    totals = [zeros((c, n), jnp.float32, dy)] * (1 + len(raws))
    return [total.sum(1) for total in lax.fori_loop(0, c // group, body, totals)]


def _column(channels: Array) -> Array:
    return channels[:, None, None, None]


def _rounded(x: Array, dtype: Any) -> Array:
    """float32 -> cells of maps of this dtype."""
    return to_cells(x, jnp.float32 if dtype == jnp.float32 else jnp.uint16)


# ----------------------------------------------------------------------------------------------------------- stem


def stem_forward(
    images: Array, params: Params, dtype: Any, normalise: Normalise
) -> tuple[Array, tuple[Array, Array, Norm]]:
    """(map, (framed images, rounded kernel, norm)). See `stem`."""
    rows, columns = images.shape[1:3]
    last = transposed(images.reshape(len(images), -1)).reshape(rows, columns, -1, len(images))
    x, kernel = framed(_rounded(last.transpose(2, 0, 1, 3), dtype)), _rounded(params["conv1"]["kernel"], dtype)
    norm = normalise(convolve(x, [kernel], 1)[0], params, "bn1")
    return as_numbers(to_cells(jax.nn.relu(norm()), x.dtype)), (x, kernel, norm)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def stem(images: Array, params: Params, dtype: Any, axis_name: str | None) -> tuple[Array, dict[str, Norm]]:
    """images: (N, H, W, 3) float32. params: of conv1 and bn1. dtype: of the map. -> (map, {"bn1": its norm})."""
    return _stem_forward(images, params, dtype, axis_name)[0]


def _stem_forward(images: Array, params: Params, dtype: Any, axis_name: str | None):
    out, (x, kernel, norm) = stem_forward(images, params, dtype, by_batch(axis_name))
    return (out, {"bn1": norm}), (x, kernel, norm)


def _stem_backward(dtype: Any, axis_name: str | None, residuals: tuple[Array, Array, Norm], cotangents: Any):
    x, kernel, norm = residuals
    dy = as_cells(cotangents[0])
    sums, products = _sums(dy, norm.raw)
    draw, dnorm = norm_gradient(norm, dy, sums, products, axis_name)
    turned = kernel[::-1, ::-1].transpose(0, 1, 3, 2)
    dimages = convolve(framed(draw), [turned], 1)[0].map  # XLA leaves it out where nobody asks for it
    return to_float32(dimages).transpose(3, 1, 2, 0), {"conv1": {"kernel": kernel_gradient(x, draw)}, "bn1": dnorm}


stem.defvjp(_stem_forward, _stem_backward)


# ---------------------------------------------------------------------------------------------------------- block


class _Kept(NamedTuple):
    """What a block's gradient needs. x, middle: framed inputs of its convolutions. kernels: rounded, by name."""

    x: Array
    middle: Array
    kernels: dict[str, Array]
    norms: dict[str, Norm]


def block_forward(x: Array, params: Params, stride: int, normalise: Normalise) -> tuple[Array, _Kept]:
    """(map, what its gradient needs). See `block`."""
    x = framed(as_cells(x), stride)
    kernels = {name: to_cells(layer["kernel"], x.dtype) for name, layer in params.items() if "kernel" in layer}
    at_input = [name for name in ("conv1", "shortcut_conv") if name in kernels]
    convolved = dict(zip(at_input, convolve(x, [kernels[name] for name in at_input], stride), strict=True))

    norms = {"bn1": normalise(convolved["conv1"], params, "bn1")}
    middle = framed(to_cells(jax.nn.relu(norms["bn1"]()), x.dtype))
    norms["bn2"] = normalise(convolve(middle, [kernels["conv2"]], 1)[0], params, "bn2")
    if "shortcut_conv" in kernels:
        norms["shortcut_bn"] = normalise(convolved["shortcut_conv"], params, "shortcut_bn")
    shortcut = norms["shortcut_bn"]() if "shortcut_bn" in norms else to_float32(inside(x))
    out = to_cells(jax.nn.relu(norms["bn2"]() + shortcut), x.dtype)
    return as_numbers(out), _Kept(x, middle, kernels, norms)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def block(x: Array, params: Params, stride: int, axis_name: str | None) -> tuple[Array, dict[str, Norm]]:
    """A `resnet.BasicBlock` in training. params: of its layers. -> (map, its norms by name)."""
    return _block_forward(x, params, stride, axis_name)[0]


def _block_forward(x: Array, params: Params, stride: int, axis_name: str | None):
    out, kept = block_forward(x, params, stride, by_batch(axis_name))
    return (out, kept.norms), kept


def _block_backward(stride: int, axis_name: str | None, kept: _Kept, cotangents: Any):
    x, middle, kernels, norms = kept
    dy = as_cells(cotangents[0])
    last = [name for name in ("bn2", "shortcut_bn") if name in norms]
    sums, *products = _sums(dy, *(norms[name].raw for name in last))
    draws: dict[str, Array] = {}
    dparams: Params = {}
    for name, product in zip(last, products, strict=True):
        draws[name], dparams[name] = norm_gradient(norms[name], dy, sums, product, axis_name)

    second = gradients(middle, [framed(draws["bn2"])], [kernels["conv2"]], 1, raw=norms["bn1"].raw)
    dparams["conv2"] = {"kernel": second.kernels[0]}
    draw, dparams["bn1"] = norm_gradient(
        norms["bn1"], second.map, second.sums.sum(1), second.products.sum(1), axis_name
    )
    if "shortcut_bn" in norms:
        at_input = [kernels["conv1"], kernels["shortcut_conv"]]
        first = gradients(x, [framed(draw), framed(draws["shortcut_bn"])], at_input, stride)
        dparams["shortcut_conv"] = {"kernel": first.kernels[1]}
    else:
        first = gradients(x, [framed(draw)], [kernels["conv1"]], 1, add=dy)
    dparams["conv1"] = {"kernel": first.kernels[0]}
    side = x.shape[1] - 2  # maps are square
    return as_numbers(first.map[:, :side, :side]), dparams


block.defvjp(_block_forward, _block_backward)


# ---------------------------------------------------------------------------------------------------------- average


@jax.custom_vjp
def average(x: Array) -> Array:
    """A map -> (N, C) float32, the mean over its pixels."""
    return to_float32(as_cells(x)).mean((1, 2)).T


def _average_forward(x: Array):
    return average(x), x


def _average_backward(x: Array, dmeans: Array):
    cells = as_cells(x)
    dx = jnp.where(positive(cells), (dmeans.T / (x.shape[1] * x.shape[2]))[:, None, None], 0)
    return (as_numbers(to_cells(dx, cells.dtype)),)


average.defvjp(_average_forward, _average_backward)
