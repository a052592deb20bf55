"""File names, atomic writing, and every damage to a results folder named with its file, line and remedy."""

import json
import math
import os
import shutil

import pytest

from jaxresnet.errors import ConfigError, ResultsError, StorageError
from jaxresnet.files import write_json, write_rows, write_text
from jaxresnet.results import store as results
from jaxresnet.results.store import config_path, read_results, rows_path, scores_path, slug, slugs

ARM = "Adam + Lookahead"
CONFIG = {
    "name": "adam_lookahead",
    "protocol": "intended",
    "dataset": {"name": "cifar10", "synthetic": False, "num_train": 45000, "num_val": 5000, "num_test": 10000},
    "seeds": [1, 0],
    "arms": {ARM: {"learning_rate": 0.01}, "Adam": {"learning_rate": 0.01}},
    "environment": {"jax": "0.10.2", "commit": None},
}
ROWS = [
    {"epoch": epoch, "train_loss": 1.7 - epoch / 10, "train_accuracy": 34.0 + epoch, "test_accuracy": None}
    for epoch in range(3)
]


def scores(arm: str, seed: int) -> dict:
    return {"arm": arm, "seed": seed, "selection": "val", "best_epoch": 1, "test_accuracy": 66.0, "last_epoch": 2}


@pytest.fixture
def folder(tmp_path):
    """Two arms, two seeds; Adam's seed 0 is under way and its seed 1 has not begun."""
    write_json(config_path(tmp_path), CONFIG)
    for arm, seed in ((ARM, 0), (ARM, 1), ("Adam", 0)):
        write_rows(rows_path(tmp_path, arm, seed), ROWS)
    for seed in (0, 1):
        write_json(scores_path(tmp_path, ARM, seed), scores(ARM, seed))
    return tmp_path


@pytest.mark.parametrize(
    ("arm", "expected"),
    [
        (ARM, "adam-lookahead"),
        ("Adam", "adam"),
        ("lr 0.1", "lr-0.1"),
        ("../../etc", "etc"),
        ("a/b\\c", "a-b-c"),
        ("β₁=0.9", "β1-0.9"),
    ],
)
def test_slug(arm, expected):
    assert slug(arm) == expected


@pytest.mark.parametrize("arm", ["", " + ", "...", "/"])
def test_slug_needs_a_letter_or_digit(arm):
    with pytest.raises(ConfigError, match="letter or digit"):
        slug(arm)


def test_slugs_refuses_two_arms_with_the_same_files():
    assert slugs([ARM, "Adam"]) == {ARM: "adam-lookahead", "Adam": "adam"}
    with pytest.raises(ConfigError, match="'C' and 'C\\+' would both write runs/c-seed"):
        slugs(["C", "C+"])


def test_paths(tmp_path):
    assert rows_path(tmp_path, ARM, 3) == tmp_path / "runs" / "adam-lookahead-seed3.jsonl"
    assert scores_path(tmp_path, ARM, 3) == tmp_path / "runs" / "adam-lookahead-seed3.json"
    assert config_path(str(tmp_path)) == tmp_path / "config.json"


def test_written_json_reads_back_in_the_same_order_and_bytes(tmp_path):
    path = tmp_path / "deep" / "down" / "x.json"
    write_json(path, {"b": 1, "a": [0.1, None, "ü"]})
    first = path.read_bytes()
    assert list(json.loads(first)) == ["b", "a"] and first.endswith(b"\n")
    write_json(path, json.loads(first))
    assert path.read_bytes() == first
    assert os.listdir(path.parent) == ["x.json"]


def test_rows_are_one_json_object_a_line(tmp_path):
    write_rows(tmp_path / "x.jsonl", ROWS)
    lines = (tmp_path / "x.jsonl").read_text().split("\n")
    assert [json.loads(line) for line in lines[:-1]] == ROWS and lines[-1] == ""


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_non_finite_numbers_are_refused_and_the_old_file_stays(tmp_path, value):
    path = tmp_path / "x.jsonl"
    write_rows(path, ROWS)
    with pytest.raises(ValueError, match=r"x\.jsonl: not written"):
        write_rows(path, [*ROWS, {"epoch": 3, "train_loss": value}])
    with pytest.raises(TypeError, match=r"x\.jsonl: not written"):
        write_json(path, {"loss": object()})
    assert len(path.read_text().splitlines()) == 3


def test_a_crash_while_writing_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    write_text(path, "old")

    def crash(fd):
        raise OSError("disk full")

    monkeypatch.setattr(results.os, "fsync", crash)
    with pytest.raises(StorageError, match=r"x\.txt: cannot write results there \(disk full\)\. Make room"):
        write_text(path, "new")
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["x.txt"]


def test_read_results(folder):
    read = read_results(str(folder))
    assert list(read.runs) == [ARM, "Adam"] and list(read.runs[ARM]) == [1, 0]
    assert read.runs[ARM][1].rows == ROWS
    assert read.missing == [("Adam", 1), ("Adam", 0)]
    assert [run.seed for run in read.finished(ARM)] == [1, 0] and read.finished("Adam") == []
    assert read.scores(ARM, "test_accuracy") == {1: 66.0, 0: 66.0}
    assert read.runs["Adam"][0].rows == ROWS and read.runs["Adam"][1].rows == []
    assert not read.synthetic and read.selections == ["val"] and read.published == {}


def test_folders_that_are_no_comparison(tmp_path):
    with pytest.raises(ResultsError, match="nowhere: no such folder; give the --out folder"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match="is empty, so it is not a comparison's folder"):
        read_results(tmp_path)
    (tmp_path / "holiday.jpg").write_bytes(b"")
    with pytest.raises(ResultsError, match=r"holds no config\.json"):
        read_results(tmp_path)
    for foreign in ("[]", "{}", '{"model_type": "bert"}'):
        (tmp_path / "config.json").write_text(foreign)
        with pytest.raises(ResultsError, match=r"config\.json: 'name' is missing or malformed"):
            read_results(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seeds", []),
        ("seeds", [0, 0]),
        ("seeds", [[0]]),
        ("seeds", [True]),
        ("arms", {}),
        ("arms", ["Adam"]),
        ("arms", {"Adam": 1}),
        ("arms", {"Adam": {"model": "bert"}}),
        ("dataset", {"name": "cifar10"}),
        ("dataset", {"name": "cifar10", "synthetic": "no"}),
        ("environment", None),
        ("published", {"Adam": 90.78}),
    ],
)
def test_malformed_config_entries_are_named(folder, key, value):
    write_json(config_path(folder), {**CONFIG, key: value})
    with pytest.raises(ResultsError, match=rf"config\.json: '{key}' is missing or malformed"):
        read_results(folder)


def test_a_row_cut_in_the_middle(folder):
    path = rows_path(folder, ARM, 0)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ResultsError, match=r"adam-lookahead-seed0\.jsonl, line 3: cut off.*run the comparison again"):
        read_results(folder)


def test_a_finished_run_cut_between_two_rows(folder):
    write_rows(rows_path(folder, ARM, 0), ROWS[:2])
    with pytest.raises(ResultsError, match=r"seed0\.jsonl, line 2: ends with epoch 1, but .*json goes on to 2"):
        read_results(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1, 2]", "not a row"),
        ('{"epoch": "3", "train_loss": 1.0, "train_accuracy": 50.0}', "not a row"),
        ('{"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0}', "epoch 1 after 2"),
        ('{"epoch": 3, "train_loss": NaN, "train_accuracy": 50.0}', "'train_loss' is nan, not a finite number"),
        ('{"epoch": 3, "train_loss": 1.0}', "'train_accuracy' is None"),
        ('{"epoch": 3, "train_loss": 1.0, "train_accuracy": 50.0, "test_loss": "1"}', "'test_loss' is '1'"),
        ("", "empty"),
    ],
)
def test_malformed_rows_are_named(folder, row, message):
    with open(rows_path(folder, ARM, 0), "a") as file:
        file.write(row + "\n")
    with pytest.raises(ResultsError, match=rf"adam-lookahead-seed0\.jsonl, line 4: .*{message}"):
        read_results(folder)


def test_a_row_file_that_is_not_text(folder):
    rows_path(folder, ARM, 0).write_bytes(b"\x89PNG\xff")
    with pytest.raises(ResultsError, match=r"seed0\.jsonl: not a text file"):
        read_results(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "does not belong to arm 'Adam \\+ Lookahead', seed 0"),
        ({"arm": "SGD"}, "does not belong"),
        ({"selection": "luck"}, "'selection' is 'luck'"),
        ({"test_accuracy": None}, "'test_accuracy' is None, not a finite number"),
        ({"best_epoch": True}, "'best_epoch' is True"),
    ],
)
def test_malformed_scores_are_named(folder, change, message):
    write_json(scores_path(folder, ARM, 0), {**scores(ARM, 0), **change})
    with pytest.raises(ResultsError, match=rf"adam-lookahead-seed0\.json: {message}"):
        read_results(folder)


def test_scores_of_another_run_copied_over(folder):
    shutil.copy(scores_path(folder, ARM, 1), scores_path(folder, ARM, 0))
    with pytest.raises(ResultsError, match="does not belong"):
        read_results(folder)


def test_empty_scores_file(folder):
    scores_path(folder, ARM, 0).write_text("")
    with pytest.raises(ResultsError, match=r"seed0\.json, line 1: empty"):
        read_results(folder)


def test_a_run_of_another_config_than_its_arm(folder):
    own = {**CONFIG["arms"][ARM], "optim": {"b1": 0.9}, "seed": 0}
    arms = {**CONFIG["arms"], ARM: {"learning_rate": 0.01, "optim": {"b1": 0.9}}}
    write_json(config_path(folder), {**CONFIG, "arms": arms})
    write_json(scores_path(folder, ARM, 0), {**scores(ARM, 0), "config": own})
    assert read_results(folder).scores(ARM, "test_accuracy")[0] == 66.0
    for other, difference in (
        ({**own, "optim": {"b1": 0.95}}, r"optim\.b1: 0\.9 -> 0\.95"),
        ({**own, "seed": 7}, "seed: 0 -> 7"),
    ):
        write_json(scores_path(folder, ARM, 0), {**scores(ARM, 0), "config": other})
        with pytest.raises(
            ResultsError, match=rf"adam-lookahead-seed0\.json: .*{difference}.*two comparisons are mixed"
        ):
            read_results(folder)


@pytest.mark.parametrize("key", ["config", "environment"])
def test_a_run_whose_config_or_environment_is_no_object(folder, key):
    write_json(scores_path(folder, ARM, 0), {**scores(ARM, 0), key: "GPU"})
    with pytest.raises(ResultsError, match=rf"seed0\.json: '{key}' is 'GPU', not a JSON object"):
        read_results(folder)


def test_files_of_no_arm_and_seed_are_named(folder):
    assert read_results(folder).strays == ()
    write_rows(rows_path(folder, ARM, 2), ROWS)
    write_json(scores_path(folder, "SGD", 0), scores("SGD", 0))
    (folder / "runs" / ".adam-seed0.jsonl.123.tmp").write_text("half")  # what a crash while writing leaves
    read = read_results(folder)
    assert read.strays == ("adam-lookahead-seed2.jsonl", "sgd-seed0.json")
    assert list(read.runs) == [ARM, "Adam"] and 2 not in read.runs[ARM]
