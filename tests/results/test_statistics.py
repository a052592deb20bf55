"""Hand-worked intervals, SciPy's paired t-test as the reference, and the sentences that a reader sees."""

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxresnet.results.statistics import (
    Difference,
    holm,
    mean_and_sd,
    paired_difference,
    pairwise,
    seeds_needed,
    verdict,
)

# Differences 1, 2, 3: mean 2, sd 1, standard error 1/sqrt(3); t(0.975, 2 degrees of freedom) = 4.302653.
WORKED_A = {0: 91.0, 1: 93.0, 2: 92.0}
WORKED_B = {0: 90.0, 1: 91.0, 2: 89.0}


def test_mean_and_sd_by_hand():
    assert mean_and_sd([1.0, 2.0, 4.0]) == pytest.approx((7 / 3, math.sqrt(7 / 3)))  # (16 + 1 + 25) / 9 / 2
    assert mean_and_sd(iter([5.0])) == (5.0, None)


def test_paired_difference_by_hand():
    d = paired_difference(WORKED_A, WORKED_B)
    assert (d.n, d.mean, d.sd) == (3, pytest.approx(2.0), pytest.approx(1.0))
    half = 4.302653 / math.sqrt(3)
    assert d.interval == pytest.approx((2 - half, 2 + half), abs=1e-6)
    # Two degrees of freedom have a closed form: p = 1 - t / sqrt(2 + t^2), with t = 2 sqrt(3).
    assert d.p_value == pytest.approx(1 - math.sqrt(12) / math.sqrt(14))


accuracies = st.floats(10, 100).map(lambda x: round(x, 2))


@given(st.lists(st.tuples(accuracies, accuracies), min_size=2, max_size=8))
def test_paired_difference_agrees_with_scipy(pairs):
    from scipy.stats import ttest_rel

    a, b = ({seed: pair[arm] for seed, pair in enumerate(pairs)} for arm in (0, 1))
    d = paired_difference(a, b)
    if d.sd == 0:
        assert len({round(x - y, 6) for x, y in pairs}) == 1 and d.interval is None and d.p_value is None
        return
    reference = ttest_rel(list(a.values()), list(b.values()))
    assert d.p_value == pytest.approx(reference.pvalue, rel=1e-6, abs=1e-12)
    assert d.interval == pytest.approx(tuple(reference.confidence_interval(0.95)), rel=1e-6, abs=1e-9)
    opposite = paired_difference(b, a)
    assert opposite.interval == pytest.approx((-d.interval[1], -d.interval[0]))
    assert ("do not tell X and Y apart" in verdict("X", "Y", d)) == (d.p_value >= 0.05)


def test_only_shared_seeds_count():
    assert paired_difference({**WORKED_A, 7: 10.0}, {**WORKED_B, 9: 99.0}) == paired_difference(WORKED_A, WORKED_B)
    one = paired_difference({0: 66.5}, {0: 66.0})
    assert (one.n, one.mean, one.sd, one.interval, one.p_value) == (1, 0.5, None, None, None)
    assert verdict("A", "B", one) == "one seed: no interval (A is 0.50 points above B, which may be chance)"
    none = paired_difference({0: 66.5}, {1: 66.0})
    assert (none.n, none.mean) == (0, None)
    assert verdict("A", "B", none) == "A and B share no finished seed: nothing to compare"


def test_differences_without_spread_prove_nothing():
    same = paired_difference({0: 66.1, 1: 67.1}, {0: 66.0, 1: 67.0})  # 0.1 each time, but for rounding
    assert (same.sd, same.interval, same.p_value) == (0.0, None, None)
    assert "B is 0.10 points above A on each of 2 seeds" in verdict("B", "A", same)
    assert "equal differences give no interval; run more seeds" in verdict("B", "A", same)


def test_seeds_needed_agrees_with_the_tables_of_power():
    """Two-sided paired t-test, alpha 0.05, power 0.80: the numbers that G*Power prints."""
    for effect, seeds in ((0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10)):
        assert seeds_needed(effect, 1.0) == seeds_needed(effect * 7, 7.0) == seeds


def test_verdict_names_the_better_arm_in_either_order():
    a, b = {0: 0.31 + 0.1, 1: 0.31 - 0.1, 2: 0.31 + 0.02, 3: 0.31 - 0.02}, dict.fromkeys(range(4), 0.0)
    forwards = verdict("Adam + Lookahead", "Adam", paired_difference(a, b))
    # sd = sqrt(0.0208 / 3), times t(0.975, 3) = 3.182446, over sqrt(4): half-width 0.1325
    assert forwards == "Adam + Lookahead is better than Adam by 0.31 points (95 % interval 0.18 to 0.44, 4 seeds)"
    assert verdict("Adam", "Adam + Lookahead", paired_difference(b, a)) == forwards


def test_verdict_says_how_many_seeds_would_tell():
    # Differences 0.02, 0.12, 0.22: mean 0.12, sd 0.1, half-width 4.302653 * 0.1 / sqrt(3) = 0.2484.
    d = paired_difference({0: 0.02, 1: 0.12, 2: 0.22}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert verdict("A", "B", d) == (
        "3 seeds do not tell A and B apart (A minus B: 0.12 points, 95 % interval -0.13 to 0.37); it takes about "
        f"{seeds_needed(0.2, 0.1)} seeds to find a difference of 0.20 points (80 % power)"
    )
    wide = paired_difference({0: -9.0, 1: 9.03, 2: 0.0}, {0: 0.0, 1: 0.0, 2: 0.0})
    assert "it takes more than 1000 seeds to find a difference of 0.20 points" in verdict("A", "B", wide)
    touching = Difference(2, -1e-4, 1.0, (-2.0, -1e-4), 0.5, "")
    assert "A minus B: 0.00 points, 95 % interval -2.00 to 0.00" in verdict("A", "B", touching), "no negative zero"


@given(st.lists(st.floats(-3, 3), min_size=3, max_size=6), st.integers(1, 6))
def test_verdict_never_plans_fewer_seeds_than_have_already_failed(values, num_tests):
    d = paired_difference(dict(enumerate(values)), dict.fromkeys(range(len(values)), 0.0))
    if d.p_value is None or abs(d.mean) < 0.2:
        return
    sentence = verdict("A", "B", d, p_holm=min(1.0, d.p_value * num_tests), num_tests=num_tests)
    seeds = re.search(r"about (\d+) seeds", sentence)
    assert seeds is None or int(seeds[1]) > d.n


def test_holm_by_hand():
    # Sorted 0.01, 0.02, 0.03, 0.04 times 4, 3, 2, 1: 0.04, 0.06, 0.06, 0.04, and never falling.
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_pairwise_corrects_more_than_two_arms():
    a, b = dict.fromkeys(range(4), 0.0), {0: 0.50, 1: 0.52, 2: 0.48, 3: 0.51}
    arms = {"A": a, "B": b, "C": {0: 0.10, 1: 0.01, 2: 0.09, 3: 0.10}}  # A and C: p = 0.044 on its own
    pairs = pairwise(arms)
    assert [(pair.name_a, pair.name_b) for pair in pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    alone = [pair.difference.p_value for pair in pairs]
    assert [pair.p_holm for pair in pairs] == pytest.approx(holm(alone))
    assert "B is better than A by 0.50 points" in pairs[0].verdict
    assert [pair.told_apart for pair in pairs] == ["is better than" in pair.verdict for pair in pairs]
    assert "after Holm's correction for 3 comparisons" in pairs[0].verdict
    assert all(re.search(r"95 % interval \S+ to \S+, uncorrected[,;]", pair.verdict) for pair in pairs)

    spoilt = pairwise({**arms, "D": {0: 0.2, 1: -0.3, 2: 0.1, 3: 0.0}})
    lost = next(pair for pair in spoilt if (pair.name_a, pair.name_b) == ("A", "C"))
    assert lost.difference.p_value < 0.05 < lost.p_holm
    assert lost.verdict.startswith("4 seeds do not tell A and C apart")


def test_pairs_without_a_test_are_not_part_of_the_family():
    pairs = pairwise({"A": WORKED_A, "B": WORKED_B, "C": {0: 50.0}})
    assert [pair.p_holm is None for pair in pairs] == [False, True, True]
    assert not pairs[1].told_apart and not pairs[2].told_apart
    assert pairs[0].p_holm == pairs[0].difference.p_value and "uncorrected" not in pairs[0].verdict
