"""Which runs count as repeating a published one, and where one more run of ours would fall."""

from dataclasses import replace

import pytest
from support.fake_results import CIFAR10, fake_reproduction

from jaxresnet.recipes import Published, published
from jaxresnet.results.reproduction import PublishedRow, Score, reproduce
from jaxresnet.results.tree import read_tree

THREE = {0: (91.0, 90.8), 1: (92.0, 91.8), 2: (93.0, 92.8)}


def found(root):
    return reproduce(read_tree(root).comparisons)


def row_of(reproduction, name):
    return next(row for row in reproduction.rows if row.name == name)


def test_both_protocols_make_a_row(tmp_path):
    fake_reproduction(tmp_path / "a-published", {"adam_512": THREE})
    fake_reproduction(tmp_path / "a", {"adam_512": {0: (92.5, 92.0)}}, "intended")
    reproduction = found(tmp_path)
    assert [row.name for row in reproduction.rows] == list(published) and reproduction.num_runs == 4
    row = row_of(reproduction, "adam_512")
    assert row.as_published[1] == Score(92.0, 91.8, 91.8, "a-published", "adam_512", "one GPU, float32")
    assert list(row.as_published) == [0, 1, 2] and row.as_intended[0].test == 92.5
    saved = reproduction.to_json()["runs"]["adam_512"]
    assert saved["as_published"]["1"]["folder"] == "a-published" and saved["inside"] is True
    # Half-width of the interval: 4.302653 * sd 1 * sqrt(1 + 1/3) = 4.968; as published 91.26 lies in 92 ± 4.97.
    assert saved["spread"] == pytest.approx((87.031724, 96.968276), abs=1e-5)


@pytest.mark.parametrize(
    ("values", "spread", "inside"),
    [
        ([], None, None),
        ([91.2], None, None),
        ([91.2, 91.2], None, None),
        ([90.0, 90.1, 90.2], (89.60, 90.60), False),  # 90.1 ± 4.302653 * 0.1 * sqrt(4 / 3)
        ([90.0, 92.0], (68.99, 100.0), True),  # 91 ± 12.7062 * sqrt(2) * sqrt(3 / 2), and no accuracy is above 100
    ],
)
def test_whether_the_published_figure_lies_inside_our_spread(values, spread, inside):
    scores = {seed: Score(value, None, None, "folder", "arm", "float32") for seed, value in enumerate(values)}
    run = Published(published["adam_512"].config, best=91.26, best_epoch=49, last=91.0)
    row = PublishedRow("adam_512", run, as_published=scores)
    assert row.spread == (spread and pytest.approx(spread, abs=0.005)) and row.inside is inside


def test_a_run_counts_once_however_many_comparisons_hold_it(tmp_path):
    fake_reproduction(tmp_path / "a", {"adam_512": THREE})
    fake_reproduction(tmp_path / "b", {"adam_512": {**THREE, 2: (90.0, 90.0), 3: (94.0, 94.0)}})
    reproduction = found(tmp_path)
    scores = row_of(reproduction, "adam_512").as_published
    assert list(scores) == [0, 1, 2, 3] and scores[2].test == 93.0 and scores[2].folder == "a"
    assert scores[3].folder == "b" and reproduction.num_runs == 4


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
    reproduction = found(tmp_path)
    assert reproduction.num_runs == 1 and list(row_of(reproduction, "adam").as_published) == [0]


@pytest.mark.parametrize(
    ("run", "change"),
    [
        # Lookahead's weights do not matter where there is none, nor does how often it is tested.
        ("adam_512_without_lookahead", lambda config: replace(config, eval_weights="fast", eval_batch_size=7)),
        ("adam_512", lambda config: replace(config, test_every_epoch=False)),
        # `sgd_vs_adam` trains it for 30 epochs as intended, as SGD; as published it had 31.
        ("adam", lambda config: replace(config, num_epochs=30)),
    ],
    ids=["no-lookahead", "tested-rarely", "adam-30-epochs"],
)
def test_what_counts_as_intended(tmp_path, run, change):
    fake_reproduction(tmp_path, {run: {4: (90.0, None)}}, "intended", change=change)
    row = row_of(found(tmp_path), run)
    assert list(row.as_intended) == [4] and not row.as_published


def test_a_config_of_another_version_is_named_and_not_counted(tmp_path):
    comparisons = read_tree(fake_reproduction(tmp_path / "x", {"adam_512": THREE})).comparisons
    comparisons["x"].config["arms"]["adam_512"]["optim"]["nesterow"] = True
    reproduction = reproduce(comparisons)
    assert reproduction.num_runs == 0 and len(reproduction.unreadable) == 3
    assert (
        "x, adam_512 seed 0" in reproduction.unreadable[0] and "did you mean 'nesterov'" in reproduction.unreadable[0]
    )


def test_a_comparison_that_did_not_finish_counts_what_did(tmp_path):
    comparisons = read_tree(fake_reproduction(tmp_path / "x", {"adam_512": THREE})).comparisons
    runs = comparisons["x"].runs["adam_512"]
    runs[1] = replace(runs[1], scores=None)
    assert list(row_of(reproduce(comparisons), "adam_512").as_published) == [0, 2]
