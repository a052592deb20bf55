"""Batch normalisation: it normalises, moves its statistics as PyTorch's, and is one function at inference."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxresnet.nn.batch_norm import EPS, BatchNorm, normalise_batch, relu
from jaxresnet.nn.cpu import chunks

RNG = np.random.default_rng(0)
X = RNG.normal([3, -2, 0.5], [2, 0.5, 1], (6, 5, 5, 3)).astype(np.float32)  # 150 values a channel


def statistics(x) -> tuple[np.ndarray, np.ndarray]:
    x = np.asarray(x).astype(np.float64)
    return x.mean((0, 1, 2)), x.var((0, 1, 2))


def layer(scale=1.0, bias=0.0) -> BatchNorm:
    bn = BatchNorm(3)
    bn.scale[...] = jnp.full(3, scale)
    bn.bias[...] = jnp.full(3, bias)
    return bn


def test_normalises_then_scales_and_shifts():
    mean, var = statistics(layer(3, 7)(jnp.asarray(X), train=True))
    np.testing.assert_allclose(mean, 7, rtol=1e-5)
    np.testing.assert_allclose(var, 9, rtol=1e-4)


def test_running_statistics_move_as_pytorchs():
    """A tenth of the way to the batch's mean and unbiased variance, at each of three steps."""
    bn = layer()
    mean, var = np.zeros(3), np.ones(3)
    for step in range(3):
        x = X[:3] * (step + 1)
        bn(jnp.asarray(x), train=True)
        mean = 0.9 * mean + 0.1 * x.mean((0, 1, 2), dtype=np.float64)
        var = 0.9 * var + 0.1 * x.var((0, 1, 2), ddof=1, dtype=np.float64)
        np.testing.assert_allclose(bn.mean[...], mean, rtol=1e-5)
        np.testing.assert_allclose(bn.var[...], var, rtol=1e-5)


def test_inference_uses_the_running_statistics_and_moves_nothing():
    bn = layer(2, 1)
    bn(jnp.asarray(X), train=True)
    before = [np.array(bn.mean[...]), np.array(bn.var[...])]
    whole = np.asarray(bn(jnp.asarray(X), train=False))
    np.testing.assert_allclose(whole, 2 * (X - before[0]) / np.sqrt(before[1] + EPS) + 1, rtol=1e-4, atol=1e-5)
    # An image does not depend on the others in its batch, to the bit.
    halves = [bn(jnp.asarray(half), train=False) for half in (X[:3], X[3:])]
    np.testing.assert_array_equal(np.concatenate(halves), whole)
    np.testing.assert_array_equal([bn.mean[...], bn.var[...]], before)


def test_statistics_are_float32_under_bfloat16():
    """In bfloat16 itself a mean over 4,096 values near 3 would be off by a percent."""
    x = jnp.asarray(RNG.normal(3, 1, (4, 32, 32, 3)), jnp.bfloat16)
    bn = layer()
    y = bn(x, train=True)
    assert y.dtype == jnp.bfloat16
    assert bn.mean[...].dtype == bn.var[...].dtype == jnp.float32
    mean, var = statistics(x)
    np.testing.assert_allclose(bn.mean[...], 0.1 * mean, rtol=1e-5)
    np.testing.assert_allclose(bn.var[...], 0.9 + 0.1 * var * 4096 / 4095, rtol=1e-5)
    y_mean, y_var = statistics(y)
    np.testing.assert_allclose(y_mean, 0, atol=2e-3)
    np.testing.assert_allclose(y_var, 1, rtol=1e-2)


@pytest.mark.parametrize("x", [np.full((4, 2, 2, 3), 1000.1), np.ones((1, 1, 1, 3))], ids=["constant", "one value"])
def test_a_channel_without_variance_is_finite(x):
    bn = layer()
    assert np.isfinite(bn(jnp.asarray(x, jnp.float32), train=True)).all()
    np.testing.assert_allclose(bn.var[...], 0.9, atol=0.02)  # of a constant near 1,000 rounding leaves some variance


def test_synchronised_over_a_mapped_axis():
    """Each part of a batch gets the output and the statistics of the whole batch."""
    graphdef, variables = nnx.split(layer(2, 1))
    synchronised, _ = nnx.split(BatchNorm(3, axis_name="parts"))

    def apply(graphdef, x):
        bn = nnx.merge(graphdef, jax.tree.map(jnp.copy, variables))
        return bn(x, True), bn.mean[...], bn.var[...]

    y, mean, var = apply(graphdef, jnp.asarray(X))
    parts = jnp.asarray(X.reshape(3, 2, 5, 5, 3))
    part_y, part_mean, part_var = jax.jit(jax.vmap(lambda x: apply(synchronised, x), axis_name="parts"))(parts)
    np.testing.assert_allclose(part_y.reshape(X.shape), y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(part_mean, jnp.stack([mean] * 3), rtol=1e-5)
    np.testing.assert_allclose(part_var, jnp.stack([var] * 3), rtol=1e-5)
    alone = layer(2, 1)
    alone(parts[0], train=True)
    assert not np.allclose(alone.mean[...], mean, rtol=1e-3)  # the parts differ, so this says something


# ------------------------------------------------------------------------------------------ bfloat16 on CPUs, by bits


@pytest.mark.parametrize("images_in_a_chunk", [1, 3, 100])
def test_by_bits_and_in_chunks_it_is_the_same(images_in_a_chunk, monkeypatch):
    """Of 7 images: chunks of one, two whole ones and a rest, all at once."""
    monkeypatch.setattr(chunks, "NUMBERS_PER_CHUNK", 5 * images_in_a_chunk * 5 * 4 * 3)
    x, dy = (jnp.asarray(RNG.normal([3, -2, 0.5], [2, 0.5, 1], (7, 5, 4, 3)), jnp.bfloat16) for _ in range(2))
    scale, bias = jnp.asarray([1.5, -1, 0.1]), jnp.asarray([0.0, 1, -2])

    @partial(jax.jit, static_argnums=0)
    def passes(platform, x, dy, scale, bias):
        def normalise(*arguments):
            y, *statistics = normalise_batch(*arguments, None, platform)
            return y, statistics

        y, pull, statistics = jax.vjp(normalise, x, scale, bias, has_aux=True)
        return y, statistics, pull(dy)

    jaxpr = jax.make_jaxpr(passes, static_argnums=0)("cpu", x, dy, scale, bias)
    assert str(jaxpr).count(" scan[") == (2 if images_in_a_chunk < 7 else 0)
    pairs = (jax.tree.leaves(passes(platform, x, dy, scale, bias)) for platform in ("cpu", None))
    for actual, expected in zip(*pairs, strict=True):
        assert actual.dtype == expected.dtype
        rtol = {"float32": 2e-5, "bfloat16": 1.6e-2}[actual.dtype.name]  # a few roundings, in sums of a few thousand
        np.testing.assert_allclose(*(np.asarray(a, np.float64) for a in (actual, expected)), rtol, atol=rtol / 4)


def test_relu_by_bits_is_the_same_bit_for_bit():
    numbers = RNG.normal(size=(2, 1000)).astype(jnp.bfloat16)
    numbers[:, :6] = [[0, -0.0, 1e-40, -1e-40, np.inf, -np.inf], [0, -0.0, 0, 0, 1, 1]]
    a, b, dy = *map(jnp.asarray, numbers), jnp.asarray(RNG.normal(size=1000), jnp.bfloat16)
    for terms in ((a,), (a, b)):
        (y, pull), (wanted, wanted_pull) = (
            jax.vjp(lambda *terms, on=platform: relu(*terms, platform=on), *terms) for platform in ("cpu", None)
        )
        assert y.dtype == jnp.bfloat16
        np.testing.assert_array_equal(y, wanted)
        for actual, expected in zip(pull(dy), wanted_pull(dy), strict=True):
            np.testing.assert_array_equal(actual, expected)
    assert np.isnan(relu(jnp.asarray([np.nan], jnp.bfloat16), platform="cpu")).all()
