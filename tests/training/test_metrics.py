"""Cross-entropy against its definition in float64, and sums that give an epoch's averages whatever the batches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxresnet.training import metrics

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(0, 3, (50, 10)).astype(np.float32)
LABELS = RNG.integers(0, 10, 50).astype(np.int32)
cross_entropy_of = jax.jit(metrics.cross_entropy)


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    logits = logits.astype(np.float64)
    log_normaliser = np.log(np.exp(logits - logits.max(1, keepdims=True)).sum(1)) + logits.max(1)
    return log_normaliser - logits[np.arange(len(labels)), labels]


def test_cross_entropy_is_the_definition():
    loss = cross_entropy_of(LOGITS, LABELS)
    assert loss.shape == (50,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(LOGITS, LABELS), rtol=1e-5)


def test_cross_entropy_of_equal_logits_is_the_log_of_the_classes():
    np.testing.assert_allclose(cross_entropy_of(jnp.zeros((2, 10)), jnp.array([0, 9])), np.log(10), rtol=1e-6)


def test_cross_entropy_survives_large_logits():
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    np.testing.assert_array_equal(cross_entropy_of(logits, jnp.array([0, 1])), [0.0, 2e4])


def test_cross_entropy_of_bfloat16_logits_is_computed_in_float32():
    logits = jnp.asarray(LOGITS).astype(jnp.bfloat16)
    loss = cross_entropy_of(logits, LABELS)
    assert loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(np.asarray(logits), LABELS), rtol=1e-5)


def test_sums_by_hand():
    logits = jnp.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]])
    sums = jax.jit(metrics.batch_sums)(logits, jnp.array([0, 0, 0]))
    assert [int(sums.correct), int(sums.count)] == [2, 3]
    easy, hard = np.log1p(np.exp(-3)), np.log1p(np.exp(3))
    assert float(sums.loss) == pytest.approx(2 * easy + hard, rel=1e-6)
    assert [x.dtype for x in sums] == [jnp.float32, jnp.int32, jnp.int32]
    loss, accuracy = metrics.averages(sums)
    assert (loss, accuracy) == (pytest.approx((2 * easy + hard) / 3, rel=1e-6), pytest.approx(200 / 3))


def test_uneven_batches_add_up_to_the_whole():
    """A mean of batch means would weigh the 10 images of the last batch as much as the 20 of each other."""
    total = metrics.zero_sums()
    batch_sums = jax.jit(metrics.batch_sums)
    for rows in (slice(0, 20), slice(20, 40), slice(40, 50)):
        total = metrics.add(total, batch_sums(LOGITS[rows], LABELS[rows]))
    loss, accuracy = metrics.averages(total)
    assert int(total.count) == 50
    assert loss == pytest.approx(cross_entropy(LOGITS, LABELS).mean(), rel=1e-5)
    assert accuracy == pytest.approx(100 * (LOGITS.argmax(1) == LABELS).mean())


def test_totals_start_at_zero_without_a_bad_step():
    totals = metrics.zero_totals()
    assert totals.norms.shape == (3,) and totals.norms.dtype == jnp.float32
    assert int(totals.bad_step) == -1
    assert [float(x.sum()) for x in (*totals.sums, totals.norms, totals.steps)] == [0] * 5
    assert [x.dtype for x in jax.tree.leaves(totals)] == [jnp.float32, *[jnp.int32] * 2, jnp.float32, *[jnp.int32] * 2]
