"""What is said of a comparison: title, columns, verdicts for few and for many pairs, and the notes a reader needs."""

from dataclasses import replace

from support.fake_results import ADAM, LOOKAHEAD, PUBLISHED, fake_comparison

from jaxresnet.reporting.comparison import describe_comparison, make_summary, make_title
from jaxresnet.results.findings import AS_PUBLISHED, SYNTHETIC, findings
from jaxresnet.results.store import read_results


def words(results):
    return describe_comparison(results, findings(results))


def test_all_three_choices_of_an_epoch_have_a_column(tmp_path):
    figures = {ADAM: {"best": 90.78, "last": 90.5, "source": "x"}}
    results = read_results(fake_comparison(tmp_path, published=figures))
    for row in (row for of_arm in results.runs.values() for run in of_arm.values() for row in run.rows):
        row["test_accuracy"] = 60.0 - abs(row["epoch"] - 2)
    table = words(results).table
    assert table[0][2:4] == ["test accuracy (%), best epoch on the validation set", "per seed (%)"]
    assert table[0][4:] == ["last epoch, test (%)", f"{AS_PUBLISHED} (%)", "published best / last (%)"]
    assert table[2][4:] == ["57.00 ± 0.00", "60.00 ± 0.00", "90.78 / 90.50"] and table[1][6] == ""


def test_a_choice_on_the_test_set_is_labelled_and_has_one_column(tmp_path):
    one = words(read_results(fake_comparison(tmp_path, selection="test", published=PUBLISHED)))
    assert one.table[0][2] == f"test accuracy (%), {AS_PUBLISHED}" and len(one.table[0]) == 6
    assert one.table[1][-1] == "90.97 / -"
    assert f"Published, Adam + Lookahead, Adam: {AS_PUBLISHED}, its notebook." in one.notes
    assert one.brief[0].endswith(f"[{AS_PUBLISHED}]")


def test_the_title_says_the_protocol_once_and_how_much_was_trained_on(tmp_path):
    results = read_results(fake_comparison(tmp_path, name="x"))
    for one, other, trained_on in (
        ({"train_size": None}, {"train_size": 500}, "all / 500 training images"),
        ({"train_size": 10_000, "num_epochs": 1}, {"train_size": 10_000, "num_epochs": 1}, "1 epoch"),
        ({"num_epochs": 3}, {"num_epochs": 5}, "3 / 5 epochs"),
    ):
        results.config["arms"] = {LOOKAHEAD: one, ADAM: other}
        title = make_title(results)
        assert title.startswith("x: intended protocol, cifar10, ") and title.endswith(trained_on)
    results = read_results(fake_comparison(tmp_path, name="x-intended"))
    assert make_title(results) == "x-intended: cifar10"


def test_the_settings_are_said_once_where_the_arms_agree(tmp_path):
    results = read_results(fake_comparison(tmp_path))
    arm = {"num_epochs": 1, "batch_size": 512, "train_size": None, "val_size": 5000}
    model = {"width": 64, "stage_sizes": [1, 1], "precision": "float32"}
    results.config["arms"] = {ADAM: {**arm, "model": model}, LOOKAHEAD: {**arm, "model": {**model, "width": 8}}}
    assert words(results).notes[1] == (
        "Each run: epochs 1; batch 512; training images all; held out 5,000; width 64 / 8; stages [1, 1]; "
        "precision float32."
    )


def test_many_pairs_show_those_told_apart_and_are_whole_in_the_files(tmp_path):
    results = read_results(fake_comparison(tmp_path, arms=("A", "B", "C", "D"), synthetic=True, seeds=range(5)))
    for seed, run in results.runs["D"].items():  # as good as C, up to chance
        run.scores["test_accuracy"] = results.runs["C"][seed].scores["test_accuracy"] + 0.1 * (-1) ** seed
    one = words(results)
    assert len(one.verdicts) == 6 and "5 seeds do not tell C and D apart" in one.verdicts[-1]
    assert one.brief[:5] == one.verdicts[:5] and all(" is better than " in verdict for verdict in one.brief[:5])
    last = "5 of 6 pairs of arms are told apart (each pair: summary.md, report.html)"
    assert one.brief[5:] == [f"{last} [{SYNTHETIC}]"]
    text = make_summary(results, one)
    assert "## Each pair" in text and all(f"- {verdict}" in text for verdict in one.verdicts)


def test_one_seed_has_no_deviation(tmp_path):
    one = words(read_results(fake_comparison(tmp_path, seeds=(4,))))
    assert "One seed (4): no deviation, no interval." in one.notes and "±" not in str(one.table)
    assert one.brief == one.verdicts and one.brief[0].startswith("one seed: no interval")


def test_what_a_run_went_through_is_noted(tmp_path):
    results = read_results(fake_comparison(tmp_path))
    assert not [note for note in words(results).notes if note.startswith(("Skipped", "Runs come"))]
    begun = {"jax": "0.10.1", "device": "one GPU", "num_devices": 8}
    ended = {"jax": "0.10.2", "device": "one CPU", "num_devices": 1}
    results.runs[LOOKAHEAD][1].scores.update(skipped_steps=1, earlier_backends=[begun], environment=ended)
    notes = words(results).notes
    assert f"Skipped steps, whose numbers were not finite: 1, of {LOOKAHEAD} seed 1." in notes
    made = "jax 0.10.1, device one GPU, num_devices 8; jax 0.10.2, device one CPU, num_devices 1"
    assert notes[-1] == f"Runs come from different environments: {made}."


def test_an_incomplete_comparison_says_what_is_missing(tmp_path):
    results = read_results(fake_comparison(tmp_path, unfinished=[(ADAM, 1)], not_begun=[(ADAM, 2)]))
    one = words(results)
    assert one.title.endswith(" (incomplete: 4 of 6 runs)") and one.table[2][3].endswith(", -, -")
    assert any(note.startswith("Incomplete, missing: Adam seed 1, Adam seed 2. Two arms are") for note in one.notes)
    results.runs[ADAM][1] = replace(results.runs[ADAM][1], failure="the loss is NaN")
    one = words(results)
    assert one.title.endswith(" (incomplete: 4 of 6 runs, 1 failed)")
    assert "Failed: Adam seed 1: the loss is NaN." in one.notes
    assert "Mend what made runs fail, then run the same command again" in " ".join(one.notes)


def test_the_summary_has_everything_and_escapes_it(tmp_path):
    results = read_results(fake_comparison(tmp_path, synthetic=True, name="<b>x"))
    text = make_summary(results, words(results))
    assert text.startswith(f"# &lt;b>x: intended protocol, {SYNTHETIC}\n\n{LOOKAHEAD} is better than {ADAM} by ")
    assert f"- Data: name synthetic, num_test 10000, {SYNTHETIC}." in text
    assert "- Evaluated weights: Adam + Lookahead slow, Adam fast." in text
    assert "| command | python experiments/x.py |" in text and "commit" not in text
    runs = [run for of_arm in results.runs.values() for run in of_arm.values()]
    assert len(runs) == 6 and all(f"| {run.arm} | {run.seed} | {run.id} |" in text for run in runs)
