"""What is said of a comparison: columns, verdicts for few and for many pairs, and the notes that a reader needs."""

import json

import pytest
from support.fake_results import ADAM, LOOKAHEAD, change_rows, fake_comparison

from jaxresnet.files import write_json, write_rows
from jaxresnet.results.findings import AS_PUBLISHED, SYNTHETIC, findings, title
from jaxresnet.results.store import read_results, rows_path, scores_path


def found(folder):
    return findings(read_results(folder))


def test_all_three_choices_of_an_epoch_have_a_column(tmp_path):
    fake_comparison(tmp_path, published={ADAM: {"best": 90.78, "last": 90.5, "source": "x"}})
    for arm in (ADAM, LOOKAHEAD):
        for seed in range(3):
            change_rows(tmp_path, arm, seed, lambda row: row.update(test_accuracy=60.0 - abs(row["epoch"] - 2)))
    table = found(tmp_path).table
    assert table[0] == [
        "arm",
        "n",
        "test accuracy (%), best epoch on the validation set",
        "per seed (%)",
        "epoch (from 0)",
        "last epoch, test (%)",
        f"{AS_PUBLISHED} (%)",
        "published best / last (%)",
    ]
    assert table[2][5:] == ["57.00 ± 0.00", "60.00 ± 0.00", "90.78 / 90.50"] and table[1][7] == ""


def test_a_choice_on_the_test_set_has_no_validation_column_and_says_why(tmp_path):
    arms = {arm: {"batch_size": 512, "val_size": 0} for arm in (LOOKAHEAD, ADAM)}
    one = found(fake_comparison(tmp_path, selection="test", arms=(LOOKAHEAD, ADAM)))
    assert one.table[0][2] == f"test accuracy (%), {AS_PUBLISHED}" and len(one.table[0]) == 6
    note = "No column for an epoch chosen on validation: the runs held no images out to choose on."
    assert note not in one.notes  # they do not say so
    results = read_results(tmp_path)
    results.config["arms"] = arms
    assert note in findings(results).notes


@pytest.mark.parametrize(
    ("arms", "words"),
    [
        ([{"train_size": 10_000, "val_size": 1000}] * 2, ", first 10,000 training images, 1,000 of them held out"),
        ([{"train_size": 10_000, "val_size": 0}] * 2, ", first 10,000 training images"),
        ([{"train_size": None, "val_size": 5000}] * 2, ""),
        ([{"train_size": None}, {"train_size": 500}], ", all or first 500 training images"),
        ([{"num_epochs": 1}] * 2, ", 1 epoch"),
        ([{"num_epochs": 3}] * 2, ", 3 epochs"),
        ([{"num_epochs": 3}, {"num_epochs": 5}], ""),
    ],
    ids=str,
)
def test_the_title_says_how_much_was_trained_on(tmp_path, arms, words):
    results = read_results(fake_comparison(tmp_path))
    results.config["arms"] = dict(zip((LOOKAHEAD, ADAM), arms, strict=True))
    assert title(results) == "adam_lookahead: intended protocol, cifar10" + words


def test_the_settings_count_a_single_epoch_as_one(tmp_path):
    results = read_results(fake_comparison(tmp_path))
    for arm in results.config["arms"].values():
        arm["num_epochs"] = 1
    assert findings(results).notes[0].startswith("Each run: 1 epoch, batch 512")


def test_few_pairs_get_a_sentence_each(tmp_path):
    one = found(fake_comparison(tmp_path, arms=("A", "B", "C")))
    assert len(one.brief) == 3 and one.brief == one.verdicts
    assert "\n".join(sorted(one.verdicts)) == "\n".join(sorted(one.summary["comparison"]["verdict"].splitlines()))


def test_of_many_pairs_those_told_apart_come_first_and_the_others_in_one_line(tmp_path):
    fake_comparison(tmp_path, arms=("A", "B", "C", "D"), synthetic=True, seeds=range(5))
    results = read_results(tmp_path)
    for seed, run in results.runs["D"].items():  # as good as C, up to chance
        run.scores["test_accuracy"] = results.runs["C"][seed].scores["test_accuracy"] + 0.1 * (-1) ** seed
    one = findings(results)
    assert len(one.verdicts) == 6 and "C and D are not distinguished" in one.verdicts[-1]
    assert one.brief[:5] == one.verdicts[:5] and all(" is better than " in line for line in one.brief[:5])
    assert one.brief[5:] == [
        f"not distinguished: C and D [{SYNTHETIC}]",
        "each pair with its interval: summary.md, report.html",
    ]


def test_of_very_many_pairs_even_those_told_apart_share_a_line(tmp_path):
    one = found(fake_comparison(tmp_path, arms=[f"arm {i}" for i in range(6)], seeds=range(6)))
    assert len(one.verdicts) == 15 and len(one.brief) == 2
    size = one.summary["comparison"]["pairs"][0]["mean"]
    assert one.brief[0].startswith("told apart after Holm's correction (the better first, points): arm 0 over arm 1 by")
    assert f"arm 0 over arm 1 by {size:.2f}; " in one.brief[0] and one.brief[0].count(" over ") == 15


def test_many_pairs_without_a_test_say_why_once(tmp_path):
    one = found(fake_comparison(tmp_path, arms=("A", "B", "C", "D"), seeds=(0,)))
    assert one.brief[0] == "no test (fewer than two shared seeds): all 6 pairs of arms"


def test_files_of_no_arm_are_noted(tmp_path):
    fake_comparison(tmp_path)
    write_rows(rows_path(tmp_path, "SGD", 0), [])
    assert "Left out, of no arm and seed of this comparison: runs/sgd-seed0.jsonl." in found(tmp_path).notes


def test_what_a_run_went_through_is_noted(tmp_path):
    folder = fake_comparison(tmp_path)
    assert not [note for note in found(folder).notes if note.startswith(("Skipped", "Continued"))]
    path = scores_path(folder, LOOKAHEAD, 1)
    scores = json.loads(path.read_text())
    begun = {"jax": "0.10.1", "device": "one GPU", "num_devices": 8}
    ended = {"jax": "0.10.2", "device": "one CPU", "num_devices": 1}
    write_json(path, {**scores, "skipped_steps": 1, "earlier_backends": [begun], "environment": ended})
    notes = found(folder).notes
    assert f"Skipped: {LOOKAHEAD} seed 1: 1 step whose numbers were not finite." in notes
    moved = "jax 0.10.1 on 8 x one GPU, then jax 0.10.2 on 1 x one CPU; the same to rounding, not bit for bit."
    assert f"Continued elsewhere: {LOOKAHEAD} seed 1: {moved}" in notes
