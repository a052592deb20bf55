"""Two-dimensional convolution for CPUs: in float32 with gradients that are fast there, in bfloat16 by `conv_products`.

XLA on CPU computes the weight gradient of a convolution as another convolution, over transposed copies of the images
and of the output gradient, and where the stride is not 1, the images' gradient as one over doutput with zeros between
its pixels. The latter is slow there, and the former in the stem, whose channels are few. So these gradients are sums of
matrix products here, in chunks that stay in the cache. At stride 1 they are neither faster nor slower than XLA's in the
whole step (0.88 to 1.03 times as fast by themselves, `benchmarks/conv_passes.py`). The forward pass, and the images'
gradient at stride 1, are XLA's own, which reach the speed of a matrix product.

Measured on two kinds of x86 only. On other CPUs, as ARM and Apple's, the same is done, unmeasured.

No convolution may be in a loop (`lax.scan`, `lax.while_loop`), where XLA on CPU falls back to a naive one; matrix
products may.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import cache, partial
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxresnet.hardware import multiplies_bfloat16
from jaxresnet.nn.cpu.chunks import empty_sum
from jaxresnet.nn.cpu.products import Padding, Pair, convolve, gradients, kernel_gradient

Backend = Literal["cpu", "bfloat16", "other"]

NHWC = ("NHWC", "HWIO", "NHWC")  # images, kernel, output, as lax names dimensions

# Measured by benchmarks/xla_options.py, batch 128, two cores with AVX512-BF16 (results/xla_options-cpu*.json).
CPU_COMPILER_OPTIONS = {
    # Otherwise XLA makes the windows of all layers and chunks early, for concurrency, and keeps them all in memory:
    # 0.7 GB instead of 0.3 in float32, at the same speed.
    "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
    # YNN, XLA's library for CPUs, multiplies matrices and adds up, but convolves no more. Its convolutions are up to
    # three times as slow as Eigen's, where the channels are few or the stride is 2. Together with the above 1.32 times
    # as fast as without either in float32. With DOT, products of bfloat16 would become products of float32.
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE",
}


def conv2d(
    images: jax.Array,
    kernel: jax.Array,
    strides: Pair = (1, 1),
    padding: Padding = ((0, 0), (0, 0)),
    *,
    backend: Backend = "other",
) -> jax.Array:
    """Cross-correlate `images` [N, H, W, C] with `kernel` [kh, kw, C, O]; returns [N, Ho, Wo, O] in images' dtype.

    `strides` are (vertical, horizontal), `padding` is ((top, bottom), (left, right)) zeros, none negative.
    `backend` "cpu" takes the gradients of this module, computed in float32 whatever the dtype; "bfloat16" takes
    `conv_products` for bfloat16 images, and else what "cpu" takes; "other" leaves all passes to
    XLA. It is an argument because the choice is made while tracing, before devices are known. All give the same
    numbers up to the rounding of images' dtype, or of float32 where that has more. On CPU compile the whole training
    step with `CPU_COMPILER_OPTIONS`: `jax.jit(step, compiler_options=CPU_COMPILER_OPTIONS)`; otherwise it takes a few
    times the memory.

    But for "other", it is for reverse mode: `jax.jvp` raises TypeError, and in bfloat16 by `conv_products` a second
    derivative raises NotImplementedError.
    """
    images, padding = _without_wide_padding(images, kernel.shape[:2], padding)
    if backend == "other":
        return _xla_conv(images, kernel, strides, padding)
    # Inside `shard_map` a replicated kernel must vary as the images do, so that its gradient is summed over devices.
    # XLA removes the added zeros.
    kernel32 = kernel.astype(jnp.float32) + empty_sum(images, jnp.float32)
    if backend == "bfloat16" and images.dtype == jnp.bfloat16:
        return convolve(images + empty_sum(kernel, images.dtype), kernel32, strides, padding)
    images32 = images.astype(jnp.float32) + empty_sum(kernel, jnp.float32)
    return _conv_cpu(images32, kernel32, strides, padding).astype(images.dtype)


def conv_cpu(
    images: jax.Array,
    kernel: jax.Array,
    strides: Sequence[int],
    padding: str | Sequence[Pair],
    *,
    lhs_dilation: Sequence[int] = (1, 1),
    rhs_dilation: Sequence[int] = (1, 1),
    dimension_numbers: Any = NHWC,
    feature_group_count: int = 1,
    precision: Any = None,
    backend: Backend = "cpu",
    **others: Any,
) -> jax.Array:
    """`conv2d` for CPU with the arguments that `nnx.Conv(conv_general_dilated=...)` gives `lax.conv_general_dilated`.

    `padding` may be "SAME" or "VALID". precision: of lax, changes nothing on a CPU. backend: see `conv2d`. Raises
    NotImplementedError for dilation, groups, other layouts than NHWC, and what else is not None.
    """
    if asked := {name: value for name, value in others.items() if value is not None}:
        raise NotImplementedError(f"the CPU convolution has no {asked}: use lax.conv_general_dilated")
    layout = partial(lax.conv_dimension_numbers, images.shape, kernel.shape)
    if layout(dimension_numbers) != layout(NHWC):
        raise NotImplementedError(f"the CPU convolution takes images in NHWC, kernels in HWIO, not {dimension_numbers}")
    if feature_group_count != 1 or {*lhs_dilation, *rhs_dilation} != {1}:
        raise NotImplementedError("the CPU convolution has no dilation and no groups: use lax.conv_general_dilated")
    if isinstance(padding, str):
        padding = lax.padtype_to_pads(images.shape[1:3], kernel.shape[:2], strides, padding)
    (top, bottom), (left, right) = padding
    return conv2d(images, kernel, (strides[0], strides[1]), ((top, bottom), (left, right)), backend=backend)


def conv_for(platform: str | None, dtype: Any) -> Callable[..., jax.Array]:
    """What stands for `lax.conv_general_dilated` on a platform ("cpu", "gpu", "tpu"; None for any), for activations of
    `dtype`. Warns, once, of bfloat16 on a CPU that does not multiply it."""
    if platform != "cpu":
        return lax.conv_general_dilated
    if dtype != jnp.bfloat16:
        return conv_cpu
    if multiplies_bfloat16():
        return partial(conv_cpu, backend="bfloat16")
    _warn_of_bfloat16()
    return conv_cpu


def convolves_in_loops(platform: str, precision: str) -> bool:
    """Whether a network's convolutions may be in a loop: all but XLA's on a CPU. precision: of the activations."""
    return platform != "cpu" or (precision == "bfloat16" and multiplies_bfloat16())


@cache
def _warn_of_bfloat16() -> None:
    """Once a process."""
    warnings.warn(
        "precision=bfloat16 on a CPU not known to multiply it (by AVX512-BF16 or AMX): convolutions are computed in "
        "float32. JAXRESNET_CPU_BFLOAT16=1 computes them in bfloat16",
        stacklevel=3,
    )


def _without_wide_padding(images: jax.Array, kernel_size: Sequence[int], padding: Padding) -> tuple[jax.Array, Padding]:
    """Add the zeros by hand that go beyond the kernel's size less one.

    The gradient for the images of such a convolution is one with negative padding, for which XLA:CPU reads memory
    outside the array (seen in jaxlib 0.10.2: numbers that change from run to run, and NaN)."""
    wide = [(max(0, a - k + 1), max(0, b - k + 1)) for k, (a, b) in zip(kernel_size, padding, strict=True)]
    if not any(map(any, wide)):
        return images, padding
    (top, bottom), (left, right) = ((a - u, b - v) for (a, b), (u, v) in zip(padding, wide, strict=True))
    return jnp.pad(images, ((0, 0), *wide, (0, 0))), ((top, bottom), (left, right))


def _xla_conv(images: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=NHWC)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv_cpu(images: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding) -> jax.Array:
    return _xla_conv(images, kernel, strides, padding)


def _conv_cpu_forward(images: jax.Array, kernel: jax.Array, strides: Pair, padding: Padding):
    return _xla_conv(images, kernel, strides, padding), (images, kernel)


def _conv_cpu_backward(strides: Pair, padding: Padding, residuals, doutput: jax.Array):
    images, kernel = residuals
    if strides != (1, 1):
        return gradients(images, kernel, doutput, strides, padding)
    (dimages,) = jax.linear_transpose(lambda x: _xla_conv(x, kernel, strides, padding), images)(doutput)
    return dimages, kernel_gradient(images, doutput, kernel.shape[:2], strides, padding)


_conv_cpu.defvjp(_conv_cpu_forward, _conv_cpu_backward)
