"""Seeds to a verdict: the mean and deviation of an arm, the paired difference of two arms, and what it says in words.

Arms that share a seed start from the same weights and see the same images in the same order with the same
augmentation. So the difference is taken seed by seed, and what a seed does to both arms cancels. The interval is that
of a paired t-test (Student 1908). With more than two arms the p values are corrected by Holm's step-down method
(Holm 1979, "A simple sequentially rejective multiple test procedure"). All values are in percentage points.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations

import numpy as np

CONFIDENCE = 0.95  # of every interval; a pair is told apart where its p value is below 1 - CONFIDENCE
POWER = 0.8  # the chance of finding a true difference with the number of seeds that a verdict names
WORTHWHILE = 0.2  # points: the smallest difference for which a verdict names a number of seeds


@dataclass(frozen=True)
class Difference:
    """Arm a minus arm b over the seeds that both have.

    n: number of shared seeds.
    mean: mean difference; None without a shared seed.
    sd: sample standard deviation of the differences; None for fewer than two shared seeds.
    interval: (low, high) of the mean, two-sided; None for fewer than two shared seeds, and where all differences are
        equal: without spread the interval would have no width, which a few seeds never justify.
    p_value: of the two-sided paired t-test; None where `interval` is.
    test: the test that was used, or why there was none.
    """

    n: int
    mean: float | None
    sd: float | None
    interval: tuple[float, float] | None
    p_value: float | None
    test: str


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
        return self.p_holm is not None and self.p_holm < 1 - CONFIDENCE


def mean_and_sd(values: Iterable[float]) -> tuple[float, float | None]:
    """The mean, and the sample standard deviation (n - 1), which is None for one value."""
    array = np.array(list(values), np.float64)
    return float(array.mean()), float(array.std(ddof=1)) if array.size > 1 else None


def prediction_interval(values: Iterable[float]) -> tuple[float, float] | None:
    """(low, high), where one more run falls with probability `CONFIDENCE`.

    mean ± t * sd * sqrt(1 + 1/n), with t from Student's distribution with n - 1 degrees of freedom. This is wider than
    the interval of the mean: one more run scatters too. None for fewer than two values and where all are equal.
    """
    values = list(values)
    mean, sd = mean_and_sd(values) if len(set(values)) > 1 else (0.0, None)  # of equal values sd is 0 up to rounding
    if sd is None:
        return None
    half_width = _student(len(values)) * sd * math.sqrt(1 + 1 / len(values))
    return mean - half_width, mean + half_width


def paired_difference(a: Mapping[int, float], b: Mapping[int, float]) -> Difference:
    """Arm `a` minus arm `b`, both {seed: value}, over the shared seeds."""
    shared = sorted(a.keys() & b.keys())
    differences = np.array([a[seed] - b[seed] for seed in shared], np.float64)
    n = len(shared)
    if n < 2:
        mean = float(differences[0]) if n else None
        return Difference(n, mean, None, None, None, "none: fewer than two shared seeds")

    mean = float(differences.mean())
    largest = max(abs(arm[seed]) for arm in (a, b) for seed in shared)
    if np.ptp(differences) <= 1e-9 * max(largest, 1e-3):  # equal up to the rounding of the subtraction
        return Difference(n, mean, 0.0, None, None, "none: all differences are equal")

    from scipy import stats  # 0.5 s to import: only for those who compare

    sd = float(differences.std(ddof=1))
    standard_error = sd / math.sqrt(n)
    half_width = _student(n) * standard_error
    p_value = float(2 * stats.t.sf(abs(mean) / standard_error, n - 1))
    interval = (mean - half_width, mean + half_width)
    return Difference(n, mean, sd, interval, p_value, "paired t-test, two-sided")


def _student(n: int) -> float:
    """How many standard errors a two-sided interval reaches, for n values."""
    from scipy import stats

    return float(stats.t.ppf(0.5 + CONFIDENCE / 2, n - 1))


def seeds_needed(effect: float, sd: float, confidence: float = CONFIDENCE) -> int:
    """The fewest seeds with which a paired t-test finds a true difference `effect` with probability `POWER`.

    effect and sd (of the paired differences) are above 0. The power is exact, from the noncentral t distribution. The
    normal approximation, which is always too low, is where the search starts.
    """
    from scipy import stats

    normal = ((stats.norm.ppf(0.5 + confidence / 2) + stats.norm.ppf(POWER)) * sd / effect) ** 2
    n = max(2, math.floor(normal))
    while True:
        critical = stats.t.ppf(0.5 + confidence / 2, n - 1)
        shift = effect * math.sqrt(n) / sd
        if stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift) >= POWER:
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


def pairwise(arms: Mapping[str, Mapping[int, float]]) -> list[Pair]:
    """Every pair of `arms` ({name: {seed: value}}), in the order given, with Holm's correction over all of them.

    With two arms there is one pair and nothing to correct. Pairs without a p value are not part of the family.
    """
    names = list(combinations(arms, 2))
    differences = [paired_difference(arms[a], arms[b]) for a, b in names]
    tested = [i for i, difference in enumerate(differences) if difference.p_value is not None]
    adjusted = dict(zip(tested, holm([differences[i].p_value or 0.0 for i in tested]), strict=True))
    return [
        Pair(a, b, differences[i], adjusted.get(i), verdict(a, b, differences[i], adjusted.get(i), len(tested)))
        for i, (a, b) in enumerate(names)
    ]


def verdict(name_a: str, name_b: str, difference: Difference, p_holm: float | None = None, num_tests: int = 1) -> str:
    """One sentence: which arm is better and by how much, or that the data do not tell, and how many seeds would.

    difference: of a minus b, of something of which more is better.
    p_holm, num_tests: the corrected p value where this is one of several tests; it then decides.
    """
    d = difference
    if d.mean is None:
        return f"{name_a} and {name_b} share no finished seed: nothing to compare"
    better, worse = (name_a, name_b) if d.mean >= 0 else (name_b, name_a)
    size = abs(d.mean)
    if d.n == 1:
        return f"one seed: no interval ({better} is {size:.2f} points above {worse}, which may be chance)"
    if d.interval is None or d.p_value is None or d.sd is None:
        equal = "equal differences give no interval; run more seeds"
        return f"{better} is {size:.2f} points above {worse} on each of {d.n} seeds: {equal}"

    p_value = d.p_value if p_holm is None else p_holm
    several = num_tests > 1
    uncorrected = ", uncorrected" * several  # Holm's method corrects p values; the interval stays as it is
    holm_note = f"; p = {p_value:.2g} after Holm's correction for {num_tests} comparisons" * several

    def interval(low: float, high: float) -> str:
        return f"{100 * CONFIDENCE:g} % interval {low:z.2f} to {high:z.2f}{uncorrected}"  # z: no "-0.00"

    if p_value < 1 - CONFIDENCE:
        ends = d.interval if d.mean >= 0 else (-d.interval[1], -d.interval[0])
        return f"{better} is better than {worse} by {size:.2f} points ({interval(*ends)}, {d.n} seeds{holm_note})"
    strictest = 1 - (1 - CONFIDENCE) / num_tests  # what Holm asks of the smallest p value
    effect = max(WORTHWHILE, size)
    needed = seeds_needed(effect, d.sd, strictest)
    return (
        f"{d.n} seeds do not tell {name_a} and {name_b} apart ({name_a} minus {name_b}: {d.mean:z.2f} points, "
        f"{interval(*d.interval)}{holm_note}); it takes {f'about {needed}' if needed <= 1000 else 'more than 1000'} "
        f"seeds to find a difference of {effect:.2f} points ({100 * POWER:g} % power)"
    )
