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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_cross_entropy_is_the_definition_in_float32(dtype):
    logits = jnp.asarray(LOGITS, dtype)
    loss = cross_entropy_of(logits, LABELS)
    assert loss.shape == (50,) and loss.dtype == jnp.float32
    np.testing.assert_allclose(loss, cross_entropy(np.asarray(logits), LABELS), rtol=1e-5)


def test_cross_entropy_survives_large_logits():
    logits = jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
    np.testing.assert_array_equal(cross_entropy_of(logits, jnp.array([0, 1])), [0.0, 2e4])


def test_uneven_batches_add_up_to_the_whole():
    """A mean of batch means would weigh the 10 images of the last batch as much as the 20 of each other."""
    total = metrics.zero_totals().sums
    batch_sums = jax.jit(metrics.batch_sums)
    for rows in (slice(0, 20), slice(20, 40), slice(40, 50)):
        total = metrics.add(total, batch_sums(LOGITS[rows], LABELS[rows]))
    assert [x.dtype for x in total] == [jnp.float32, jnp.int32, jnp.int32]
    assert int(total.count) == 50
    accuracy = 100 * (LOGITS.argmax(1) == LABELS).mean()
    assert metrics.averages(total) == pytest.approx((cross_entropy(LOGITS, LABELS).mean(), accuracy), rel=1e-5)
