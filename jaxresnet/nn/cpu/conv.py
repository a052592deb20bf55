"""Two-dimensional convolution for CPUs: fast gradients in float32, and all passes as matrix products in bfloat16.

XLA on CPU computes the kernel's gradient as a convolution over transposed copies of the images and of the output's
gradient; that is slow where channels are few, as in the stem. Where the stride is not 1, it computes the images'
gradient as a convolution over a map with zeros between its pixels; that is slow too. Here these gradients are sums of
matrix products, in chunks of the batch that stay in the cache (`products`). The forward pass, and the images' gradient
at stride 1, are XLA's own in float32: they reach the speed of a matrix product. In bfloat16 XLA would compute in
float32, so all passes are products, where the CPU multiplies bfloat16.

Measured on two kinds of x86. Other CPUs, as ARM and Apple's, take the same path, unmeasured.
"""

import warnings
from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from jaxresnet.hardware import multiplies_bfloat16
from jaxresnet.nn.cpu.chunks import empty_sum
from jaxresnet.nn.cpu.products import Padding, Pair, convolve, gradients, kernel_gradient

# For `jax.jit(step, compiler_options=...)`, where the step is a whole training step; without them it takes several
# times the memory. Batch 128, two cores with AVX512-BF16, float32: 1.32 times as fast with both as with neither.
CPU_COMPILER_OPTIONS = {
    # Otherwise XLA makes the windows of all layers and chunks early, for concurrency, and keeps them all in memory:
    # 0.7 GB instead of 0.3, at the same speed.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # YNN, XLA's library for CPUs, multiplies matrices and adds up, but does not convolve: its convolutions are up to
    # three times as slow as Eigen's where channels are few or the stride is 2. With DOT in place of INDIVIDUAL_DOT,
    # products of bfloat16 would become products of float32.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def conv_cpu(
    images: Array,
    kernel: Array,
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[Pair] = "VALID",
    *,
    dimension_numbers: Any = None,
    precision: Any = None,
    **others: Any,
) -> Array:
    """Cross-correlate `images` (N, H, W, C) with `kernel` (kh, kw, C, O): (N, Ho, Wo, O) in images' dtype.

    For `nnx.Conv(conv_general_dilated=conv_cpu, promote_dtype=promote_images)`, whose arguments it takes. strides:
    (vertical, horizontal). padding: ((top, bottom), (left, right)) zeros, each less than the kernel's size, or "SAME"
    or "VALID". dimension_numbers: always NHWC. precision: changes nothing on a CPU. Raises NotImplementedError for
    wider padding and for all else that is asked for, as dilation and groups.

    bfloat16 images are convolved in bfloat16 where the CPU multiplies it, elsewhere in float32, with a warning once a
    process. The gradient of a float32 kernel is float32. For reverse mode, as `products.convolve`.
    """
    if asked := {name: value for name, value in others.items() if value not in (None, 1, (1, 1))}:
        raise NotImplementedError(f"the convolution for CPUs has no {asked}: use lax.conv_general_dilated")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    if max(top, bottom) >= kernel.shape[0] or max(left, right) >= kernel.shape[1]:
        # XLA:CPU's gradient for the images would read outside the array (seen in jaxlib 0.10.2).
        raise NotImplementedError(f"padding={padding}: must be less than the kernel's size; use jnp.pad before")
    sizes = (strides[0], strides[1]), ((top, bottom), (left, right))

    # Inside `shard_map` a replicated kernel must vary as the images do, so that its gradient is summed over devices.
    # XLA removes the added zeros.
    kernel32 = kernel.astype(jnp.float32) + empty_sum(images, jnp.float32)
    if images.dtype == jnp.bfloat16:
        if multiplies_bfloat16():
            return convolve(images + empty_sum(kernel, images.dtype), kernel32, *sizes)
        _warn_of_bfloat16()
    images32 = images.astype(jnp.float32) + empty_sum(kernel, jnp.float32)
    return _conv_float32(images32, kernel32, *sizes).astype(images.dtype)


def promote_images(arrays: Any, /, *, dtype: Any = None, inexact: bool = True) -> Any:
    """What `nnx.Conv` does to (images, kernel, bias), except that the kernel stays in float32, and so its gradient."""
    images, kernel, bias = arrays
    return images.astype(dtype), kernel, bias


def convolves_in_loops(platform: str, precision: str) -> bool:
    """Whether a network's convolutions may be in a loop (`lax.scan`, `lax.while_loop`). XLA's on a CPU may not: it
    takes a naive one there, up to 50 times slower. precision: of the activations."""
    return platform != "cpu" or (precision == "bfloat16" and multiplies_bfloat16())


@cache
def _warn_of_bfloat16() -> None:
    """Once a process."""
    warnings.warn(
        "precision=bfloat16 on a CPU not known to multiply it (by AVX512-BF16 or AMX): convolutions are computed in "
        "float32. JAXRESNET_CPU_BFLOAT16=1 computes them in bfloat16",
        stacklevel=2,
    )


# ------------------------------------------------------------------------------------------------------- float32


def _xla_conv(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_float32(images: Array, kernel: Array, strides: Pair, padding: Padding) -> Array:
    return _xla_conv(images, kernel, strides, padding)


def _forward(images: Array, kernel: Array, strides: Pair, padding: Padding):
    return _xla_conv(images, kernel, strides, padding), (images, kernel)


def _backward(strides: Pair, padding: Padding, residuals, doutput: Array):
    images, kernel = residuals
    if strides != (1, 1):
        return gradients(images, kernel, doutput, strides, padding)
    (dimages,) = jax.linear_transpose(lambda x: _xla_conv(x, kernel, strides, padding), images)(doutput)
    return dimages, kernel_gradient(images, doutput, kernel.shape[:2], strides, padding)


_conv_float32.defvjp(_forward, _backward)
