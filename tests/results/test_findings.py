"""What a comparison says in numbers: the arms, the pairs, their order and labels, and what summary.json holds."""

import numpy as np
import pytest
from support.fake_results import ADAM, LOOKAHEAD, fake_comparison

from jaxresnet.results.findings import AS_PUBLISHED, SYNTHETIC, findings
from jaxresnet.results.store import read_results


def found(folder):
    return findings(read_results(folder))


def test_the_summary_holds_the_statistics(tmp_path):
    results = read_results(fake_comparison(tmp_path))
    summary = findings(results).summary
    values = results.scores(LOOKAHEAD, "test_accuracy")
    arm = summary["arms"][LOOKAHEAD]
    assert arm["n"] == 3 and arm["values"] == {str(seed): value for seed, value in values.items()}
    assert arm["mean"] == pytest.approx(np.mean(list(values.values())))
    assert arm["sd"] == pytest.approx(np.std(list(values.values()), ddof=1))
    assert arm["selection"] == ["best epoch on the validation set"] and arm["weights"] == ["slow"]
    (pair,) = summary["comparison"]["pairs"]
    assert pair["a"] == LOOKAHEAD and pair["test"] == "paired t-test, two-sided"
    assert pair["mean"] == pytest.approx(arm["mean"] - summary["arms"][ADAM]["mean"])
    assert pair["interval"][0] < pair["mean"] < pair["interval"][1] and pair["p_value"] < 0.05
    assert summary["comparison"]["confidence"] == 0.95 and summary["comparison"]["correction"] is None
    assert summary["complete"] is True and summary["missing"] == []
    assert summary["environment"]["jax"] == "0.10.2" and summary["dataset"]["name"] == "cifar10"


def test_the_best_epoch_on_the_test_set_is_the_earlier_of_two_equals(tmp_path):
    results = read_results(fake_comparison(tmp_path, arms=(ADAM,), seeds=(0,)))
    for row, accuracy in zip(results.runs[ADAM][0].rows, (50.0, 70.25, 60.0, 70.25, 65.0, 64.5), strict=True):
        row["test_accuracy"] = accuracy
    arm = findings(results).summary["arms"][ADAM]
    assert arm[AS_PUBLISHED] == {"0": {"epoch": 1, "test_accuracy": 70.25}}
    assert arm["last_epoch_test_accuracy"] == {"0": 64.5}


def test_verdicts_carry_what_must_not_be_overlooked_and_those_told_apart_come_first(tmp_path):
    results = read_results(fake_comparison(tmp_path, arms=("A", "B", "C"), synthetic=True, seeds=range(5)))
    for seed, run in results.runs["B"].items():  # as good as A, up to chance
        run.scores["test_accuracy"] = results.runs["A"][seed].scores["test_accuracy"] + 0.1 * (-1) ** seed
    one = findings(results)
    assert [(pair.name_a, pair.name_b) for pair in one.pairs] == [("A", "B"), ("A", "C"), ("B", "C")]
    assert [" is better than C by " in verdict for verdict in one.verdicts] == [True, True, False]
    assert all(verdict.endswith(f" [{SYNTHETIC}]") for verdict in one.verdicts)
    comparison = one.summary["comparison"]
    assert comparison["verdict"].splitlines() == one.verdicts and comparison["correction"] == "Holm"
    assert {pair["verdict"] for pair in comparison["pairs"]} == set(one.verdicts)
    published = found(fake_comparison(tmp_path / "published", selection="test"))
    assert published.verdicts[0].endswith(f" [{AS_PUBLISHED}]")


def test_without_a_pair_the_verdict_says_why(tmp_path):
    assert found(fake_comparison(tmp_path / "one", arms=(ADAM,))).verdicts == ["one arm: nothing to compare"]
    one = found(fake_comparison(tmp_path / "begun", seeds=(0,), not_begun=[(LOOKAHEAD, 0), (ADAM, 0)]))
    assert one.verdicts == ["fewer than two arms have a finished run: nothing to compare"] and one.pairs == []
    assert one.summary["arms"][ADAM]["n"] == 0 and one.summary["arms"][ADAM]["mean"] is None


def test_unfinished_runs_are_named_and_do_not_count(tmp_path):
    one = found(fake_comparison(tmp_path, unfinished=[(ADAM, 1)], not_begun=[(ADAM, 2)]))
    assert one.summary["complete"] is False and one.summary["arms"][ADAM]["n"] == 1
    assert one.summary["missing"] == [{"arm": ADAM, "seed": 1}, {"arm": ADAM, "seed": 2}]
    assert one.verdicts[0].startswith("one seed: no interval")
