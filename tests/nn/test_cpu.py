"""The network on a CPU: its units against XLA's own convolutions, the whole against `ResNet`, and what XLA makes of it.

For bfloat16 the arithmetic is the same whether the CPU has instructions for it or not: they only make it fast."""

import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from jaxresnet import ModelConfig, build_model
from jaxresnet.errors import ConfigError
from jaxresnet.nn.cpu import conv
from jaxresnet.nn.cpu.layout import as_cells, as_numbers, framed, starts, to_cells, to_float32, transposed
from jaxresnet.training.compilation import CPU_COMPILER_OPTIONS

pytestmark = pytest.mark.usefixtures("quick_compilation")

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.uint16}  # of activations: of their cells


@pytest.fixture
def small_chunks(monkeypatch):
    """As many chunks of a small map as there are of a large one, some of them parts of a pixel's batch."""
    monkeypatch.setattr(conv, "WINDOW", 150)
    monkeypatch.setattr(conv, "FEWEST_COLUMNS", {2: 2, 4: 2})


def numbers(seed, *shape):
    """Of normal distribution, and exact in bfloat16."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16).astype(jnp.float32)


def assert_close(actual, expected, tolerance):
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def test_cells_are_bfloat16_to_the_nearest():
    x = np.concatenate([np.random.default_rng(0).normal(size=1000), [0, -0.0, 1e-40, np.inf, -np.inf, 3.4e38]])
    x = jnp.asarray(np.concatenate([x, 1 + np.arange(64) / 2**9]), jnp.float32)  # halfway between two, both ways
    cells = to_cells(x, jnp.uint16)
    np.testing.assert_array_equal(cells, as_cells(x.astype(jnp.bfloat16)))
    np.testing.assert_array_equal(to_float32(cells), x.astype(jnp.bfloat16).astype(jnp.float32))
    np.testing.assert_array_equal(as_numbers(cells), x.astype(jnp.bfloat16))
    assert np.isnan(to_float32(to_cells(jnp.float32([np.nan, -np.nan]), jnp.uint16))).all()


@pytest.mark.parametrize("shape", [(96, 640), (96, 600), (33, 640), (64, 64)])
def test_a_matrix_is_transposed_with_blocks_and_without(shape):
    matrix = np.random.default_rng(0).integers(0, 2**16, shape, np.uint16)
    np.testing.assert_array_equal(jax.jit(transposed)(matrix), matrix.T)


def test_a_map_too_large_for_int32_is_refused():
    with pytest.raises(ConfigError, match="4000 images at once are too many"):
        starts((512, 34, 34, 4000), 1, [(0, 0)])


# --------------------------------------------------------------------------------------------------- convolutions


def xla_conv(x, kernel, stride):
    """Of [C, H, W, N], padded as `resnet.conv` pads."""
    size, side = len(kernel), x.shape[1]
    padding = "SAME" if size == 2 else ((size // 2,) * 2,) * 2
    assert x.shape[2] == side
    return lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=("CHWN", "HWIO", "CHWN"), precision="highest"
    )


@settings(max_examples=3, deadline=None)
@given(
    dtype=st.sampled_from(list(DTYPES)),
    batch=st.integers(1, 9),
    side=st.integers(1, 9),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    strided=st.sampled_from([0, 1, 2, 3]),  # 0: stride 1; else the size of the shortcut's kernel beside stride 2
    window=st.sampled_from([1, 150, 10**6]),
)
@example(dtype="bfloat16", batch=1, side=1, channels=(1, 1), strided=1, window=1)
@example(dtype="bfloat16", batch=4, side=1, channels=(1, 2), strided=0, window=150)
@example(dtype="bfloat16", batch=3, side=2, channels=(2, 1), strided=2, window=150)
@example(dtype="float32", batch=5, side=9, channels=(4, 3), strided=3, window=150)
@example(dtype="bfloat16", batch=8, side=8, channels=(3, 5), strided=0, window=150)
@example(dtype="float32", batch=6, side=7, channels=(2, 3), strided=2, window=30)
def test_a_convolution_of_any_shape_and_its_gradients(dtype, batch, side, channels, strided, window):
    cells, stride = DTYPES[dtype], 2 if strided else 1
    x = jax.nn.relu(numbers(0, channels[0], side, side, batch))
    kernels = [numbers(1 + k, size, size, *channels) for k, size in enumerate([3, strided][: 2 if strided else 1])]
    wanted, pulls = zip(*(jax.vjp(lambda x, k: xla_conv(x, k, stride), x, kernel) for kernel in kernels), strict=True)
    douts = [numbers(5 + k, *out.shape) for k, out in enumerate(wanted)]
    add, raw = (numbers(seed, *x.shape) for seed in (7, 8))
    with_others = {} if strided else {"add": to_cells(add, cells), "raw": to_cells(raw, cells)}

    @jax.jit
    def passes(x, kernels, douts):
        x, kernels = framed(to_cells(x, cells), stride), [to_cells(kernel, cells) for kernel in kernels]
        found = conv.gradients(x, [framed(to_cells(dout, cells)) for dout in douts], kernels, stride, **with_others)
        alone = conv.kernel_gradient(x, to_cells(douts[0], cells)) if stride == 1 else None
        return conv.convolve(x, kernels, stride), found, alone

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conv, "WINDOW", window)
        patch.setattr(conv, "FEWEST_COLUMNS", {2: 2, 4: 2})
        outputs, found, alone = passes(x, kernels, douts)

    exact = 1e-5
    rounding = exact if dtype == "float32" else 2.0**-8  # once; sums in bfloat16 would be several times worse
    for output, expected in zip(outputs, wanted, strict=True):
        assert_close(to_float32(output.map), expected, rounding)
        assert_close(output.sums.sum(1), expected.sum((1, 2, 3)), 1e-4)
        assert_close(output.squares.sum(1), jnp.square(expected).sum((1, 2, 3)), exact)
    dxs, dkernels = zip(*(pull(dout) for pull, dout in zip(pulls, douts, strict=True)), strict=True)
    dx = jnp.where(x > 0, sum(dxs) + (0 if strided else add), 0)
    assert_close(to_float32(found.map)[:, :side, :side], dx, rounding)
    for actual, expected in zip(found.kernels, dkernels, strict=True):
        assert_close(actual, expected, exact)
    if not strided:
        assert_close(alone, dkernels[0], exact)
        for sums, expected in ((found.sums, dx), (found.products, dx * raw)):
            error = abs(np.asarray(sums.sum(1) - expected.sum((1, 2, 3))))
            assert (error <= 1e-4 * np.abs(expected).sum((1, 2, 3)) + 1e-6).all()


# ---------------------------------------------------------------------------------------------------- the network


def trained(config, platform, variables, images):
    """(loss, its gradients for the weights and the images, moved statistics, logits in training and at inference)."""
    model = build_model(config, platform=platform)

    @jax.jit
    def compute(variables, images):
        def loss(params, images):
            logits, after = model.apply({**variables, "params": params}, images, True)
            return jnp.square(logits - 1).mean(), (after["batch_stats"], logits)

        found = jax.value_and_grad(loss, (0, 1), has_aux=True)(variables["params"], images)
        return found, model.apply(variables, images, False)

    return compute(variables, images)


def varied(variables):
    """Statistics, scales and biases that are not those of the start."""
    leaves, structure = jax.tree.flatten(variables)
    return jax.tree.unflatten(structure, [a + 0.1 * abs(numbers(k, *a.shape)) for k, a in enumerate(leaves)])


@pytest.mark.parametrize(
    ("config", "batch", "side"),
    [
        (ModelConfig(stage_sizes=(1,), width=4, pool_size=32), 6, 32),
        (ModelConfig(stage_sizes=(2, 2), width=5, pool_size=16, shortcut_kernel=2), 3, 32),
        (ModelConfig(stage_sizes=(1, 1, 1), width=3, pool_size=4, shortcut_kernel=3), 9, 13),
        (ModelConfig(stage_sizes=(1, 1, 1), width=4, pool_size=7, shortcut_kernel=2, num_classes=3), 4, 27),
        (ModelConfig(stage_sizes=(1, 2), width=17, pool_size=16), 1, 32),
    ],
    ids=["one stage", "blocks without a projection", "13 pixels", "27 pixels", "one image"],
)
def test_it_is_the_same_function_with_the_same_gradients(config, batch, side, small_chunks):
    config = replace(config, precision="float32")
    variables, images = varied(build_model(config).init(jax.random.key(0))), numbers(0, batch, side, side, 3)
    ours, plain = (trained(config, platform, variables, images) for platform in ("cpu", None))
    assert jax.tree.structure(ours) == jax.tree.structure(plain)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        assert actual.dtype == expected.dtype
        assert_close(actual, expected, 1e-4)


def distance(tree, right):
    """The root of the mean square of the arrays' relative errors."""
    pairs = zip(jax.tree.leaves(tree), jax.tree.leaves(right), strict=True)
    return np.sqrt(np.mean([(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)) ** 2 for a, b in pairs]))


def test_in_bfloat16_it_is_no_further_from_float32_than_elsewhere():
    config = ModelConfig(stage_sizes=(1, 1), width=17, shortcut_kernel=3, pool_size=16, precision="float32")
    variables, images = build_model(config).init(jax.random.key(0)), numbers(0, 8, 32, 32, 3)
    right = trained(config, None, variables, images)
    usual, ours = (
        trained(replace(config, precision="bfloat16"), platform, variables, images) for platform in (None, "cpu")
    )
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(jnp.float32)}
    assert 0 < distance(ours, right) <= 1.2 * distance(usual, right)


SMALL = ModelConfig(stage_sizes=(1, 1), width=3, pool_size=4)  # of 8 x 8 pixels


def test_derivatives_that_bits_have_not_are_refused():
    """They would be 0: at inference, and the second ones in training."""
    images, variables = numbers(0, 2, 8, 8, 3), build_model(SMALL).init(jax.random.key(0))
    apply = build_model(replace(SMALL, precision="bfloat16"), platform="cpu").apply
    steep = jax.grad(lambda x: jnp.square(apply(variables, x, True)[0]).sum())
    for function in (lambda x: apply(variables, x, False)[0].sum(), lambda x: jnp.square(steep(x)).sum()):
        with pytest.raises(NotImplementedError, match="use precision='float32'"):
            jax.eval_shape(jax.grad(function), images)


def test_images_of_any_type_and_side_are_taken():
    variables = build_model(SMALL).init(jax.random.key(0))
    ours, plain = (
        jax.jit(build_model(replace(SMALL, precision="bfloat16"), platform=p).apply, static_argnums=2)
        for p in ("cpu", None)
    )
    whole = jnp.asarray(np.random.default_rng(0).integers(0, 9, (3, 8, 8, 3)), jnp.uint8)
    for images in (whole, whole.astype(jnp.bfloat16), whole[:0], whole[:, :, :5]):
        assert_close(ours(variables, images, False)[0], plain(variables, images, False)[0], 0.02)


@pytest.mark.devices(2)
def test_in_a_shard_map_gradients_of_replicated_weights_are_summed():
    variables, images = build_model(SMALL).init(jax.random.key(0)), numbers(0, 4, 8, 8, 3)

    def loss(axis_name, params, images):
        model = build_model(SMALL, axis_name, "cpu")
        return jnp.square(model.apply({**variables, "params": params}, images, True)[0]).sum()

    def shared(params, images):
        return lax.psum(loss("devices", params, images), "devices")

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    specs = (PartitionSpec(), PartitionSpec("devices"))
    sharded = jax.shard_map(jax.grad(shared), mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    ours = jax.jit(sharded)(variables["params"], images)
    alone = jax.jit(jax.grad(loss, 1), static_argnums=0)(None, variables["params"], images)
    for actual, expected in zip(jax.tree.leaves(ours), jax.tree.leaves(alone), strict=True):
        assert_close(actual, expected, 1e-4)


def test_constant_images_have_no_variance_and_finite_gradients(small_chunks):
    variables = build_model(SMALL).init(jax.random.key(0))
    found = trained(replace(SMALL, precision="float32"), "cpu", variables, jnp.full((3, 8, 8, 3), 1000.1))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(found))


# -------------------------------------------------------------- what makes it fast, which is seen on a CPU of any kind


@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="is for CPUs")
def test_what_xla_makes_of_a_step_in_bfloat16():
    """Products of bfloat16 that give float32, windows gathered as bits, and no activation written in float32."""
    batch, width = 64, 16
    images, activation = numbers(0, batch, 32, 32, 3), batch * 32 * 32 * width
    model = build_model(ModelConfig(stage_sizes=(1, 1), width=width, pool_size=16, precision="bfloat16"), None, "cpu")
    variables = model.init(jax.random.key(0))

    def loss(params):
        return jnp.square(model.apply({**variables, "params": params}, images, True)[0]).sum()

    step = jax.jit(jax.grad(loss), compiler_options=CPU_COMPILER_OPTIONS)
    text = step.lower(variables["params"]).compile().as_text()
    dots = []
    for computation in text.split("\n\n"):  # each has its own names
        types = dict(re.findall(r"(%[\w.-]+) = (\w+)\[", computation))
        for result, *operands in re.findall(r"= (\w+)\[[\d,]+\]\S* dot\((%[\w.-]+), (%[\w.-]+)\)", computation):
            dots.append((result, *(types[operand] for operand in operands)))
    layers = 1 + 2 + 3  # the stem, and two blocks, one of them with a projection
    assert dots.count(("f32", "bf16", "bf16")) >= 3 * layers - 1
    assert set(dots) <= {("f32", "bf16", "bf16"), ("f32", "f32", "f32")}, "float32 for the linear layer alone"
    assert dots.count(("f32", "f32", "f32")) <= 3
    windows = re.findall(r"= (\w+)\[(\d+),(\d+)\]\S* gather\(", text)
    assert len(windows) >= 2 * layers and {dtype for dtype, *_ in windows} == {"u16"}
    sizes = {
        dtype: [np.prod([*map(int, dims.split(","))]) for dims in re.findall(rf"= {dtype}\[([\d,]+)\]\S* fusion", text)]
        for dtype in ("f32", "u16", "bf16")
    }
    assert max(sizes["u16"]) >= activation, "those that are meant"
    assert max(sizes["f32"] + sizes["bf16"]) < activation / 2, "half of one, as after the first stage"
