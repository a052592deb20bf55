"""The loss, and sums that add up exactly: an epoch's figures come from sums and counts, never from means of means."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import Array

Row = dict[str, Any]  # of the history: what `fit` says of one epoch


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
    """NumPy arrays, as `zero_totals`: to be copied to a device without running anything there."""
    return Sums(_all(0, np.float32), _all(0, np.int32), _all(0, np.int32))


def zero_totals() -> TrainTotals:
    return TrainTotals(zero_sums(), _all(0, np.float32, 3), _all(0, np.int32), _all(-1, np.int32))


def _all(value: int, dtype: Any, *shape: int) -> Any:
    return np.full(shape, value, dtype)


def add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)


def averages(sums: Sums) -> tuple[float, float]:
    """(mean loss in nats, accuracy in percent) on the host."""
    count = int(sums.count)
    return float(sums.loss) / count, 100 * int(sums.correct) / count


def best_epoch(selection: str, history: list[Row]) -> int:
    """The chosen epoch so far, 0-based: the first with the highest accuracy on the split that selects, or the last.

    selection: "val", "test" or "last"."""
    if selection == "last":
        return len(history) - 1
    return max(range(len(history)), key=lambda i: history[i][f"{selection}_accuracy"])
