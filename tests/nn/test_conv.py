"""The convolution for CPUs against XLA's own: values, both gradients, and the network that is made of it.

For bfloat16 the arithmetic is the same whether the CPU has instructions for it or not: they only make it fast."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxresnet import ModelConfig, build_model
from jaxresnet.nn.cpu import chunks, conv
from jaxresnet.nn.cpu.conv import conv_cpu, convolves_in_loops, promote_images

pytestmark = [
    pytest.mark.usefixtures("quick_compilation"),
    pytest.mark.filterwarnings("ignore:precision=bfloat16 on a CPU not known to multiply it"),
]

PAD1 = ((1, 1), (1, 1))
# (dtype of the images, JAXRESNET_CPU_BFLOAT16)
ARITHMETIC = {"float32": ("float32", "0"), "bfloat16": ("bfloat16", "1"), "bfloat16 by float32": ("bfloat16", "0")}


@pytest.fixture(params=ARITHMETIC)
def dtype(request, monkeypatch) -> str:
    name, instructions = ARITHMETIC[request.param]
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", instructions)
    return name


def numbers(seed, *shape, dtype="float32"):
    """Of normal distribution, and exact in bfloat16."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16).astype(dtype)


def xla_conv(images, kernel, strides, padding):
    return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def passes(function, images, kernel, *sizes):
    """(output, gradient for the images, gradient for the kernel)."""

    @jax.jit
    def compute(images, kernel):
        output, pull = jax.vjp(lambda *a: function(*a, *sizes), images, kernel)
        return output, *pull(numbers(2, *output.shape, dtype=output.dtype))

    return compute(images, kernel)


def assert_close(actual, expected, tolerance=1e-5):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize(("kernel", "size"), [(1, (8, 8)), (2, (9, 7)), (3, (5, 12))])
def test_same_numbers_as_xla(kernel, size, stride, dtype):
    pad = kernel // 2
    images, kernel = numbers(0, 3, *size, 5, dtype=dtype), numbers(1, kernel, kernel, 5, 7)
    sizes = (stride, stride), ((pad, pad), (pad, pad))
    output, dimages, dkernel = passes(conv_cpu, images, kernel, *sizes)
    wanted = passes(xla_conv, images.astype("float32"), kernel, *sizes)
    assert output.dtype == dimages.dtype == dtype and dkernel.dtype == jnp.float32
    rounding = 1e-5 if dtype == "float32" else 2.0**-8  # once; sums in bfloat16 would be several times worse
    for actual, expected, tolerance in zip((output, dimages, dkernel), wanted, (rounding, rounding, 1e-5), strict=True):
        assert_close(actual, expected, tolerance)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.devices(2)
def test_over_devices_the_gradient_of_the_kernel_is_summed(stride, dtype, monkeypatch):
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 1)  # an image each
    images, kernel = numbers(0, 4, 6, 6, 16, dtype=dtype), numbers(1, 3, 3, 16, 4)

    def loss(kernel, images):
        output = conv_cpu(images, kernel, (stride, stride), PAD1).astype(jnp.float32)
        return (output * jnp.cos(jnp.arange(output[0].size)).reshape(output[0].shape)).sum()

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    specs = (PartitionSpec(), PartitionSpec("devices"))

    def shared(kernel, images):
        return lax.psum(loss(kernel, images), "devices")

    sharded = jax.shard_map(jax.grad(shared), mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_close(jax.jit(sharded)(kernel, images), jax.jit(jax.grad(loss))(kernel, images))


# ---------------------------------------------------------------------------------------------- what it does not do


def layer(dtype="float32", function=conv_cpu, **options) -> nnx.Conv:
    return nnx.Conv(
        4, 4, (3, 3), dtype=dtype, conv_general_dilated=function, promote_dtype=promote_images, rngs=nnx.Rngs(0),
        **options,
    )  # fmt: skip


@pytest.mark.parametrize("padding", [PAD1, "SAME", "VALID"])
def test_nnx_conv_takes_it(padding):
    images = numbers(0, 2, 9, 9, 4)
    layers = (layer(strides=2, padding=padding, function=f) for f in (conv_cpu, lax.conv_general_dilated))
    ours, xlas = (jax.grad(lambda x, one=one: jnp.sum(one(x) ** 2))(images) for one in layers)
    assert_close(ours, xlas)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"kernel_dilation": 2}, "rhs_dilation"),
        ({"feature_group_count": 2}, "feature_group_count"),
        ({"padding": ((1, 1), (3, 0))}, "must be less than the kernel's size"),
    ],
)
def test_what_it_refuses(option, message):
    with pytest.raises(NotImplementedError, match=message):
        layer(**option)(jnp.zeros((1, 8, 8, 4)))


def test_second_derivatives_in_bfloat16_are_refused(monkeypatch):
    """They would be zero, as integers have none."""
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    images, kernel = numbers(0, 2, 6, 6, 16, dtype="bfloat16"), numbers(1, 3, 3, 16, 4)

    def slope(kernel):
        return jax.grad(lambda k: jnp.square(conv_cpu(images, k, padding=PAD1)).sum())(kernel)

    with pytest.raises(NotImplementedError, match="use precision='float32'"):
        jax.grad(lambda k: slope(k).sum())(kernel)


# ----------------------------------------------------------------------------------------------- where it is used


def test_bfloat16_on_a_cpu_that_does_not_multiply_it_warns_once(monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")
    conv._warn_of_bfloat16.cache_clear()
    with pytest.warns(UserWarning, match="computed in float32") as warned:
        for _ in range(2):
            layer("bfloat16")(numbers(0, 1, 8, 8, 4))
    assert len(warned) == 1


NETWORK = ModelConfig(stage_sizes=(1, 1), width=17, shortcut_kernel=3, pool_size=16)


def trained(config, platform, variables, images, train):
    """(gradients of a loss for the weights, moved statistics, logits) of a network."""
    model = build_model(config, platform=platform)

    @jax.jit
    def compute(variables):
        def loss(params):
            logits, after = model.apply({**variables, "params": params}, images, train)
            return jnp.square(logits).mean(), (after["batch_stats"], logits)

        return jax.grad(loss, has_aux=True)(variables["params"])

    return compute(variables)


def distance(tree, right):
    """The root of the mean square of the arrays' relative errors."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(right), strict=True)
    return np.sqrt(np.mean([(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)) ** 2 for a, b in pairs]))


@pytest.mark.parametrize(("train", "shortcut"), [(True, 3), (False, 2)])
def test_a_network_in_bfloat16_is_no_further_from_float32_than_elsewhere(train, shortcut, monkeypatch):
    """One image, odd width."""
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    config = replace(NETWORK, shortcut_kernel=shortcut)
    variables, images = build_model(config).init(jax.random.key(0)), numbers(0, 1, 32, 32, 3)
    right = trained(config, None, variables, images, train)
    usual, ours = (
        trained(replace(config, precision="bfloat16"), platform, variables, images, train) for platform in (None, "cpu")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert 0 < distance(ours, right) <= 2 * distance(usual, right)


# ------------------------------------------------------------------------------------------------------ in loops


def convolutions(jaxpr, in_loop=False):
    """{whether it is in a loop: number of convolutions} in a jaxpr, and the same of matrix products."""
    found = {"conv_general_dilated": [0, 0], "dot_general": [0, 0]}
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name in found:
            found[name][in_loop] += 1
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                for kind, counts in convolutions(inner, in_loop or name in ("scan", "while")).items():
                    found[kind] = [a + b for a, b in zip(found[kind], counts, strict=True)]
    return found


@pytest.mark.parametrize("train", [True, False], ids=["training", "inference"])
def test_no_convolution_of_a_network_for_cpus_is_in_a_loop(dtype, train, monkeypatch):
    """Inside the body of a loop XLA:CPU convolves up to 50 times slower. Matrix products are as fast as outside.

    `convolves_in_loops` is what a run asks before it puts its steps in a loop: that must add none."""
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 3 * 32 * 32 * 9 * 16)  # so that there are loops, of products
    model = build_model(replace(NETWORK, precision=dtype), platform="cpu")
    variables, images = jax.eval_shape(model.init, jax.random.key(0)), jnp.zeros((20, 32, 32, 3))

    def network(variables):
        def loss(params):
            return model.apply({**variables, "params": params}, images, train)[0].mean()

        return (jax.grad(loss) if train else loss)(variables["params"])

    def steps(variables):
        return lax.fori_loop(0, 2, lambda _, __: network(variables), jax.tree.map(jnp.zeros_like, shape))

    shape = jax.eval_shape(network, variables)
    once, in_steps = (convolutions(jax.make_jaxpr(f)(variables).jaxpr) for f in (network, steps))
    all_products = not sum(once["conv_general_dilated"])
    assert once["conv_general_dilated"][True] == 0
    assert all_products == convolves_in_loops("cpu", dtype) == (not in_steps["conv_general_dilated"][True])
    assert once["dot_general"][True] >= (3 if train or all_products else 0)
    assert convolves_in_loops("gpu", dtype)
