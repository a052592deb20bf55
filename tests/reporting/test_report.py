"""A folder in, tables and pages out: what they say, what they label, and that nothing but the folder is needed."""

import json
import shutil
import sys

import numpy as np
import pytest
from support.fake_results import (
    ADAM,
    LOOKAHEAD,
    PUBLISHED,
    change_rows,
    fake_comparison,
    fake_measurement,
    fake_reproduction,
)
from test_figures import figure_of, labels
from test_page import read

from jaxresnet.__main__ import main
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_rows
from jaxresnet.reporting.report import NOT_REPRODUCED, render, render_tree
from jaxresnet.results.findings import AS_PUBLISHED, SYNTHETIC
from jaxresnet.results.store import rows_path, scores_path


def test_summary_holds_the_statistics(tmp_path):
    report = render(fake_comparison(tmp_path))
    summary = json.loads(report.summary_json.read_text())
    values = [json.loads(scores_path(tmp_path, LOOKAHEAD, seed).read_text())["test_accuracy"] for seed in range(3)]
    arm = summary["arms"][LOOKAHEAD]
    assert arm["n"] == 3 and list(arm["values"].values()) == values
    assert arm["mean"] == pytest.approx(np.mean(values)) and arm["sd"] == pytest.approx(np.std(values, ddof=1))
    assert arm["selection"] == ["best epoch on the validation set"] and arm["weights"] == ["slow"]
    (pair,) = summary["comparison"]["pairs"]
    assert pair["a"] == LOOKAHEAD and pair["test"] == "paired t-test, two-sided"
    assert pair["mean"] == pytest.approx(arm["mean"] - summary["arms"][ADAM]["mean"])
    assert pair["interval"][0] < pair["mean"] < pair["interval"][1] and pair["p_value"] < 0.05
    assert summary["complete"] is report.complete is True and summary["missing"] == []
    assert summary["environment"]["jax"] == "0.10.2" and summary["dataset"]["name"] == "cifar10"


def test_table_and_verdict(tmp_path):
    report = render(fake_comparison(tmp_path))
    assert report.verdict.startswith("Adam + Lookahead is better than Adam by ")
    summary = json.loads(report.summary_json.read_text())
    arm = summary["arms"][ADAM]
    markdown = report.summary_md.read_text()
    for text in (report.table, markdown):
        assert f"{arm['mean']:.2f} ± {arm['sd']:.2f}" in text
        assert ", ".join(f"{value:.2f}" for value in arm["values"].values()) in text
        assert ", ".join(map(str, arm["epochs"].values())) in text
        assert "Evaluated weights: Adam + Lookahead slow, Adam fast." in text
        assert SYNTHETIC not in text and "as published" not in text  # neither applies here
    assert report.verdict in markdown and "![adam_lookahead: intended protocol, cifar10](figure.png)" in markdown
    assert "- command: `python experiments/x.py`" in markdown and "commit" not in markdown


def test_rendering_again_gives_the_same_bytes(tmp_path):
    first = render(fake_comparison(tmp_path))
    paths = (first.summary_json, first.summary_md, first.figure, first.html)
    before = [path.read_bytes() for path in paths]
    assert render(tmp_path) == first
    assert [path.read_bytes() for path in paths] == before


def test_selection_on_the_test_set_is_labelled_wherever_it_shows(tmp_path):
    report = render(fake_comparison(tmp_path, selection="test", published=PUBLISHED))
    wrapped = " ".join(report.table.split())
    assert (
        "best epoch on the" in wrapped
        and f"Published, Adam + Lookahead, Adam: {AS_PUBLISHED}, its notebook." in wrapped
    )
    assert report.verdict.endswith(f"[{AS_PUBLISHED}]")
    header = next(line for line in report.summary_md.read_text().splitlines() if line.startswith("| arm"))
    assert f"test accuracy (%), {AS_PUBLISHED}" in header and "last epoch, test (%)" in header
    caption = figure_of(tmp_path).legends[0].get_title().get_text()
    assert caption.endswith(f"\ntest scores and published figures: {AS_PUBLISHED}")


def test_test_rows_beside_a_validation_choice_get_their_own_labelled_column(tmp_path):
    fake_comparison(tmp_path, arms=(ADAM,), seeds=(0,))
    path = rows_path(tmp_path, ADAM, 0)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row, test_accuracy in zip(rows, (50.0, 70.25, 60.0, 70.25, 65.0, 64.5), strict=True):
        row["test_accuracy"] = test_accuracy
    write_rows(path, rows)
    report = render(tmp_path)
    header, _, row = (line for line in report.summary_md.read_text().splitlines() if line.startswith("|"))
    cells = dict(zip(header.split(" | "), row.split(" | "), strict=True))
    assert cells[f"{AS_PUBLISHED} (%) |"] == "70.25 |" and cells["last epoch, test (%)"] == "64.50"
    arm = json.loads(report.summary_json.read_text())["arms"][ADAM]
    assert arm[AS_PUBLISHED] == {"0": {"epoch": 1, "test_accuracy": 70.25}}  # the earlier of two equals


def test_synthetic_data_is_labelled_wherever_it_shows(tmp_path):
    report = render(fake_comparison(tmp_path, synthetic=True))
    assert SYNTHETIC in report.table.splitlines()[0] and SYNTHETIC in report.verdict
    markdown = report.summary_md.read_text()
    assert SYNTHETIC in markdown.splitlines()[0]
    assert f"- Data: name synthetic, num_test 10000, {SYNTHETIC}." in markdown
    assert json.loads(report.summary_json.read_text())["dataset"]["synthetic"] is True
    assert SYNTHETIC in figure_of(tmp_path).get_suptitle()


def test_one_seed_and_one_arm(tmp_path):
    report = render(fake_comparison(tmp_path / "seed", seeds=(4,)))
    assert report.verdict.startswith("one seed: no interval") and "±" not in report.table
    assert "one seed" in figure_of(tmp_path / "seed").legends[0].get_title().get_text()
    report = render(fake_comparison(tmp_path / "arm", arms=(ADAM,)))
    assert report.verdict == "one arm: nothing to compare" and "±" in report.table


def test_more_than_two_arms_are_compared_in_pairs(tmp_path):
    report = render(fake_comparison(tmp_path, arms=("A", "B", "C")))
    assert len(report.verdict.splitlines()) == 3
    assert report.verdict.count("after Holm's correction for 3 comparisons") == 3
    assert json.loads(report.summary_json.read_text())["comparison"]["correction"] == "Holm"


def test_an_incomplete_comparison_renders_what_there_is(tmp_path):
    report = render(fake_comparison(tmp_path, unfinished=[(ADAM, 1)], not_begun=[(ADAM, 2)]))
    assert not report.complete
    summary = json.loads(report.summary_json.read_text())
    assert summary["missing"] == [{"arm": ADAM, "seed": 1}, {"arm": ADAM, "seed": 2}]
    assert "(incomplete: 4 of 6 runs)" in report.table.splitlines()[0]
    assert "missing: Adam seed 1, Adam seed 2. Run the same command again" in report.table
    assert ", -, -" in report.table and report.verdict.startswith("one seed: no interval")
    assert "left out: 1, 2" in report.verdict


def test_a_comparison_that_has_only_begun(tmp_path):
    nothing = [(arm, seed) for arm in (LOOKAHEAD, ADAM) for seed in range(3)]
    report = render(fake_comparison(tmp_path / "nothing", not_begun=nothing))
    assert "nothing to compare yet" in report.verdict
    axes = figure_of(tmp_path / "nothing").axes[0]
    assert [text.get_text() for text in axes.texts] == ["no finished epoch yet"] and not axes.get_lines()
    render(fake_comparison(tmp_path / "begun", unfinished=nothing[:1], not_begun=nothing[1:]))
    figure = figure_of(tmp_path / "begun")
    assert "Adam + Lookahead (no run finished)" in labels(figure)
    assert [len(line.get_xdata()) for line in figure.axes[0].get_lines()] == [3, 3]


def test_a_damaged_folder_is_refused_and_its_summary_left_alone(tmp_path):
    report = render(fake_comparison(tmp_path))
    before = report.summary_json.read_bytes()
    path = rows_path(tmp_path, ADAM, 1)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ResultsError, match=r"adam-seed1\.jsonl, line 6"):
        render(tmp_path)
    assert report.summary_json.read_bytes() == before


def results_tree(root):
    """Two protocols of a published comparison, one comparison on other data, a measurement, and two to skip."""
    fake_reproduction(root / "batch_size-published", {"adam_512": {0: (91.0, 91.0), 1: (91.5, 91.0)}})
    fake_reproduction(root / "batch_size", {"adam_512": {0: (92.0, 92.0)}}, "intended")
    fake_comparison(root / "demo", synthetic=True)
    fake_measurement(root / "models")
    (root / "photos").mkdir()
    fake_comparison(root / "damaged")
    path = rows_path(root / "damaged", ADAM, 1)
    path.write_text(path.read_text()[:-30])
    return root


def test_a_tree_of_comparisons_makes_one_page(tmp_path):
    tree = render_tree(results_tree(tmp_path))
    assert tree.html == tmp_path / "report.html"
    assert list(tree.reports) == ["batch_size", "batch_size-published", "demo"] and tree.measurements == ["models"]
    for name, report in tree.reports.items():  # each as `render` leaves it
        assert report == render(tmp_path / name) and report.html.is_file()
    page = read(tree.html)
    names = ["batch_size", "batch_size-published", "demo", "models"]
    assert page.ids == [f"s-{name}" for name in names] and page.links == [f"#s-{name}" for name in names]
    shown = " ".join(page.shown)
    assert "Skipped photos: is empty" in shown and "adam-seed1.jsonl, line 6: cut off" in shown
    assert "4,903,242" in shown and '"params": 4903242' in shown
    assert (tmp_path / "models" / "model_parameters.png").is_file()  # drawn from measurement.json, which was alone
    assert "inside (85.75 to 96.75)" in shown  # 91.25 ± 12.7062 * 0.353553 * sqrt(3 / 2)
    assert len(page.loads) == 5  # the reproduction, three comparisons, the measurement's picture
    assert not (tmp_path / "damaged" / "report.html").exists() and set(tree.skipped) == {"damaged", "photos"}


def test_a_damaged_evaluation_is_named_and_the_others_are_shown(tmp_path):
    (results_tree(tmp_path) / "demo" / "evaluation.json").write_text('{"title": "x"')
    tree = render_tree(tmp_path)
    assert set(tree.skipped) == {"damaged", "photos", "demo"} and "demo" not in tree.reports
    assert "evaluation.json, line 1: cut off" in " ".join(read(tree.html).shown)
    with pytest.raises(
        ResultsError, match=r"evaluation\.json, line 1: cut off .* delete it and run the same experiment"
    ):
        render(tmp_path / "demo")


def test_a_reproduction_of_earlier_is_removed_when_nothing_is_reproduced_any_more(tmp_path):
    render_tree(results_tree(tmp_path))
    assert len(list(tmp_path.glob("reproduction.*"))) == 3
    for name in ("batch_size", "batch_size-published"):
        shutil.rmtree(tmp_path / name)
    assert render_tree(tmp_path).table == NOT_REPRODUCED and not list(tmp_path.glob("reproduction.*"))


def test_the_reproduction_lies_in_files_beside_the_page(tmp_path):
    tree = render_tree(results_tree(tmp_path))
    table = json.loads((tmp_path / "reproduction.json").read_text())["runs"]
    assert table["adam_512"]["as_intended"]["0"]["folder"] == "batch_size" and len(table) == 11
    markdown = (tmp_path / "reproduction.md").read_text()
    assert f"ours as published: {AS_PUBLISHED} (n)" in markdown and "91.25 ± 0.35 (2)" in markdown
    assert "91.25 ± 0.35 (2)" in tree.table and "what it trains, epochs" in tree.table.splitlines()[-1]
    assert (tmp_path / "reproduction.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.read_bytes() for path in tmp_path.glob("re*")}
    assert render_tree(tmp_path) == tree and {path: path.read_bytes() for path in before} == before and len(before) == 4


def test_a_tree_that_repeats_no_published_run_says_so(tmp_path):
    fake_comparison(tmp_path / "demo", synthetic=True)
    tree = render_tree(tmp_path)
    assert tree.table == NOT_REPRODUCED and NOT_REPRODUCED in tree.html.read_text()
    assert "Not counted: 6 finished runs" in tree.html.read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["demo", "report.html"]


def test_a_tree_is_not_a_comparison(tmp_path):
    with pytest.raises(ResultsError, match="holds no comparison; give"):
        render_tree(tmp_path)
    with pytest.raises(ResultsError, match="is the folder of one comparison or measurement; give the"):
        render_tree(fake_comparison(tmp_path / "comparison"))
    with pytest.raises(ResultsError, match="is the folder of one comparison or measurement; give the"):
        render_tree(fake_measurement(tmp_path / "measurement"))


def run_main(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["jaxresnet", *map(str, arguments)])
    try:
        main()
        status = 0
    except SystemExit as exit:
        status = exit.code
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_the_command_takes_a_comparison_or_a_folder_of_them(tmp_path, monkeypatch, capsys):
    status, out, err = run_main(monkeypatch, capsys, "report", results_tree(tmp_path))
    assert (status, err) == (0, "")
    assert "Adam + Lookahead is better than Adam by" in out and "91.25 ± 0.35 (2)" in out
    assert f"page    {tmp_path / 'report.html'}" in out and "skipped photos: is empty" in out
    status, out, err = run_main(monkeypatch, capsys, "report", tmp_path / "demo")
    assert (status, err) == (0, "") and out.startswith("adam_lookahead: intended protocol, synthetic data")
    assert out.endswith(f"page    {tmp_path / 'demo' / 'report.html'}\n")
    status, out, err = run_main(monkeypatch, capsys, "report", tmp_path / "models")
    assert (status, err) == (0, "") and "4,903,242" in out
    assert out.endswith(f"page     {tmp_path / 'models' / 'report.html'}\n")
    assert "configuration 5" in " ".join(read(tmp_path / "models" / "report.html").shown)
    (tmp_path / "models" / "measurement.json").write_text("{}")
    for folder in (tmp_path / "models", tmp_path / "damaged", tmp_path / "photos", tmp_path / "nowhere"):
        status, out, err = run_main(monkeypatch, capsys, "report", folder)
        assert (status, out) == (2, "") and err.startswith(f"error: {folder}") and "Traceback" not in err


def test_many_pairs_are_short_on_the_terminal_and_whole_in_the_files(tmp_path):
    report = render(fake_comparison(tmp_path, arms=("A", "B", "C", "D"), seeds=(0,)))
    assert len(report.verdict.splitlines()) == 2
    markdown = report.summary_md.read_text()
    assert markdown.count("one seed: no interval") == 6 and "## Each pair" in markdown
    assert read(report.html).shown.count("Each of the 6 pairs") == 1


def test_the_table_fits_a_terminal(tmp_path):
    published = {ADAM: {"best": 90.78, "last": 90.78, "source": "x"}}
    fake_comparison(tmp_path, seeds=range(3), published=published)
    for arm in (ADAM, LOOKAHEAD):
        for seed in range(3):
            change_rows(tmp_path, arm, seed, lambda row: row.update(test_accuracy=60.0))
    table = render(tmp_path).table.split("\n\n")[1]
    assert max(map(len, table.splitlines())) <= 120 and "too wide" not in table
    assert "per seed (%)" in table and "90.78 / 90.78" in table
