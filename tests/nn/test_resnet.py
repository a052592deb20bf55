"""The network: published parameter counts, shapes, alignment, and that its two forms are one."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxresnet import ModelConfig, ResNet, build_model, count_params
from jaxresnet.errors import ConfigError
from jaxresnet.nn import resnet
from jaxresnet.nn.initializers import INITIALIZERS
from jaxresnet.nn.resnet import Model

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 32, 32, 3)).astype(np.float32)
TINY = ModelConfig(stage_sizes=(1, 1), width=4, pool_size=16)

PUBLISHED = [
    (1, (2, 2, 2, 2), 3, 4, 12_550_218),
    (2, (1, 1, 1, 1), 3, 4, 6_279_498),
    (3, (1, 1, 1, 1), 2, 4, 5_419_338),
    (4, (2, 2, 2, 2), 1, 4, 11_173_962),
    (5, (1, 1, 1, 1), 1, 4, 4_903_242),
    (6, (1, 1, 1, 1), 1, 2, 4_903_242),
    (7, (1, 1, 1, 1), 1, 8, 4_903_242),
    (8, (1, 1, 1, 1), 1, 16, 4_903_242),
]


@pytest.mark.parametrize(("number", "stage_sizes", "shortcut_kernel", "pool_size", "params"), PUBLISHED)
def test_published_parameter_counts(number, stage_sizes, shortcut_kernel, pool_size, params):
    config = ModelConfig(stage_sizes=stage_sizes, shortcut_kernel=shortcut_kernel, pool_size=pool_size)
    assert count_params(config) == params
    assert number != 5 or config == ModelConfig()


@pytest.fixture(scope="module")
def tiny() -> Model:
    """TINY, compiled once for all tests."""
    init, apply = build_model(TINY)
    return Model(jax.jit(init), jax.jit(apply, static_argnums=2))


@pytest.fixture(scope="module")
def variables(tiny) -> dict:
    return tiny.init(jax.random.key(0))


def random_variables(built: Model) -> dict:
    """Parameters and statistics to compute with, without compiling `init`."""
    shapes = jax.eval_shape(lambda: built.init(jax.random.key(0)))
    return jax.tree.map(lambda leaf: RNG.uniform(0.1, 0.5, leaf.shape).astype(np.float32), shapes)


def abstract_apply(config: ModelConfig, train: bool):
    """Shapes and dtypes of (logits, variables), nothing computed."""
    built = build_model(config)
    images = jax.ShapeDtypeStruct((3, 32, 32, 3), jnp.float32)
    return jax.eval_shape(lambda x: built.apply(built.init(jax.random.key(0)), x, train), images)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("stage_sizes", [(1, 1, 1, 1), (2, 1, 3, 1), (2, 2)])
def test_shape_and_dtype_of_every_stage(monkeypatch, precision, train, stage_sizes):
    seen = []

    def record(cls):
        call = cls.__call__

        def recording(self, x, *args):
            y = call(self, x, *args)
            seen.append((cls.__name__, y.shape, y.dtype))
            return y

        monkeypatch.setattr(cls, "__call__", recording)

    record(resnet.BasicBlock)
    record(resnet.BatchNorm)
    side = 64 // 2 ** len(stage_sizes)
    config = ModelConfig(stage_sizes=stage_sizes, width=4, pool_size=side, num_classes=7, precision=precision)
    logits, variables = abstract_apply(config, train)
    assert logits.shape == (3, 7) and logits.dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype("float32")}

    expected = [
        (3, 32 // 2**stage, 32 // 2**stage, 4 * 2**stage)
        for stage, num_blocks in enumerate(stage_sizes)
        for _ in range(num_blocks)
    ]
    assert [shape for name, shape, _ in seen if name == "BasicBlock"] == expected
    assert {dtype for _, _, dtype in seen} == {jnp.dtype(precision)}
    assert seen[0][:2] == ("BatchNorm", (3, 32, 32, 4))  # the stem


def test_a_pool_that_does_not_fit_is_refused_with_the_reason():
    reason = re.escape("pool_size=2: must be 4, the side of the last feature map of 4 stages on 32 x 32 images")
    with pytest.raises(ConfigError, match=reason):
        abstract_apply(ModelConfig(width=2, pool_size=2), train=False)


@pytest.mark.parametrize("kernel", [1, 2, 3])
def test_strided_convolutions_are_aligned(kernel):
    """With its weight on one pixel, a convolution of stride 2 picks every other pixel: the centre of a 3x3 kernel is
    the same pixel as that of a 1x1, so that a block and its shortcut see the same place."""
    context = resnet.Context(nnx.Rngs(0), INITIALIZERS["pytorch"], jnp.float32, None)
    layer = resnet.conv(1, 1, kernel, 2, context)
    one = np.zeros((kernel, kernel, 1, 1), np.float32)
    one[kernel // 2 if kernel == 3 else 0, kernel // 2 if kernel == 3 else 0] = 1
    layer.kernel[...] = jnp.asarray(one)
    images = IMAGES[..., :1]
    np.testing.assert_array_equal(layer(jnp.asarray(images)), images[:, ::2, ::2])


def pure(module: ResNet, kind: type) -> list:
    return jax.tree.leaves(nnx.to_pure_dict(nnx.as_pure(nnx.state(module, kind))))


def test_eager_resnet_equals_build_model(tiny, variables):
    module = ResNet(TINY, rngs=nnx.Rngs(jax.random.key(0)))
    for a, b in zip(pure(module, nnx.Param), jax.tree.leaves(variables["params"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
    before = jax.tree.map(np.array, variables)

    trained, after = tiny.apply(variables, IMAGES, True)
    np.testing.assert_allclose(module(jnp.asarray(IMAGES), True), trained, rtol=1e-4, atol=1e-5)
    for a, b in zip(pure(module, nnx.BatchStat), jax.tree.leaves(after["batch_stats"]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

    inferred, same = tiny.apply(after, IMAGES, False)
    np.testing.assert_allclose(module(jnp.asarray(IMAGES), False), inferred, rtol=1e-4, atol=1e-5)
    assert not np.allclose(trained, inferred, rtol=1e-2)

    # `apply` leaves its argument alone; training moves all statistics and no parameter, inference nothing.
    jax.tree.map(np.testing.assert_array_equal, variables, before)
    jax.tree.map(np.testing.assert_array_equal, after["params"], before["params"])
    jax.tree.map(np.testing.assert_array_equal, same, after)
    moved = jax.tree.map(lambda a, b: bool((a != b).all()), after["batch_stats"], before["batch_stats"])
    assert all(jax.tree.leaves(moved))


def test_variables_are_nested_dictionaries_of_named_arrays(variables):
    assert set(variables) == {"params", "batch_stats"}
    assert set(variables["params"]) == {"conv1", "bn1", "stages", "linear"}
    assert set(variables["params"]["stages"]) == {"0", "1"}
    block = variables["params"]["stages"]["1"]["0"]
    assert set(block) == {"conv1", "bn1", "conv2", "bn2", "shortcut_conv", "shortcut_bn"}
    assert set(variables["params"]["stages"]["0"]["0"]) == {"conv1", "bn1", "conv2", "bn2"}  # nothing to project
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(variables))


def test_more_than_ten_blocks_keep_their_order():
    """Block 10 is not mistaken for block 2, though "10" sorts before "2".

    With all kernels at zero a block adds the bias of its last batch norm and cuts off below zero: from 1, block 2
    goes to 0 and block 10 back to 3. The other way round the end would be 0.
    """
    built = build_model(ModelConfig(stage_sizes=(11,), width=1, pool_size=32))
    variables = jax.tree.map(np.zeros_like, random_variables(built))
    variables["params"]["bn1"]["bias"][:] = 1
    blocks = variables["params"]["stages"]["0"]
    blocks["2"]["bn2"]["bias"][:] = -5
    blocks["10"]["bn2"]["bias"][:] = 3
    variables["params"]["linear"]["kernel"][:] = 1
    logits, after = built.apply(jax.tree.map(jnp.asarray, variables), jnp.asarray(IMAGES), False)
    np.testing.assert_array_equal(logits, np.full((4, 10), 3))
    jax.tree.map(np.testing.assert_array_equal, after, variables)


def test_weights_are_float32_where_jax_has_float64_too():
    with jax.enable_x64(True):
        shapes = jax.eval_shape(lambda: build_model(TINY).init(jax.random.key(0)))
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}
