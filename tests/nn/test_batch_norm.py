"""Batch normalisation: it normalises, moves its statistics as PyTorch's, and is one function at inference."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxresnet.nn.batch_norm import EPS, BatchNorm

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
