"""A folder in, tables and pages out: what is written, and that nothing but the folder is needed."""

import json
import shutil
import sys

import pytest
from support.fake_experiments import exit_code
from support.fake_results import ADAM, fake_comparison, fake_evaluation, fake_measurement, fake_reproduction
from test_page import read

from jaxresnet.__main__ import main
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.reporting.comparison import describe_comparison, make_summary
from jaxresnet.reporting.report import render, render_tree
from jaxresnet.reporting.reproduction import NOT_REPRODUCED
from jaxresnet.results.findings import SYNTHETIC, findings
from jaxresnet.results.schemas import evaluation_path
from jaxresnet.results.store import read_results


def test_everything_of_a_comparison_is_written_and_again_the_same(tmp_path):
    report = render(fake_comparison(tmp_path, synthetic=True))
    results = read_results(tmp_path)
    found = findings(results)
    assert json.loads(report.summary_json.read_text()) == json.loads(json.dumps(found.summary)) and report.complete
    words = describe_comparison(results, found)
    assert report.summary_md.read_text() == make_summary(results, words) and report.figure.is_file()
    assert report.verdict == f"{words.verdicts[0]}" and report.verdict.endswith(f"[{SYNTHETIC}]")
    title, table, notes = report.table.split("\n\n")
    assert title == words.title == f"adam_lookahead: intended protocol, {SYNTHETIC}"
    assert all(" ".join(cell.split()) in table for row in words.table[1:] for cell in row)
    assert notes.splitlines() == words.notes
    assert f"{title}: loss and accuracy over the epochs" in read(report.html).shown
    paths = (report.summary_json, report.summary_md, report.figure, report.html)
    before = [path.read_bytes() for path in paths]
    assert render(tmp_path) == report and [path.read_bytes() for path in paths] == before


def test_a_tree_of_comparisons_makes_one_page(tmp_path):
    fake_reproduction(tmp_path / "batch_size-published", {"adam_512": {0: (91.0, 91.0), 1: (91.5, 91.0)}})
    fake_reproduction(tmp_path / "batch_size", {"adam_512": {0: (92.0, 92.0)}}, "intended")
    fake_comparison(tmp_path / "demo", synthetic=True)
    fake_measurement(tmp_path / "models")
    fake_comparison(tmp_path / "damaged", protocol=None)
    (tmp_path / "photos").mkdir()

    tree = render_tree(tmp_path)
    names = ["batch_size", "batch_size-published", "demo", "models"]
    assert tree.html == tmp_path / "report.html" and list(tree.reports) == names[:3]
    assert all(report.html.is_file() for report in tree.reports.values())
    page = read(tree.html)
    assert page.ids == [f"s-{name}" for name in names] and page.links == [f"#s-{name}" for name in names]
    shown = " ".join(page.shown)
    assert "Skipped photos: is empty" in shown and "'protocol' is missing or malformed" in shown
    assert "4,903,242" in shown and '"params": 4903242' in shown
    assert (tmp_path / "models" / "model_parameters.png").is_file()  # drawn from measurement.json, which was alone
    assert "inside (85.75 to 96.75)" in shown  # 91.25 ± 12.7062 * 0.353553 * sqrt(3 / 2)
    assert "91.25 ± 0.35 /" in tree.table and max(map(len, tree.table.splitlines())) <= 120
    assert len(page.loads) == 5  # the reproduction, three comparisons, the measurement's picture
    assert not (tmp_path / "damaged" / "report.html").exists() and set(tree.skipped) == {"damaged", "photos"}
    for name in ("batch_size", "batch_size-published"):
        shutil.rmtree(tmp_path / name)
    tree = render_tree(tmp_path)
    assert tree.table == NOT_REPRODUCED in read(tree.html).shown and not list(tmp_path.glob("reproduction.*"))


def test_an_evaluation_is_drawn_with_its_comparison_and_named_where_it_is_damaged(tmp_path, capsys):
    fake_comparison(tmp_path / "demo", not_begun=[(ADAM, 2)])
    fake_comparison(tmp_path / "other")
    path = evaluation_path(fake_evaluation(tmp_path / "demo"))
    tree = render_tree(tmp_path)
    page = read(tree.reports["demo"].html)
    assert "Confusion matrix" in page.shown and "confusion.png" in page.shown and len(page.loads) == 2
    assert "Incomplete: some runs have not finished." in page.shown and not tree.reports["demo"].complete
    path.write_text('{"title": "x"')
    tree = render_tree(tmp_path)
    assert not tree.skipped and "evaluation.json, line 1: cut off" in capsys.readouterr().err
    write_json(path, {"class_names": ["cat"], "runs": {"0": {}}})
    assert render(tmp_path / "demo").table.startswith("adam_lookahead"), "it costs the evaluation alone"
    assert "evaluation.json: damaged (KeyError('" in capsys.readouterr().err


def test_a_tree_is_not_a_comparison(tmp_path):
    for folder in (fake_comparison(tmp_path / "comparison"), fake_measurement(tmp_path / "measurement")):
        with pytest.raises(ResultsError, match="is the folder of one comparison or measurement; give the"):
            render_tree(folder)


def test_the_command_takes_a_comparison_or_a_measurement_and_names_what_is_wrong(tmp_path, monkeypatch, capsys):
    def report(folder):
        monkeypatch.setattr(sys, "argv", ["jaxresnet", "report", str(folder)])
        return exit_code(main), *capsys.readouterr()

    status, out, err = report(fake_comparison(tmp_path / "demo", synthetic=True))
    assert (status, err) == (0, "") and out.startswith("adam_lookahead: intended protocol, synthetic data")
    assert out.endswith(f"page    {tmp_path / 'demo' / 'report.html'}\n")
    status, out, err = report(fake_measurement(tmp_path / "models"))
    assert (status, err) == (0, "") and out.endswith(f"page     {tmp_path / 'models' / 'report.html'}\n")
    status, out, err = report(fake_comparison(tmp_path / "damaged", protocol=None))
    assert (status, out) == (2, "") and err.startswith(f"error: {tmp_path}") and "Traceback" not in err
