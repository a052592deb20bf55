"""The CPU convolution against XLA's own, values and both gradients, in every shape that it claims to take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, PartitionSpec

from jaxresnet.nn.cpu import chunks, conv
from jaxresnet.nn.cpu.conv import conv2d

pytestmark = pytest.mark.usefixtures("quick_compilation")

PAD1 = ((1, 1), (1, 1))


def random_case(images_shape, kernel_shape, dtype=jnp.float32):
    images_key, kernel_key = jax.random.split(jax.random.key(0))
    return jax.random.normal(images_key, images_shape, dtype), jax.random.normal(kernel_key, kernel_shape, dtype)


def value_and_gradients(backend, images, kernel, strides, padding, options=None):
    """The output and the gradients for images and kernel of a loss whose output gradient differs everywhere."""

    def loss(images, kernel):
        output = conv2d(images, kernel, strides, padding, backend=backend)
        weights = jnp.cos(jnp.arange(output.size, dtype=jnp.float32)).reshape(output.shape)
        return jnp.sum(output.astype(jnp.float32) * weights), output

    step = jax.jit(jax.grad(loss, argnums=(0, 1), has_aux=True), compiler_options=options)
    gradients, output = step(images, kernel)
    return output, *gradients


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def assert_same_as_xla(images, kernel, strides, padding):
    options = conv.CPU_COMPILER_OPTIONS if jax.devices()[0].platform == "cpu" else None  # as in a training step
    ours = value_and_gradients("cpu", images, kernel, strides, padding, options)
    xlas = value_and_gradients("other", images, kernel, strides, padding)
    for actual, expected in zip(ours, xlas, strict=True):
        assert_close(actual, expected)


@pytest.mark.parametrize("size", [(8, 8), (9, 7), (5, 12)])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_same_numbers_as_xla(kernel, stride, size):
    pad = kernel // 2
    assert_same_as_xla(*random_case((3, *size, 5), (kernel, kernel, 5, 7)), (stride, stride), ((pad, pad), (pad, pad)))


@settings(max_examples=10, deadline=None)
@given(
    batch=st.integers(1, 4),
    size=st.tuples(st.integers(3, 9), st.integers(3, 9)),
    channels=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    strides=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    padding=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
)
@example(batch=1, size=(3, 3), channels=(1, 2), kernel=(2, 2), strides=(1, 1), padding=((1, 1), (2, 0)))
def test_same_numbers_as_xla_for_any_shape(batch, size, channels, kernel, strides, padding):
    assert_same_as_xla(*random_case((batch, *size, channels[0]), (*kernel, *channels)), strides, padding)


@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_padding_wider_than_the_kernel_against_numpy(backend):
    """Where XLA:CPU's own gradient for the images reads outside the array."""
    images, kernel = random_case((2, 3, 4, 2), (2, 1, 2, 3))
    padding = ((1, 3), (2, 0))
    output, dimages, dkernel = value_and_gradients(backend, images, kernel, (1, 1), padding)
    padded = np.pad(np.asarray(images, np.float64), ((0, 0), *padding, (0, 0)))
    weights = np.cos(np.arange(output.size)).reshape(output.shape)
    (height, width), k = output.shape[1:3], np.asarray(kernel, np.float64)
    dpadded, dk, expected = np.zeros_like(padded), np.zeros_like(k), 0.0
    for i in range(2):
        window = padded[:, i : i + height, :width]
        expected = expected + window @ k[i, 0]
        dk[i, 0] = np.einsum("nhwc,nhwo->co", window, weights)
        dpadded[:, i : i + height, :width] += weights @ k[i, 0].T
    assert_close(output, expected)
    assert_close(dimages, dpadded[:, 1:4, 2:])
    assert_close(dkernel, dk)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize(("batch", "in_the_loop"), [(3, None), (6, 3), (7, 3)])
def test_batch_in_chunks(monkeypatch, strides, batch, in_the_loop):
    """Three images a chunk, and a smaller last chunk for 7."""
    windows_of_an_image = 8 * 8 * (9 if strides == (1, 1) else 4) * 4  # of one phase
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 3 * windows_of_an_image)
    images, kernel = random_case((batch, 8 * strides[0], 8 * strides[0], 4), (3, 3, 4, 4))
    jaxpr = str(jax.make_jaxpr(lambda: value_and_gradients("cpu", images, kernel, strides, PAD1))())
    assert jaxpr.count(" scan[") == (in_the_loop is not None)
    assert (f"f32[2,{in_the_loop},8,8,4]" in jaxpr) == (in_the_loop is not None)
    assert_same_as_xla(images, kernel, strides, PAD1)


@pytest.mark.parametrize("backend", ["cpu", "other"])
def test_bfloat16_keeps_its_dtype_and_accumulates_in_float32(backend):
    case = random_case((4, 8, 8, 16), (3, 3, 16, 8), jnp.bfloat16)
    actual = value_and_gradients(backend, *case, (2, 2), PAD1)
    expected = value_and_gradients("other", *(a.astype(jnp.float32) for a in case), (2, 2), PAD1)
    for a, e in zip(actual, expected, strict=True):
        assert a.dtype == jnp.bfloat16
        assert_close(a, e, 2.0**-8)  # one rounding to bfloat16; sums in bfloat16 would be several times worse


def test_same_numbers_for_many_positions():
    """A weight gradient that sums over 36,864 output positions and several chunks keeps float32 accuracy."""
    assert_same_as_xla(*random_case((36, 32, 32, 24), (3, 3, 24, 8)), (1, 1), PAD1)


def test_other_backends_leave_everything_to_xla():
    images, kernel = random_case((2, 8, 8, 4), (3, 3, 4, 4))

    def has_products(backend):
        jaxpr = jax.make_jaxpr(lambda: value_and_gradients(backend, images, kernel, (1, 1), PAD1))()
        return "dot_general" in str(jaxpr)

    assert has_products("cpu") and not has_products("other")


def test_nnx_conv_takes_it():
    images, _ = random_case((2, 9, 9, 3), (1,))
    for padding in (PAD1, "SAME", "VALID"):
        layers = [
            nnx.Conv(3, 4, (3, 3), 2, padding=padding, conv_general_dilated=function, rngs=nnx.Rngs(0))
            for function in (conv.conv_cpu, jax.lax.conv_general_dilated)
        ]
        ours, xlas = (jax.grad(lambda x, layer=layer: jnp.sum(layer(x) ** 2))(images) for layer in layers)
        assert_close(ours, xlas)


@pytest.mark.parametrize("option", [{"kernel_dilation": 2}, {"input_dilation": 2}, {"feature_group_count": 2}])
def test_dilation_and_groups_are_refused(option):
    layer = nnx.Conv(4, 4, (3, 3), conv_general_dilated=conv.conv_cpu, rngs=nnx.Rngs(0), **option)
    with pytest.raises(NotImplementedError, match="no dilation and no groups"):
        layer(jnp.zeros((1, 8, 8, 4)))


def test_another_dtype_of_results_is_refused():
    layer = nnx.Conv(
        4, 4, (3, 3), conv_general_dilated=conv.conv_cpu, preferred_element_type="float32", rngs=nnx.Rngs(0)
    )
    with pytest.raises(NotImplementedError, match="preferred_element_type"):
        layer(jnp.zeros((1, 8, 8, 4)))


def test_another_layout_is_refused():
    images, kernel = random_case((2, 3, 8, 8), (4, 3, 3, 3))
    for layout in (None, ("NCHW", "OIHW", "NCHW")):
        with pytest.raises(NotImplementedError, match="NHWC"):
            conv.conv_cpu(images, kernel, (1, 1), "SAME", dimension_numbers=layout)


def test_replicated_kernel_under_shard_map_and_pmap():
    images, kernel = random_case((2, 6, 6, 3), (3, 3, 3, 4))

    def gradients(images, kernel):
        return jax.grad(lambda *a: jnp.sum(conv2d(*a, padding=PAD1, backend="cpu") ** 2), argnums=(0, 1))(
            images, kernel
        )

    expected = gradients(images, kernel)
    data, replicated = PartitionSpec("data"), PartitionSpec()
    mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
    sharded = jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(data, replicated), out_specs=(data, replicated)))(
        images, kernel
    )
    mapped = jax.pmap(gradients, in_axes=(0, None), devices=jax.devices()[:1])(images[None], kernel)
    for e, s, m in zip(expected, sharded, mapped, strict=True):
        assert_close(s, e)
        assert_close(m[0], e)
