"""What a classifier gets right and wrong, class by class, from its probabilities."""

import math
from typing import NamedTuple

import numpy as np

Z_95 = 1.959964  # the normal distribution has 95 % of its mass within so many standard deviations


class ClassScore(NamedTuple):
    """One class of a confusion matrix. n: images of the class. correct: those recognised, a mean over runs if the
    matrix was one. accuracy, low, high: percent, with the ends of the 95 % Wilson interval; None where n is 0."""

    n: int
    correct: float
    accuracy: float | None
    low: float | None
    high: float | None


class Mistake(NamedTuple):
    """image: its row. true, predicted: classes. probability: of the predicted class, 0..1."""

    image: int
    true: int
    predicted: int
    probability: float


def confusion_matrix(labels: np.ndarray, predictions: np.ndarray, num_classes: int) -> np.ndarray:
    """(num_classes, num_classes) int64: how many images of the row's true class were taken for the column's class.

    labels, predictions: (N,) integers, 0..num_classes - 1. Raises ValueError for other shapes or classes.
    """
    labels, predictions = np.asarray(labels), np.asarray(predictions)
    if labels.shape != predictions.shape or labels.ndim != 1:
        raise ValueError(f"labels {labels.shape} and predictions {predictions.shape}: expected the same (N,)")
    both = np.concatenate([labels, predictions])
    if both.size and not (both.min() >= 0 and both.max() < num_classes):
        raise ValueError(f"classes go from {both.min()} to {both.max()}: expected 0 to {num_classes - 1}")
    pairs = labels.astype(np.int64) * num_classes + predictions
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


def per_class(confusion: np.ndarray) -> list[ClassScore]:
    """A score a class. confusion: (C, C) counts, or their mean over runs on the same images.

    The interval says how far the accuracy may be from that on all images of the kind, of which these n are a sample.
    A mean over runs does not make it narrower: n stays the number of images, since all runs see the same ones.
    """
    scores = []
    for row, correct in zip(confusion, np.diag(confusion), strict=True):
        n = round(float(row.sum()))
        if n == 0:
            scores.append(ClassScore(0, 0.0, None, None, None))
            continue
        low, high = wilson_interval(float(correct), n)
        scores.append(ClassScore(n, float(correct), 100 * float(correct) / n, 100 * low, 100 * high))
    return scores


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """(low, high), each 0..1: Wilson's score interval for a proportion (Wilson 1927), 95 % by default.

    Unlike mean plus or minus z standard errors it stays within 0..1, and has a width where nothing or all succeeded.
    """
    if not 0 <= successes <= n or n < 1:
        raise ValueError(f"{successes} successes of {n}: expected 0 to n successes, and n of at least 1")
    p = successes / n
    scale = 1 / (1 + z * z / n)
    centre = scale * (p + z * z / (2 * n))
    half = scale * z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)  # rounding can take the ends just beyond


def worst_mistakes(probabilities: np.ndarray, labels: np.ndarray, count: int) -> list[Mistake]:
    """The misclassified images whose wrong class had the highest probability, the worst first; `count` at most.

    probabilities: (N, C), rows that sum to 1. labels: (N,) true classes. Of equals the earlier image comes first.
    """
    predictions = probabilities.argmax(1)
    confidence = probabilities.max(1)
    wrong = np.flatnonzero(predictions != labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:count]
    return [Mistake(int(i), int(labels[i]), int(predictions[i]), float(confidence[i])) for i in worst]
