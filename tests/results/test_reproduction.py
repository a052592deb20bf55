"""Which runs count as repeating a published one, and what is then said of the published figure."""

from dataclasses import replace

import pytest
from support.fake_results import CIFAR10, fake_comparison, fake_measurement, fake_reproduction

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json, write_rows
from jaxresnet.recipes import Published, intended, published
from jaxresnet.results.findings import AS_PUBLISHED
from jaxresnet.results.reproduction import READING, Row, Score, read_reproduction
from jaxresnet.results.store import config_path, read_results, rows_path, scores_path

THREE = {0: (91.0, 90.8), 1: (92.0, 91.8), 2: (93.0, 92.8)}


def row_of(reproduction, name):
    return next(row for row in reproduction.rows if row.name == name)


def cells(reproduction, name):
    return dict(zip(reproduction.table[0], next(r for r in reproduction.table if r[0] == name), strict=True))


@pytest.mark.parametrize("with_config", [True, False])
def test_both_protocols_make_a_row(tmp_path, with_config):
    fake_reproduction(tmp_path / "a-published", {"adam_512": THREE}, with_config=with_config)
    fake_reproduction(tmp_path / "a", {"adam_512": {0: (92.5, 92.0)}}, "intended", with_config=with_config)
    found = read_reproduction(tmp_path)
    assert [row.name for row in found.rows] == list(published) and found.num_runs == 4
    # Half-width of the interval: 4.302653 * sd 1 * sqrt(1 + 1/3) = 4.968; as published 91.26 lies in 92 ± 4.97.
    assert list(cells(found, "adam_512").values()) == [
        "adam_512",
        "Adam + Lookahead, cosine, lr 0.01, batch 512",
        "51",
        "91.26 / 91.00",
        "92.00 ± 1.00 (3)",
        "91.80 ± 1.00 (3)",
        "92.50 (1)",
        "92.00 (1)",
        "92.00 (1)",
        "inside (87.03 to 96.97)",
    ]
    assert list(cells(found, "sgd_128").values())[4:] == [*[""] * 5, "not run yet"]
    made = "one GPU, float32 (4 runs)" if with_config else "float32 (4 runs)"
    assert f"Made on: {made}." in found.notes and "Counted: 4 finished runs on CIFAR-10." in found.notes


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ([], "not run yet"),
        ([91.2], "one run: cannot tell"),
        ([91.2, 91.2], "all runs equal: cannot tell"),
        ([90.0, 90.1, 90.2], "outside (89.60 to 90.60)"),  # 90.1 ± 4.302653 * 0.1 * sqrt(4 / 3)
        (
            [90.0, 92.0],
            "inside (68.99 to 100.00)",
        ),  # 91 ± 12.7062 * sqrt(2) * sqrt(3 / 2), and no accuracy is above 100
    ],
)
def test_whether_the_published_figure_lies_inside_our_spread(values, verdict):
    scores = {seed: Score(value, None, None, "folder", "arm", "float32") for seed, value in enumerate(values)}
    run = Published(published["adam_512"].config, best=91.26, best_epoch=49, last=91.0)
    assert Row("adam_512", run, as_published=scores).verdict == verdict


def test_a_run_counts_once_however_many_comparisons_hold_it(tmp_path):
    fake_reproduction(tmp_path / "a", {"adam_512": THREE})
    fake_reproduction(tmp_path / "b", {"adam_512": {**THREE, 2: (90.0, 90.0), 3: (94.0, 94.0)}})
    found = read_reproduction(tmp_path)
    scores = row_of(found, "adam_512").as_published
    assert list(scores) == [0, 1, 2, 3] and scores[2].test == 93.0 and scores[2].folder == "a"
    assert scores[3].folder == "b"
    assert any("counted once: 3 runs, 1 of them with another result" in note for note in found.notes)


def test_reduced_runs_and_other_data_match_nothing(tmp_path):
    fake_reproduction(tmp_path / "real", {"adam": {0: (90.0, 90.0)}})
    for name, change in {
        "epochs": lambda config: replace(config, num_epochs=3),
        "images": lambda config: replace(config, train_size=10_000),
    }.items():
        fake_reproduction(tmp_path / name, {"adam": {1: (50.0, 50.0)}}, change=change)
    for name, other in {
        "synthetic": {"name": "synthetic", "synthetic": True},
        "subset": {"num_train": 10_000},
        "mine": {"name": "mine"},
    }.items():
        fake_reproduction(tmp_path / name, {"adam": {1: (50.0, 50.0)}}, dataset={**CIFAR10, **other})
    found = read_reproduction(tmp_path)
    assert found.num_runs == 1 and list(row_of(found, "adam").as_published) == [0]
    assert any(note.startswith("Not counted: 5 finished runs that repeat no published run") for note in found.notes)


def test_the_run_itself_says_what_it_trained_not_the_folder(tmp_path):
    """Seed, batches of evaluation and arithmetic do not matter; what a run lacks of Lookahead's weights does not."""
    run = {"adam_512_without_lookahead": {4: (90.0, 90.0)}}
    fake_reproduction(tmp_path, run, "intended", change=lambda c: replace(c, eval_weights="fast", eval_batch_size=7))
    found = read_reproduction(tmp_path)
    assert list(row_of(found, "adam_512_without_lookahead").as_intended) == [4]
    assert not row_of(found, "adam_512_without_lookahead").as_published


def test_sgd_and_adam_over_thirty_epochs_are_both_as_intended(tmp_path):
    """`sgd_vs_adam` trains both for 30 epochs as intended; as published Adam had 31."""
    thirty = {"sgd_128": {0: (91.0, 91.0)}, "adam": {0: (92.0, 92.0)}}
    fake_reproduction(tmp_path, thirty, "intended", change=lambda config: replace(config, num_epochs=30))
    found = read_reproduction(tmp_path)
    assert found.num_runs == 2
    assert all(list(row_of(found, name).as_intended) == [0] for name in thirty)
    assert any("30 epochs" in note for note in READING)


def test_as_intended_shows_what_choosing_on_the_test_set_would_have_given(tmp_path):
    fake_reproduction(tmp_path, {"adam_512": {0: (92.0, 91.0), 1: (93.0, 92.0)}}, "intended")
    for seed, accuracies in {0: (90.0, 92.5, 91.0), 1: (90.0, 93.5, 92.0)}.items():
        rows = [
            {"epoch": epoch, "train_loss": 1.0, "train_accuracy": 60.0, "test_accuracy": accuracy}
            for epoch, accuracy in enumerate(accuracies)
        ]
        write_rows(rows_path(tmp_path, "adam_512", seed), rows)
    found = cells(read_reproduction(tmp_path), "adam_512")
    assert {header: cell for header, cell in found.items() if header.startswith("ours as intended")} == {
        "ours as intended: best epoch on the validation set (n)": "92.50 ± 0.71 (2)",
        "ours as intended: last epoch (n)": "91.50 ± 0.71 (2)",
        f"ours as intended: {AS_PUBLISHED} (n)": "93.00 ± 0.71 (2)",
    }
    assert found["published best inside our spread?"] == "not run yet"


def test_how_often_a_row_is_outside_by_chance():
    """1 - 0.95**11 = 0.4312."""
    assert any("Each of 11 rows is outside by chance alone with probability 5 %" in note for note in READING)
    assert any("one in two such tables" in note and "(probability 0.43)" in note for note in READING)


def test_older_runs_that_did_not_score_the_test_set_every_epoch_count(tmp_path):
    def old(config):
        return replace(config, test_every_epoch=False)

    fake_reproduction(tmp_path, {"adam_512": {0: (92.0, None)}}, "intended", change=old)
    assert read_reproduction(tmp_path).num_runs == 1
    assert intended(published["adam_512"].config) != old(intended(published["adam_512"].config))


def test_a_config_of_another_version_is_named_and_not_counted(tmp_path):
    fake_reproduction(tmp_path / "x", {"adam_512": THREE}, with_config=False)
    config = read_results(tmp_path / "x").config
    config["arms"]["adam_512"]["optim"]["nesterow"] = True
    write_json(config_path(tmp_path / "x"), config)
    found = read_reproduction(tmp_path)
    assert found.num_runs == 0
    assert sum("x, adam_512 seed" in note and "did you mean 'nesterov'" in note for note in found.notes) == 3


def test_a_comparison_that_did_not_finish_counts_what_did(tmp_path):
    fake_reproduction(tmp_path, {"adam_512": THREE})
    scores_path(tmp_path, "adam_512", 1).unlink()
    assert list(row_of(read_reproduction(tmp_path), "adam_512").as_published) == [0, 2]


def test_damaged_folders_are_named_and_a_root_without_a_comparison_refused(tmp_path):
    with pytest.raises(ResultsError, match="holds no comparison; give the folder of a comparison"):
        read_reproduction(tmp_path)
    fake_measurement(tmp_path / "measured")
    with pytest.raises(ResultsError, match="holds measurements and no comparison"):
        read_reproduction(tmp_path)
    fake_comparison(tmp_path / "good")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "config.json").write_text('{"name": ')
    found = read_reproduction(tmp_path)
    assert any(note.startswith("Skipped cut: ") and "cut off" in note for note in found.notes)


def test_to_json_holds_every_counted_run(tmp_path):
    fake_reproduction(tmp_path / "a", {"adam_512": THREE})
    run = read_reproduction(tmp_path).to_json()["runs"]["adam_512"]
    assert run["as_published"]["1"] == {
        "test": 92.0,
        "last": 91.8,
        "best_on_test": 91.8,
        "folder": "a",
        "arm": "adam_512",
        "made": "one GPU, float32",
    }
    assert run["spread"] == pytest.approx((87.031724, 96.968276), abs=1e-5) and run["verdict"].startswith("inside")
