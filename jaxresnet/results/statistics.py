"""Seeds to a verdict: mean and deviation of an arm, the paired difference of two arms, and what it says in words.

Arms that share a seed share the initial weights and the order and augmentation of the images. So the difference is
taken seed by seed before anything is averaged: what a seed does to both arms alike cancels, and the interval is that
of a paired t-test (Student 1908). With more than two arms the p values are corrected by Holm's step-down method
(Holm 1979, "A simple sequentially rejective multiple test procedure").
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

WORTHWHILE = 0.2  # points: the smallest difference of test accuracy for which the verdict plans a number of seeds
POWER = 0.8  # the chance of telling a true difference apart for which that number is computed


@dataclass(frozen=True)
class ArmSummary:
    """One arm over its seeds.

    n: number of seeds.
    mean, sd: in the unit of the values; sd is the sample standard deviation (n - 1), None for one seed.
    """

    n: int
    mean: float
    sd: float | None


@dataclass(frozen=True)
class Difference:
    """Arm a minus arm b over the seeds that both have.

    n: number of shared seeds.
    mean: mean difference, in the unit of the values; None without a shared seed.
    sd: sample standard deviation of the differences; None for fewer than two shared seeds.
    interval: (low, high) of the mean at `confidence`, two-sided. None for fewer than two shared seeds, and None when
        all differences are equal: a spread of zero would give an interval of no width, which a few seeds never justify.
    p_value: of the two-sided paired t-test; None where interval is.
    test: the test that was used, or why there was none.
    unpaired: the seeds that only one arm has; they do not count.
    """

    n: int
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    confidence: float
    test: str
    unpaired: tuple[int, ...] = ()


@dataclass(frozen=True)
class Pair:
    """Two of several arms: their difference, its p value after Holm's correction, and the verdict that follows."""

    name_a: str
    name_b: str
    difference: Difference
    p_holm: float | None
    verdict: str

    @property
    def told_apart(self) -> bool:
        return self.p_holm is not None and self.p_holm < 1 - self.difference.confidence


def describe(values: Iterable[float]) -> ArmSummary:
    """Number, mean and sample standard deviation of `values`.

    Raises ValueError for no values and for NaN or infinity: a run that diverged has no place in a mean, and leaving it
    out in silence would flatter the arm.
    """
    array = np.asarray(list(values), np.float64)
    if array.size == 0:
        raise ValueError("no values to describe")
    _require_finite(dict(enumerate(array)), "value")
    return ArmSummary(array.size, float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None)


def prediction_interval(values: Iterable[float], confidence: float = 0.95) -> tuple[float, float] | None:
    """(low, high) in the unit of `values`: where one more run falls with probability `confidence`.

    mean ± t * sd * sqrt(1 + 1/n), with t from Student's distribution with n - 1 degrees of freedom: wider than the
    interval of the mean, as one more run has its own scatter beside our doubt about the mean. None for fewer than two
    values and where all are equal. Raises ValueError as `describe` does, and for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1, for example 0.95")
    values = list(values)
    if len(set(values)) < 2:  # of equal values the sd is 0 only up to rounding
        return None
    arm = describe(values)
    assert arm.sd is not None
    from scipy import stats

    half_width = float(stats.t.ppf(0.5 + confidence / 2, arm.n - 1)) * arm.sd * math.sqrt(1 + 1 / arm.n)
    return arm.mean - half_width, arm.mean + half_width


def paired_difference(a: Mapping[int, float], b: Mapping[int, float], confidence: float = 0.95) -> Difference:
    """Arm `a` minus arm `b`, both given as {seed: value}, with a two-sided t interval over the shared seeds.

    Raises ValueError for a value that is NaN or infinite and for a confidence outside (0, 1).
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must lie between 0 and 1, for example 0.95")
    _require_finite(a, "the first arm's seed")
    _require_finite(b, "the second arm's seed")
    shared = sorted(a.keys() & b.keys())
    unpaired = tuple(sorted(a.keys() ^ b.keys()))
    differences = np.array([a[seed] - b[seed] for seed in shared], np.float64)
    n = len(shared)
    if n < 2:
        mean = float(differences[0]) if n else None
        return Difference(n, mean, None, None, None, confidence, "none: fewer than two shared seeds", unpaired)

    mean = float(differences.mean())
    largest = max(abs(arm[seed]) for arm in (a, b) for seed in shared)
    if np.ptp(differences) <= 1e-9 * max(largest, 1e-3):  # equal up to the rounding of the subtraction
        return Difference(n, mean, 0.0, None, None, confidence, "none: all differences are equal", unpaired)

    from scipy import stats  # 0.5 s to import: only for those who compare

    sd = float(differences.std(ddof=1))
    standard_error = sd / math.sqrt(n)
    half_width = float(stats.t.ppf(0.5 + confidence / 2, n - 1)) * standard_error
    p_value = float(2 * stats.t.sf(abs(mean) / standard_error, n - 1))
    interval = (mean - half_width, mean + half_width)
    return Difference(n, mean, sd, interval, p_value, confidence, "paired t-test, two-sided", unpaired)


def seeds_needed(effect: float, sd: float, confidence: float = 0.95, power: float = POWER) -> int:
    """The fewest seeds with which a paired t-test finds a true difference `effect` with probability `power`.

    effect and sd (of the paired differences) are in the same unit, both above 0. The power is exact, from the
    noncentral t distribution; the normal approximation, which is always too low, is where the search starts.
    """
    if not (effect > 0 and sd > 0):
        raise ValueError(f"effect={effect}, sd={sd}: both must be above 0")
    from scipy import stats

    normal = ((stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(power)) * sd / effect) ** 2
    n = max(2, math.floor(normal))
    while True:
        critical = stats.t.ppf(0.5 + confidence / 2, n - 1)
        shift = effect * math.sqrt(n) / sd
        if stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) >= power:
            return n
        n += 1


def holm(p_values: list[float]) -> list[float]:
    """Holm's adjusted p values, in the order given: below alpha means told apart at family-wise error rate alpha."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = running
    return adjusted


def pairwise(arms: Mapping[str, Mapping[int, float]], confidence: float = 0.95, unit: str = "points") -> list[Pair]:
    """Every pair of `arms` ({name: {seed: value}}), in the order given, with Holm's correction over all of them.

    With two arms there is one pair and nothing to correct. Pairs without a p value are not part of the family.
    """
    names = list(combinations(arms, 2))
    differences = [paired_difference(arms[a], arms[b], confidence) for a, b in names]
    tested = [i for i, difference in enumerate(differences) if difference.p_value is not None]
    adjusted = dict(zip(tested, holm([differences[i].p_value or 0.0 for i in tested]), strict=True))
    return [
        Pair(a, b, differences[i], adjusted.get(i), verdict(a, b, differences[i], unit, adjusted.get(i), len(tested)))
        for i, (a, b) in enumerate(names)
    ]


def verdict(
    name_a: str,
    name_b: str,
    difference: Difference,
    unit: str = "points",
    p_holm: float | None = None,
    num_comparisons: int = 1,
) -> str:
    """One sentence: which arm is better and by how much, or that the data do not tell, and how many seeds would.

    difference: of a minus b, of something of which more is better, in `unit`.
    p_holm, num_comparisons: the corrected p value when this is one of several comparisons; it then decides.
    """
    sentence = _compared(name_a, name_b, difference, unit, p_holm, num_comparisons)
    if difference.unpaired and difference.n:
        left_out = ", ".join(map(str, difference.unpaired))
        sentence += f"; only seeds that both arms have count (left out: {left_out})"
    return sentence


def _compared(name_a: str, name_b: str, d: Difference, unit: str, p_holm: float | None, num_comparisons: int) -> str:
    if d.mean is None:
        return f"{name_a} and {name_b} share no finished seed: nothing to compare"
    better, worse = (name_a, name_b) if d.mean >= 0 else (name_b, name_a)
    size = abs(d.mean)
    if d.n == 1:
        return f"one seed: no interval ({better} is {size:.2f} {unit} above {worse}, which may be chance)"
    if d.interval is None or d.p_value is None or d.sd is None:
        if size == 0:
            return f"{name_a} and {name_b} give exactly the same on all {d.n} seeds"
        return (
            f"{better} is {size:.2f} {unit} above {worse} on each of {d.n} seeds: differences without any spread give "
            "no interval; run more seeds"
        )

    low, high = d.interval if d.mean >= 0 else (-d.interval[1], -d.interval[0])
    # Enough decimals to show the width of the interval: two for points of accuracy, as a rule.
    decimals = max(2, 1 - math.floor(math.log10(high - low)))
    low_text, high_text = (f"{round(x, decimals) + 0.0:.{decimals}f}" for x in (low, high))  # + 0.0: no "-0.00"
    p_value = d.p_value if p_holm is None else p_holm
    corrected = num_comparisons > 1
    uncorrected = ", uncorrected" if corrected else ""  # Holm's method corrects p values; the interval stays as it is
    interval = f"{100 * d.confidence:g} % interval {low_text} to {high_text}{uncorrected}"
    holm_note = f"; p = {p_value:.2g} after Holm's correction for {num_comparisons} comparisons" if corrected else ""
    if p_value < 1 - d.confidence:
        return f"{better} is better than {worse} by {size:.{decimals}f} {unit} ({interval}, {d.n} seeds{holm_note})"

    between = f"{name_a} and {name_b} are " if corrected else ""
    sentence = (
        f"{between}not distinguished with {d.n} seeds (difference {d.mean + 0.0:.{decimals}f} {unit}, "
        f"{name_a} minus {name_b}, {100 * d.confidence:g} % interval {d.interval[0]:.{decimals}f} to "
        f"{d.interval[1]:.{decimals}f}{uncorrected}{holm_note})"
    )
    if corrected and d.p_value < 1 - d.confidence:  # the interval leaves 0 out, and a reader wonders
        sentence += f", though they would be as the only pair; among {num_comparisons} one such is likelier by chance"
    effect = max(WORTHWHILE, size)
    strictest = 1 - (1 - d.confidence) / num_comparisons  # what Holm asks of the smallest p value
    needed = seeds_needed(effect, d.sd, strictest)
    if needed > 1000:
        return f"{sentence}; telling {effect:.2f} {unit} apart would take more than 1000 seeds"
    if needed > d.n:
        return f"{sentence}; telling {effect:.2f} {unit} apart would take about {needed} seeds"
    return f"{sentence}; with this spread {needed} seeds are enough to tell {effect:.2f} {unit} apart"


def _require_finite(values: Mapping[int, float], what: str) -> None:
    for key, value in values.items():
        if not math.isfinite(value):
            raise ValueError(
                f"{what} {key} is {value}: a run that diverged cannot be averaged; leave its arm out or rerun"
            )
