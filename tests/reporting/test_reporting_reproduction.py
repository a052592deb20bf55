"""The published runs beside ours: the table, how to read it, and the figure, in which nothing lies off the page."""

import json

import pytest
from support.fake_results import fake_reproduction

from jaxresnet.recipes import published
from jaxresnet.reporting.reproduction import (
    LIMIT,
    NOT_REPRODUCED,
    draw_reproduction,
    make_notes,
    make_offsets,
    make_table,
    make_verdict,
)
from jaxresnet.results.findings import AS_PUBLISHED
from jaxresnet.results.reproduction import PublishedRow, Score, reproduce
from jaxresnet.results.tree import read_tree

THREE = {0: (91.0, 90.8), 1: (92.0, 91.8), 2: (93.0, 92.8)}


def found_in(root):
    return reproduce(read_tree(root).comparisons)


@pytest.fixture
def found(tmp_path):
    runs = {"adam_512": {0: (91.0, 91.0), 1: (91.5, 91.0)}, "adam_256_lr_6": {0: (48.44, 48.0)}}
    fake_reproduction(tmp_path / "a-published", runs)
    fake_reproduction(tmp_path / "a", {"adam_512": {0: (92.26, 92.0), 1: (10.0, 10.0)}}, "intended")
    return found_in(tmp_path)


def test_the_table_has_a_row_a_published_run(tmp_path):
    fake_reproduction(tmp_path / "a-published", {"adam_512": THREE})
    intended = fake_reproduction(tmp_path / "a", {"adam_512": {0: (92.5, 92.0), 1: (93.5, 93.0)}}, "intended")
    comparisons = read_tree(tmp_path).comparisons
    for run in comparisons[intended.name].runs["adam_512"].values():
        run.rows.insert(0, {**run.rows[0], "test_accuracy": run.rows[0]["test_accuracy"] + 1})
    found = reproduce(comparisons)
    header, *rows = make_table(found)
    assert [row[0] for row in rows] == list(published)
    assert dict(zip(header, rows[list(published).index("adam_512")], strict=True)) == {
        "published run": "adam_512",
        "what it trains": "Adam + Lookahead, cosine, lr 0.01, batch 512, 51 epochs",
        "published best / last": "91.26 / 91.00",
        f"ours as published: {AS_PUBLISHED} / last (n)": "92.00 ± 1.00 / 91.80 ± 1.00 (3)",
        "ours as intended: best epoch on the validation set / last / best on test (n)": (
            "93.00 ± 0.71 / 92.50 ± 0.71 / 93.50 ± 0.71 (2)"
        ),
        # 92 ± t(0.975, 2 degrees of freedom) = 4.302653, times sd 1, times sqrt(1 + 1/3).
        "published best inside our spread?": "inside (87.03 to 96.97)",
    }
    assert rows[list(published).index("sgd_128")][3:] == ["", "", "not run yet"]
    notes = make_notes(found)
    assert "Counted: 5 finished runs on CIFAR-10, made on one GPU, float32." in notes
    # 1 - 0.95**11 = 0.4312
    assert any("each of the 11 rows is outside with probability 5 %, and at least one row" in note for note in notes)
    assert any("with probability 0.43." in note for note in notes)


def test_a_verdict_says_inside_or_outside_or_why_not():
    for values, verdict in (
        ([], "not run yet"),
        ([91.2], "one run: cannot tell"),
        ([91.2, 91.2], "all runs equal: cannot tell"),
        ([90.0, 90.1, 90.2], "outside (89.60 to 90.60)"),  # 90.1 ± 4.302653 * 0.1 * sqrt(4 / 3)
        ([90.0, 92.0], "inside (68.99 to 100.00)"),  # 91 ± 12.7062 * sqrt(2) * sqrt(3 / 2); none is above 100
    ):
        scores = {seed: Score(value, None, None, "folder", "arm", "float32") for seed, value in enumerate(values)}
        assert make_verdict(PublishedRow("adam_512", published["adam_512"], as_published=scores)) == verdict


def test_files_lie_in_the_root_until_nothing_is_reproduced(tmp_path, found):
    drawn = draw_reproduction(tmp_path, found)
    saved = json.loads((tmp_path / "reproduction.json").read_text())
    assert len(saved["runs"]) == 11 and saved["notes"] == drawn.notes
    one = saved["runs"]["adam_512"]
    assert one["as_published"]["1"]["folder"] == "a-published" and one["inside"] is True
    assert one["spread"] == pytest.approx((91.25 - 5.5021, 91.25 + 5.5021), abs=1e-3)  # 12.7062 * 0.353553 * sqrt(1.5)
    text = (tmp_path / "reproduction.md").read_text()
    assert f"ours as published: {AS_PUBLISHED} / last (n)" in text and "91.25 ± 0.35 / 91.00 ± 0.00 (2)" in text
    assert (tmp_path / "reproduction.png").read_bytes() == drawn.figure and len(drawn.figure) < 300_000
    drawn = draw_reproduction(tmp_path, reproduce({}))
    assert drawn.figure is None and drawn.notes[0] == NOT_REPRODUCED
    assert not list(tmp_path.glob("reproduction.*"))


def test_rows_and_marks(found):
    figure = make_offsets(found)
    (axes,) = figure.axes
    assert "percentage points" in axes.get_xlabel()
    ticks = [tick.get_text() for tick in axes.get_yticklabels()]
    assert ticks == [f"{name}\n{run.best:.2f} %" for name, run in reversed(published.items())]
    y = dict(zip(reversed(published), axes.get_yticks(), strict=True))

    def points(label):
        lines = [line for line in axes.get_lines() if line.get_label().startswith(label)]
        return [(x, y) for line in lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]

    assert sorted(points("published best")) == sorted((0, tick) for tick in y.values())
    last = {tick: x for x, tick in points("published last")}
    assert last[y["sgd_128"]] == pytest.approx(88.04 - 88.13)
    means = {round(tick): x for x, tick in points("ours as published")}
    assert means == pytest.approx({y["adam_512"]: 91.25 - 91.26, y["adam_256_lr_6"]: 1.0})
    # A run that failed does not flatten the others: it lies at the edge, and so do the ends of a wide spread.
    seeds = [x for x, tick in points("_seeds") if round(tick) == y["adam_512"]]
    assert sorted(seeds) == pytest.approx([-LIMIT, 91.0 - 91.26, 91.5 - 91.26, 1.0])
    assert points("ours as intended") == [(-LIMIT, pytest.approx(y["adam_512"], abs=0.3))]
    assert axes.get_xlim() == (-LIMIT, LIMIT)
    (bar,) = [patch for patch in axes.patches if patch.get_width() > 0]
    assert (bar.get_x(), bar.get_width()) == (-LIMIT, 2 * LIMIT)
    (legend,) = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == 5 and "ours as intended, epoch chosen on validation" in labels
    # Readable in grey: the protocols differ in their marks.
    assert len({handle.get_marker() for handle in legend.legend_handles if hasattr(handle, "get_marker")}) == 4


def test_a_spread_is_shown_to_its_ends(tmp_path):
    fake_reproduction(tmp_path / "x", {"adam_512": {0: (91.0, 91.0), 1: (91.5, 91.5), 2: (91.2, 91.2)}})
    found = found_in(tmp_path)
    (bar,) = (patch for patch in make_offsets(found).axes[0].patches if patch.get_width() > 0)
    (spread,) = (row.spread for row in found.rows if row.spread)
    assert (91.26 + bar.get_x(), 91.26 + bar.get_x() + bar.get_width()) == pytest.approx(spread)
