"""The convolution as matrix products: each pass against XLA's in float32 on the same numbers. For bfloat16 the
arithmetic is the same whether the CPU has instructions for it or not: they only make it fast."""

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
from support.tiny import PARTIAL, STEADY_PARTIAL

from jaxresnet import ConfigError, ModelConfig, build_model, fit
from jaxresnet.hardware import multiplies_bfloat16
from jaxresnet.nn.cpu import chunks, conv
from jaxresnet.nn.cpu import products as conv_products
from jaxresnet.nn.cpu.conv import CPU_COMPILER_OPTIONS, conv2d, conv_cpu, conv_for
from jaxresnet.nn.cpu.products import Taps, forward, gradients, kernel_gradient

pytestmark = pytest.mark.usefixtures("quick_compilation")

TOLERANCE = 1e-5
PAD1 = ((1, 1), (1, 1))


def numbers(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.bfloat16)


def assert_close(actual, expected, tolerance=TOLERANCE):
    assert actual.shape == expected.shape
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    assert np.linalg.norm(actual - expected) <= tolerance * np.linalg.norm(expected)


def assert_passes_are_xlas(images, kernel, strides, padding):
    def in_float32(images, kernel):
        return lax.conv_general_dilated(images, kernel, strides, padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))

    expected, pull = jax.vjp(in_float32, *(a.astype(jnp.float32) for a in (images, kernel)))
    doutput = numbers(2, *expected.shape).astype(images.dtype)
    wanted = (expected, *pull(doutput.astype(jnp.float32)))
    output = jax.jit(forward, static_argnums=(2, 3))(images, kernel, strides, padding)
    both = jax.jit(gradients, static_argnums=(3, 4))(images, kernel, doutput, strides, padding)
    alone = jax.jit(kernel_gradient, static_argnums=(2, 3, 4))(images, doutput, kernel.shape[:2], strides, padding)
    assert {a.dtype for a in (output, *both, alone)} == {jnp.dtype(jnp.float32)}
    for actual, expected in zip((output, *both, alone), (*wanted, wanted[2]), strict=True):
        assert_close(actual, expected)


# The network's own layers, at a few images: the stem, the stages, and the shortcuts of 1, 2 and 3 pixels at stride 2.
LAYERS = [
    (32, 3, 64, 3, 1, PAD1),
    *[(32 // 2**i, 64 * 2**i, 64 * 2**i, 3, 1, PAD1) for i in range(4)],
    *[(32 // 2**i, 64 * 2**i, 128 * 2**i, 3, 2, PAD1) for i in range(3)],
    (16, 128, 256, 1, 2, ((0, 0), (0, 0))),
    (16, 128, 256, 2, 2, ((0, 0), (0, 0))),
]


@pytest.mark.parametrize(("side", "channels", "features", "size", "stride", "padding"), LAYERS)
def test_the_networks_layers(side, channels, features, size, stride, padding):
    kernel = numbers(1, size, size, channels, features)
    assert_passes_are_xlas(numbers(0, 2, side, side, channels), kernel, (stride, stride), padding)


@settings(max_examples=40, deadline=None)
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
@example(
    dtype="bfloat16",
    batch=1,
    chunk=1,
    sides=(3, 3),
    channels=(2, 3),
    size=(1, 2),
    strides=(2, 2),
    padding=((0, 0), (1, 0)),
)
def test_any_shape(dtype, batch, chunk, sides, channels, size, strides, padding):
    padding = tuple((min(a, k - 1), min(b, k - 1)) for (a, b), k in zip(padding, size, strict=True))
    images, kernel = numbers(0, batch, *sides, channels[0]), numbers(1, *size, *channels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunks, "NUMBERS_PER_CHUNK", chunk)
        assert_passes_are_xlas(images.astype(dtype), kernel.astype(dtype), strides, padding)


@pytest.mark.parametrize(
    ("batch", "most", "expected"),
    [
        (1, 9, [1]),
        (8, 8, [8]),
        (8, 3, [2] * 4),
        (16, 5, [4] * 4),
        (7, 3, [3, 3, 1]),
        (10, 4, [2] * 5),
        (11, 4, [4, 4, 3]),
        (3, 0, [1] * 3),
    ],
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
    assert set(sizes) == set(expected)


def test_taps_of_a_3x3_kernel_at_stride_2():
    """Even rows are seen through the kernel's middle row, odd ones through its last and, an output on, its first."""
    even, odd = (Taps(kernel=3, stride=2, pad=1, phase=phase) for phase in (0, 1))
    assert (even.pixels, even.first) == ([1], 0)
    assert (odd.pixels, odd.first) == ([2, 0], 0)
    assert conv_products._around([even, odd], length=16, outputs=16) == (0, 1)


def test_a_small_kernel_does_not_see_all_phases():
    assert [Taps(kernel=1, stride=2, pad=0, phase=phase).pixels for phase in (0, 1)] == [[0], []]


# -------------------------------------------------------------------------------------------- as the network uses it


@pytest.mark.parametrize("channels", [3, 16], ids=["stem", "few no more"])
def test_gradients_of_the_whole_are_those_of_its_passes(channels):
    images, kernel = numbers(0, 2, 6, 6, channels), numbers(1, 3, 3, channels, 4)
    doutput = numbers(2, 2, 3, 3, 4)
    output, pull = jax.vjp(lambda *a: conv2d(*a, (2, 2), PAD1, backend="bfloat16"), images, kernel)
    assert {a.dtype for a in (output, *pull(doutput))} == {jnp.dtype(jnp.bfloat16)}
    assert_close(output, forward(images, kernel, (2, 2), PAD1), 4e-3)  # half of bfloat16's last bit
    for actual, wanted in zip(pull(doutput), gradients(images, kernel, doutput, (2, 2), PAD1), strict=True):
        assert_close(actual, wanted, 4e-3)


def test_float32_is_convolved_in_float32(monkeypatch):
    monkeypatch.setattr("jaxresnet.nn.cpu.conv.convolve", None)  # which cannot be called
    images, kernel = numbers(0, 2, 6, 6, 16).astype("float32"), numbers(1, 3, 3, 16, 4).astype("float32")
    ours, xlas = (conv2d(images, kernel, (2, 1), PAD1, backend=backend) for backend in ("bfloat16", "cpu"))
    np.testing.assert_array_equal(ours, xlas)


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 1, PAD1), (3, 2, PAD1), (1, 2, ((0, 0), (0, 0)))], ids=["3x3", "3x3/2", "1x1/2"]
)
@pytest.mark.parametrize("backend", ["cpu", "bfloat16"])
@pytest.mark.devices(2)
def test_over_devices_the_gradient_of_the_kernel_is_summed(backend, size, stride, padding, monkeypatch):
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 1)  # an image each
    images, kernel = numbers(0, 4, 6, 6, 16), numbers(1, size, size, 16, 4)

    def loss(kernel, images):
        output = conv2d(images, kernel, (stride, stride), padding, backend=backend).astype(jnp.float32)
        return (output * jnp.cos(jnp.arange(output[0].size)).reshape(output[0].shape)).sum()

    mesh = Mesh(np.array(jax.devices()[:2]), ("devices",))
    specs = (PartitionSpec(), PartitionSpec("devices"))

    def shared(kernel, images):
        return lax.psum(loss(kernel, images), "devices")

    sharded = jax.shard_map(jax.grad(shared), mesh=mesh, in_specs=specs, out_specs=PartitionSpec())
    assert_close(jax.jit(sharded)(kernel, images), jax.jit(jax.grad(loss))(kernel, images), 4e-3)


def test_second_derivatives_are_refused():
    """They would be zero, as integers have none."""
    images, kernel = numbers(0, 2, 6, 6, 16), numbers(1, 3, 3, 16, 4)

    def slope(kernel):
        return jax.grad(lambda k: jnp.square(conv2d(images, k, padding=PAD1, backend="bfloat16")).sum())(kernel)

    with pytest.raises(NotImplementedError, match="use precision='float32'"):
        jax.grad(lambda k: slope(k).sum())(kernel)


@pytest.mark.parametrize(("train", "shortcut"), [(True, 2), (True, 3), (False, 2)])
def test_a_network_with_it_and_without(train, shortcut, monkeypatch):
    """One image, odd width, shortcut of 2 or 3 pixels. It is no further from float32 than bfloat16 elsewhere is."""
    config = ModelConfig(stage_sizes=(1, 1), width=17, shortcut_kernel=shortcut, pool_size=16)
    images, found = numbers(0, 1, 32, 32, 3).astype(jnp.float32), {}
    variables = build_model(config).init(jax.random.key(0))
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    for precision, platform in (("float32", None), ("bfloat16", None), ("bfloat16", "cpu")):
        model = build_model(replace(config, precision=precision), platform=platform)

        def loss(params, model=model):
            logits, _ = model.apply({**variables, "params": params}, images, train)
            return logits[0, 0], logits

        step = jax.jit(jax.grad(loss, has_aux=True))
        assert ("ui16" in step.lower(variables["params"]).as_text()) == (platform == "cpu")
        found[precision, platform] = jax.tree.leaves(step(variables["params"]))
    right, usual, ours = found.values()
    assert {leaf.dtype for leaf in ours} == {jnp.dtype(jnp.float32)}

    def distance(leaves):
        """The root of the mean square of the arrays' relative errors."""
        pairs = zip(leaves, right, strict=True)
        return np.sqrt(np.mean([(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-6)) ** 2 for a, b in pairs]))

    assert 0 < distance(ours) <= 1.5 * distance(usual)


@pytest.mark.devices(2)
def test_training_on_one_device_and_on_two(monkeypatch, tiny_data):
    """And the smaller last batch, and evaluation. In float32 products of bfloat16 the loss is another, but not by much.

    Batches of evaluation differ in size, as programs are kept by config, which does not say what the CPU can do."""
    model = replace(PARTIAL.model, width=16, precision="bfloat16")
    losses = {}
    for instructions, count in (("1", 1), ("1", 2), ("0", 1)):
        monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", instructions)
        eval_batch_size = 50 if instructions == "1" else 20
        config = replace(STEADY_PARTIAL, model=model, num_epochs=1, eval_batch_size=eval_batch_size)
        row = fit(config, tiny_data, devices=jax.devices()[:count]).history[0]
        losses[instructions, count] = [row["train_loss"], row["val_loss"]]
    assert losses["1", 1] == pytest.approx(losses["1", 2], rel=5e-3)
    assert losses["1", 1] == pytest.approx(losses["0", 1], rel=2e-2) and losses["1", 1] != losses["0", 1]


@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="is for CPUs")
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
        (3, 2, 15, 3 + 2 * 6, 3 + 4),
        (1, 2, 16, 1 + 2 * 1, 0),
    ],
)
@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="is for CPUs")
def test_what_xla_makes_of_it(size, stride, side, products, gathers):
    """What makes it fast where the CPU multiplies bfloat16 is seen on any: see the module's docstring."""
    images, kernel = numbers(0, 8, side, side, 32), numbers(1, size, size, 32, 64)
    doutput = numbers(2, 8, -(-side // stride), -(-side // stride), 64)
    padding = PAD1 if size == 3 else ((0, 0), (0, 0))

    def passes(images, kernel, doutput):
        output, pull = jax.vjp(lambda *a: conv_products.convolve(*a, (stride, stride), padding), images, kernel)
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


# --------------------------------------------------------------------------------------------------- where it is used

INTEL = "processor : 0\nflags\t\t: fpu avx512f amx_bf16 avx512_fp16 amx_tile amx_int8\n"


@pytest.mark.parametrize(
    ("cpuinfo", "found"),
    [
        (INTEL, True),
        (INTEL.replace("amx_bf16", "avx512_bf16"), True),
        (INTEL.replace("amx_bf16", "avx512_vnni"), False),
        ("CPU part : 0xd40\nFeatures : asimd bf16\n", False),
        (None, False),
    ],
    ids=["AMX", "AVX512-BF16", "neither", "ARM", "the system does not tell"],
)
def test_whether_the_cpu_multiplies_bfloat16(cpuinfo, found, monkeypatch, tmp_path):
    if cpuinfo:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    monkeypatch.setattr(conv_products, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.delenv("JAXRESNET_CPU_BFLOAT16", raising=False)
    assert multiplies_bfloat16() == found
    for chosen, wanted in (("0", False), ("1", True)):
        monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", chosen)
        assert multiplies_bfloat16() == wanted
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "true")
    with pytest.raises(ConfigError, match="JAXRESNET_CPU_BFLOAT16='true': must be 0"):
        multiplies_bfloat16()


@pytest.mark.parametrize(("platform", "bfloat16"), [("gpu", "0"), ("gpu", "1"), (None, "1")])
def test_other_platforms_take_xlas_convolution(platform, bfloat16, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", bfloat16)
    assert conv_for(platform, jnp.bfloat16) is lax.conv_general_dilated


def test_which_convolution_a_cpu_takes(monkeypatch):
    for bfloat16 in ("0", "1"):
        monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", bfloat16)
        assert conv_for("cpu", jnp.float32) is conv_cpu
    assert conv_for("cpu", jnp.bfloat16).keywords == {"backend": "bfloat16"}
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")
    conv._warn_of_bfloat16.cache_clear()
    with pytest.warns(UserWarning, match="computed in float32") as warned:
        assert conv_for("cpu", jnp.bfloat16) is conv_for("cpu", jnp.bfloat16) is conv_cpu
    assert len(warned) == 1
