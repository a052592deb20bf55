"""A folder around comparisons: what is found, what is skipped and named, and what is no results folder at all."""

import pytest
from support.fake_results import ADAM, fake_comparison, fake_measurement, run_folder

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.tree import read_tree


def test_one_level_down(tmp_path):
    fake_comparison(tmp_path / "b")
    fake_comparison(tmp_path / "a" / "deeper")
    fake_comparison(tmp_path / "cut")
    path = run_folder(tmp_path / "cut", ADAM, 1) / "history.jsonl"
    path.write_text(path.read_text()[:-30])
    write_json(comparison_path(tmp_path / "bert"), {"model_type": "bert"})
    fake_measurement(tmp_path / "measured")
    write_json(tmp_path / "mine" / "measurement.json", {"parameters": 4903242})
    fake_comparison(tmp_path / "both")
    fake_measurement(tmp_path / "both")
    for name in ("empty", ".git", "__pycache__"):
        (tmp_path / name).mkdir()
    (tmp_path / "train_step-cpu.json").write_text("{}")

    tree = read_tree(tmp_path)
    assert list(tree.comparisons) == ["b", "both"] and list(tree.measurements) == ["measured"]
    assert list(tree.skipped) == ["a", "bert", "cut", "empty", "mine"], "and not the store of the runs"
    assert tree.skipped["a"] == "holds no comparison.json" and tree.skipped["empty"] == "is empty"
    assert f"{path}, line 6: cut off" in tree.skipped["cut"]
    assert "'name' is missing or malformed" in tree.skipped["bert"]
    assert "so this is not a measurement of networks; restore it" in tree.skipped["mine"]


def test_folders_with_nothing_to_show(tmp_path):
    with pytest.raises(ResultsError, match="holds no comparison; give the folder"):
        read_tree(tmp_path)
    (tmp_path / "photos" / "of trees").mkdir(parents=True)
    with pytest.raises(ResultsError, match=r"that can be read \(photos: holds no comparison\.json\); give"):
        read_tree(tmp_path)
