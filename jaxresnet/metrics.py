"""The loss, and sums that add up exactly: an epoch's figures come from sums and counts, never from means of means."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array


def cross_entropy(logits: Array, labels: Array) -> Array:
    """Per-example cross-entropy in nats. logits (B, C) any float, labels (B,) int -> (B,), in float32 at least."""
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


class Sums(NamedTuple):
    """What is added up over examples. Scalars: loss float32 (nats), correct and count int32."""

    loss: Array
    correct: Array
    count: Array  # type: ignore[assignment]  # hides tuple.count, which nobody needs


def batch_sums(logits: Array, labels: Array) -> Sums:
    """logits (B, C), labels (B,) -> the sums over the batch."""
    correct = (logits.argmax(-1) == labels).sum(dtype=jnp.int32)
    return Sums(cross_entropy(logits, labels).sum(), correct, jnp.int32(labels.shape[0]))


class TrainTotals(NamedTuple):
    """What an epoch of training adds up on the device. Scalars.

    sums: over the examples seen. norms: float32 (3,), summed over steps: gradient, parameters, update (2-norms).
    steps: int32, without those that were skipped. bad_step: int32, the first step (0-based in the run) of the epoch
    with a loss, gradient or batch statistics that are not finite, else -1.
    """

    sums: Sums
    norms: Array
    steps: Array
    bad_step: Array


def zero_sums() -> Sums:
    return Sums(jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32))


def zero_totals() -> TrainTotals:
    return TrainTotals(zero_sums(), jnp.zeros(3, jnp.float32), jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32))


def add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)


def averages(sums: Sums) -> tuple[float, float]:
    """(mean loss in nats, accuracy in percent) on the host."""
    count = int(sums.count)
    return float(sums.loss) / count, 100 * int(sums.correct) / count
