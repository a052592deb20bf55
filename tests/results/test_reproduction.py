"""Which runs count as repeating a published one."""

from dataclasses import replace

from support.fake_results import CIFAR10, fake_reproduction

from jaxresnet.results.reproduction import reproduce
from jaxresnet.results.store import read_results
from jaxresnet.results.tree import read_tree

THREE = {0: (91.0, 90.8), 1: (92.0, 91.8), 2: (93.0, 92.8)}


def found(root):
    return reproduce(read_tree(root).comparisons)


def row_of(reproduction, name):
    return next(row for row in reproduction.rows if row.name == name)


def test_a_run_counts_once_however_many_comparisons_hold_it(tmp_path):
    fake_reproduction(tmp_path / "a", {"adam_512": THREE})
    fake_reproduction(tmp_path / "b", {"adam_512": {**THREE, 2: (90.0, 90.0), 3: (94.0, 94.0)}})
    reproduction = found(tmp_path)
    scores = row_of(reproduction, "adam_512").as_published
    assert list(scores) == [0, 1, 2, 3] and scores[2].test == 93.0 and scores[2].folder == "a"
    assert scores[3].folder == "b" and reproduction.num_runs == 4


def test_reduced_runs_and_other_data_match_nothing(tmp_path):
    fake_reproduction(tmp_path / "real", {"adam": {0: (90.0, 90.0)}})
    for name, change in {"epochs": {"num_epochs": 3}, "images": {"train_size": 10_000}}.items():
        fake_reproduction(tmp_path / name, {"adam": {1: (50.0, 50.0)}}, change=change)
    for name, other in {"synthetic": {"synthetic": True}, "subset": {"num_train": 10_000}}.items():
        fake_reproduction(tmp_path / name, {"adam": {1: (50.0, 50.0)}}, dataset={**CIFAR10, **other})
    reproduction = found(tmp_path)
    assert reproduction.num_runs == 1 and list(row_of(reproduction, "adam").as_published) == [0]


def test_what_counts_as_intended(tmp_path):
    for name, run, change in (
        # Lookahead's weights do not matter where there is none, nor does how often it is tested.
        ("a", "adam_512_without_lookahead", {"eval_weights": "fast", "eval_batch_size": 7}),
        ("b", "adam_512", {"test_every_epoch": False}),
        # `sgd_vs_adam` trains it for 30 epochs as intended, as SGD; as published it had 31.
        ("c", "adam", {"num_epochs": 30}),
    ):
        fake_reproduction(tmp_path / name, {run: {4: (90.0, None)}}, "intended", change=change)
        row = row_of(found(tmp_path), run)
        assert list(row.as_intended) == [4] and not row.as_published


def test_what_has_not_finished_and_a_config_of_another_version_do_not_count(tmp_path):
    comparisons = {"x": read_results(fake_reproduction(tmp_path / "x", {"adam_512": THREE}))}
    runs = comparisons["x"].runs["adam_512"]
    runs[1] = replace(runs[1], scores=None)
    assert list(row_of(reproduce(comparisons), "adam_512").as_published) == [0, 2]
    comparisons["x"].config["arms"]["adam_512"]["optim"]["nesterow"] = True
    reproduction = reproduce(comparisons)
    assert reproduction.num_runs == 0 and len(reproduction.unreadable) == 2
    assert all(part in reproduction.unreadable[0] for part in ("x, adam_512 seed 0", "did you mean 'nesterov'"))
