"""The convolution as matrix products: each pass against XLA's in float32 on equal numbers, and what XLA makes of it."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax

from jaxresnet import ModelConfig, build_model
from jaxresnet.nn.cpu import chunks
from jaxresnet.nn.cpu.conv import CPU_COMPILER_OPTIONS
from jaxresnet.nn.cpu.products import convolve, gradients, kernel_gradient

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAD0, PAD1, LEFT = ((0, 0), (0, 0)), ((1, 1), (1, 1)), ((0, 0), (1, 0))
on_cpu = pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="is for CPUs")


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def assert_passes_are_xlas(images, kernel, strides, padding):
    def in_float32(images, kernel):
        return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected, pull = jax.vjp(in_float32, *(a.astype(jnp.float32) for a in (images, kernel)))
    doutput = numbers(2, *expected.shape).astype(images.dtype)
    wanted = (expected, *pull(doutput.astype(jnp.float32)))
    output = jax.jit(convolve, static_argnums=(2, 3))(images, kernel, strides, padding)
    both = jax.jit(gradients, static_argnums=(3, 4))(images, kernel, doutput, strides, padding)
    alone = jax.jit(kernel_gradient, static_argnums=(2, 3, 4))(images, doutput, kernel.shape[:2], strides, padding)
    assert output.dtype == both[0].dtype == images.dtype and both[1].dtype == alone.dtype == jnp.float32
    for actual, expected in zip((output, *both, alone), (*wanted, wanted[2]), strict=True):
        assert actual.shape == expected.shape
        tolerance = 2.0**-8 if actual.dtype == jnp.bfloat16 else 1e-5  # rounded once: sums in it would be worse
        actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
        assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


@settings(max_examples=12, deadline=None)
@given(
    dtype=st.sampled_from(["bfloat16", "float32"]),
    batch=st.integers(0, 7),
    chunk=st.sampled_from([1, 300, chunks.NUMBERS_PER_CHUNK]),
    sides=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    channels=st.tuples(st.integers(1, 6) | st.sampled_from([16, 17]), st.integers(1, 6)),
    size=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
@example(dtype="bfloat16", batch=1, chunk=1, sides=(1, 1), channels=(1, 1), size=(3, 3), strides=(2, 2), padding=PAD1)
@example(dtype="bfloat16", batch=1, chunk=1, sides=(3, 3), channels=(2, 3), size=(1, 2), strides=(2, 2), padding=LEFT)
def test_any_shape(dtype, batch, chunk, sides, channels, size, strides, padding):
    padding = tuple((min(a, k - 1), min(b, k - 1)) for (a, b), k in zip(padding, size, strict=True))
    images, kernel = numbers(0, batch, *sides, channels[0]), numbers(1, *size, *channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "NUMBERS_PER_CHUNK", chunk)
        assert_passes_are_xlas(images.astype(dtype), kernel.astype(dtype), strides, padding)


@pytest.mark.parametrize(
    ("batch", "most", "expected"),
    [(1, 9, {1}), (8, 8, {8}), (8, 3, {2}), (16, 5, {4}), (7, 3, {3, 1}), (10, 4, {2}), (11, 4, {4, 3}), (3, 0, {1})],
)
def test_the_batch_goes_through_in_equal_chunks_where_it_can(batch, most, expected, monkeypatch):
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", most * 100)
    sizes = []

    def compute(a, b):
        sizes.append(len(a))
        return a + b, {"sum": b.sum()}

    a, b = jnp.arange(batch * 2.0).reshape(batch, 2), jnp.ones((batch, 2))
    by_image, sums = chunks.over_chunks(compute, a, b, numbers_per_image=100)
    np.testing.assert_array_equal(by_image, a + b)
    assert sums["sum"] == 2 * batch
    assert set(sizes) == expected


# -------------------------------------------------------------- what makes it fast, which is seen on a CPU of any kind


@on_cpu
def test_no_activation_is_written_in_float32(monkeypatch):
    """In a step of the network with bfloat16, outside of its loops over chunks."""
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 4 * 32 * 32 * 9 * 16)  # as many chunks as of the published one
    batch, width = 64, 16
    images, activation = numbers(0, batch, 32, 32, 3), batch * 32 * 32 * width
    model = build_model(ModelConfig(stage_sizes=(1, 1), width=width, pool_size=16, precision="bfloat16"), None, "cpu")
    variables = model.init(jax.random.key(0))

    def loss(params):
        return jnp.square(model.apply({**variables, "params": params}, images, True)[0]).sum()

    step = jax.jit(jax.grad(loss), compiler_options=CPU_COMPILER_OPTIONS)
    text = step.lower(variables["params"]).compile().as_text()
    entry = text[text.index("ENTRY") :]
    sizes = {
        dtype: [np.prod([*map(int, dims.split(","))]) for dims in re.findall(rf"= {dtype}\[([\d,]+)\]", entry)]
        for dtype in ("f32", "u16")
    }
    assert max(sizes["u16"]) >= activation, "those that are meant"
    assert max(sizes["f32"]) < activation / 2, "half of one, as after the first stage"


@pytest.mark.parametrize(
    ("size", "stride", "side", "products", "gathers"),
    # At stride 2 the four phases see 1, 1, 2 and 2 rows of the kernel. One of their windows is a slice, two are alike.
    [
        (3, 1, 16, 3 + 2 * 3, 3 + 3),
        (3, 2, 16, 3 + 2 * 6, 3 + 4),
        (1, 2, 16, 1 + 2 * 1, 0),
    ],
)
@on_cpu
def test_what_xla_makes_of_it(size, stride, side, products, gathers):
    """Products of bfloat16 alone, windows gathered as bits, and nothing large moved in float32."""
    images, kernel = numbers(0, 8, side, side, 32), numbers(1, size, size, 32, 64)
    doutput = numbers(2, 8, -(-side // stride), -(-side // stride), 64)
    padding = PAD1 if size == 3 else PAD0

    def passes(images, kernel, doutput):
        output, pull = jax.vjp(lambda *a: convolve(*a, (stride, stride), padding), images, kernel)
        return output, pull(doutput)

    compiled = jax.jit(passes, compiler_options=CPU_COMPILER_OPTIONS).lower(images, kernel, doutput).compile().as_text()
    dots = []
    for computation in compiled.split("\n\n"):  # each has its own names
        types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", computation))
        for result, *operands, contracted in re.findall(
            r"= (\w+)\[[\d,]+\]\S* dot\((%[\w.-]+), (%[\w.-]+)\), lhs_contracting_dims=\{(\d)\}", computation
        ):
            dots.append((result, *(types[operand] for operand in operands), contracted))
    assert dots == [("f32", "bf16", "bf16", "1")] * products
    windows = re.findall(r"= (\w+)\[(\d+),(\d+)\]\S* gather\(", compiled)
    assert [dtype for dtype, *_ in windows] == ["u16"] * gathers
    moved = re.findall(r"= f32\[([\d,]+)\]\S* (?:pad|slice|transpose|concatenate|gather|reverse)\(", compiled)
    sizes = [int(np.prod([int(n) for n in shape.split(",")])) for shape in moved]
    assert all(size <= 9 * 32 * 64 for size in sizes), "nothing in float32 but the kernel's gradient"
