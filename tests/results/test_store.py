"""Runs and comparisons on disk: what names a run, and every damage named with its file, line and remedy."""

import json
from dataclasses import fields, make_dataclass, replace

import pytest
from support.fake_results import ADAM, LOOKAHEAD, fake_comparison, run_folder

from jaxresnet.config import ModelConfig, OptimConfig, TrainConfig, to_dict
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.results import store
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.store import CONFIG, FAILURE, HISTORY, SCORES, begin_run, read_results, read_run, run_id

DATA = {"name": "cifar10", "synthetic": False, "num_train": 50000, "num_test": 10000, "crc32": 1}
CONFIG_OF_A_RUN = TrainConfig(ModelConfig(precision="float32"), num_epochs=10)


def test_the_id_is_of_the_config_and_the_data_alone():
    """Fixed: another id would train every run on every disk once more."""
    assert run_id(CONFIG_OF_A_RUN, DATA) == "7254e4c4e423"
    assert run_id(CONFIG_OF_A_RUN, dict(reversed(DATA.items()))) == "7254e4c4e423"
    for other in ({"seed": 1}, {"optim": OptimConfig(b1=0.95)}, {"model": ModelConfig(precision="bfloat16")}):
        assert run_id(replace(CONFIG_OF_A_RUN, **other), DATA) != "7254e4c4e423"
    assert run_id(CONFIG_OF_A_RUN, {**DATA, "crc32": 2}) != "7254e4c4e423"


def test_a_field_that_is_added_at_its_default_changes_no_id(monkeypatch):
    added = make_dataclass("TrainConfig", [("added", int, 7)], bases=(TrainConfig,), frozen=True)
    later = added(**{f.name: getattr(CONFIG_OF_A_RUN, f.name) for f in fields(TrainConfig)})
    monkeypatch.setattr(store, "TrainConfig", added)
    assert to_dict(later)["added"] == 7
    assert run_id(later, DATA) == run_id(CONFIG_OF_A_RUN, DATA) != run_id(replace(later, added=8), DATA)


def test_the_folder_of_another_run_is_refused_by_its_fields(tmp_path):
    begin_run(tmp_path, CONFIG_OF_A_RUN, DATA)
    for config, data, which in (
        (replace(CONFIG_OF_A_RUN, optim=OptimConfig(b1=0.95)), DATA, r"config\.optim\.b1: 0\.9 -> 0\.95"),
        (replace(CONFIG_OF_A_RUN, seed=7), DATA, r"config\.seed: 0 -> 7"),
        (CONFIG_OF_A_RUN, {**DATA, "crc32": 2}, r"data\.crc32: 1 -> 2"),
    ):
        message = rf"config\.json: is another run than is asked for \({which}\); use another output folder"
        with pytest.raises(ResultsError, match=message):
            begin_run(tmp_path, config, data)
        with pytest.raises(ResultsError, match=message):
            read_run(tmp_path, ADAM, config.seed, to_dict(config), data)


@pytest.fixture
def folder(tmp_path):
    """Two arms, two seeds of three epochs; Adam's seed 1 is under way and its seed 0 has not begun."""
    folder = tmp_path / "out" / "adam_lookahead"
    return fake_comparison(folder, seeds=(1, 0), num_epochs=3, unfinished=[(ADAM, 1)], not_begun=[(ADAM, 0)])


def test_a_comparison_is_read_with_its_runs_in_order(folder, monkeypatch):
    read = read_results(str(folder))
    assert list(read.runs) == [LOOKAHEAD, ADAM] and list(read.runs[LOOKAHEAD]) == [1, 0]
    run = read.runs[LOOKAHEAD][1]
    assert (run.arm, run.seed, run.folder) == (LOOKAHEAD, 1, run_folder(folder, LOOKAHEAD, 1))
    assert run.id == run.folder.name and run.folder.parent == folder.parent / "runs"
    assert [row["epoch"] for row in run.rows] == [0, 1, 2] and run.scores["last_epoch"] == 2
    assert read.missing == [(ADAM, 1), (ADAM, 0)] and read.failures == {}
    assert [run.seed for run in read.finished(LOOKAHEAD)] == [1, 0] and read.finished(ADAM) == []
    assert list(read.scores(LOOKAHEAD, "last_epoch").items()) == [(1, 2), (0, 2)]
    assert len(read.runs[ADAM][1].rows) == 1 and read.runs[ADAM][0].rows == []
    assert not read.synthetic and read.selections == ["val"] and read.published == {}
    monkeypatch.chdir(folder)
    assert read_results(".").runs == read.runs


def test_folders_that_are_no_comparison(tmp_path):
    with pytest.raises(ResultsError, match="nowhere: no such folder; give the folder of a comparison"):
        read_results(tmp_path / "nowhere")
    with pytest.raises(ResultsError, match=r"holds no comparison\.json, so it is not the folder of a comparison"):
        read_results(tmp_path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("seeds", []),
        ("seeds", [0, 0]),
        ("arms", {}),
        ("arms", {"Adam": {"model": "bert"}}),
        ("dataset", {"name": "cifar10", "synthetic": "no"}),
        ("environment", None),
        ("published", {"Adam": 90.78}),
        ("runs", {LOOKAHEAD: {"0": "0123456789ab"}, ADAM: {"0": "0123456789ab"}}),
        ("runs", {arm: {"0": "../../../etc", "1": "0123456789ab"} for arm in (LOOKAHEAD, ADAM)}),
    ],
    ids=str,
)
def test_malformed_entries_of_a_comparison_are_named(folder, key, value):
    config = json.loads(comparison_path(folder).read_text())
    write_json(comparison_path(folder), {**config, key: value})
    with pytest.raises(ResultsError, match=rf"comparison\.json: '{key}' is missing or malformed"):
        read_results(folder)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("[1, 2]", "not a row"),
        ('{"epoch": 1, "train_loss": 1.0, "train_accuracy": 50.0}', "epoch 1 after 2"),
        ('{"epoch": 3, "train_loss": NaN, "train_accuracy": 50.0}', "NaN is not a finite number"),
        ('{"epoch": 3, "train_loss": 1.0}', "'train_accuracy' is None"),
        ('{"epoch": 3, "train_loss": 1.0, "train_accuracy": 101.0}', "'train_accuracy' is 101.0, not a number of 0 to"),
        ('{"epoch": 3, "train_loss": 1.0, "train_accuracy": 50.0, "test_loss": "1"}', "'test_loss' is '1'"),
        ('{"epoch": 3, "train_lo', "cut off"),
    ],
)
def test_malformed_rows_are_named(folder, row, message):
    with open(run_folder(folder, LOOKAHEAD, 0) / HISTORY, "a") as file:
        file.write(row + "\n")
    with pytest.raises(ResultsError, match=rf"history\.jsonl, line 4: .*{message}.*run the comparison again"):
        read_results(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 5}, "'seed' is missing or malformed, so this is not the scores of a run with seed 0"),
        ({"selection": "luck"}, "'selection' is missing or malformed"),
        ({"skipped_steps": -1}, "'skipped_steps' is missing or malformed"),
        ({"test_accuracy": None}, "'test_accuracy' is None, not a number of 0 to 100"),
        ({"test_loss": -1}, "'test_loss' is -1, not a number of 0 to"),
    ],
    ids=str,
)
def test_malformed_scores_are_named(folder, change, message):
    path = run_folder(folder, LOOKAHEAD, 0) / SCORES
    write_json(path, {**json.loads(path.read_text()), **change})
    with pytest.raises(ResultsError, match=rf"scores\.json: {message}.*; restore the file from a copy"):
        read_results(folder)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("history.jsonl", None, r"history\.jsonl: is cut off: epoch 2 is missing"),
        ("scores.json", b"", r"scores\.json, line 1: empty"),
        ("config.json", b'{"config": {}}', r"config\.json: 'data' is missing or malformed"),
    ],
)
def test_other_damage_to_a_run_is_named(folder, name, damage, message):
    path = run_folder(folder, LOOKAHEAD, 0) / name
    path.write_bytes(damage if damage is not None else b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    with pytest.raises(ResultsError, match=message):
        read_results(folder)


def test_a_comparison_away_from_its_runs_is_refused(folder):
    """Else it would be drawn as one that nothing was trained for."""
    (run_folder(folder, LOOKAHEAD, 0) / CONFIG).unlink()
    with pytest.raises(ResultsError, match=r"config\.json: cannot be read"):
        read_results(folder)
    (folder.parent / "runs").rename(folder.parent / "away")
    with pytest.raises(ResultsError, match=r"runs: no such folder.*move the folder around both"):
        read_results(folder)


def test_a_failure_counts_until_the_run_is_finished_and_a_damaged_one_is_named(folder):
    for arm in (ADAM, LOOKAHEAD):
        write_json(run_folder(folder, arm, 1) / FAILURE, {"error": "no memory"})
    assert read_results(folder).failures == {(ADAM, 1): "no memory"}
    write_json(run_folder(folder, ADAM, 1) / FAILURE, {"arm": "Adam"})
    with pytest.raises(ResultsError, match=r"failed\.json.*'error' is missing.*delete it and run the comparison again"):
        read_results(folder)
