"""A folder in, tables and figures out: what they say, what they label, and that nothing but the folder is needed."""

import json
import math
import random
import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from PIL import Image

from jaxresnet.errors import ResultsError
from jaxresnet.figure import make_figure
from jaxresnet.report import AS_PUBLISHED, SYNTHETIC, render, title
from jaxresnet.results import config_path, read_results, rows_path, scores_path, write_json, write_rows

LOOKAHEAD, ADAM = "Adam + Lookahead", "Adam"
PUBLISHED = {ADAM: {"best": 90.78, "source": "its notebook"}, LOOKAHEAD: {"best": 90.97, "source": "its notebook"}}


def fake_comparison(
    folder,
    arms=(LOOKAHEAD, ADAM),
    seeds=(0, 1, 2),
    num_epochs=6,
    selection="val",
    synthetic=False,
    unfinished=(),
    not_begun=(),
    **config,
):
    """Write what a comparison leaves behind: learning curves of a plausible shape, a point apart from arm to arm."""
    config = {
        "name": "adam_lookahead",
        "protocol": "published" if selection == "test" else "intended",
        "dataset": {"name": "synthetic" if synthetic else "cifar10", "synthetic": synthetic, "num_test": 10000},
        "seeds": list(seeds),
        "arms": {arm: {"batch_size": 512} for arm in arms},
        "environment": {"jax": "0.10.2", "device": "cpu", "commit": None, "command": "python experiments/x.py"},
        **config,
    }
    write_json(config_path(folder), config)
    for index, arm in enumerate(arms):
        for seed in seeds:
            if (arm, seed) in not_begun:
                continue
            noise = random.Random(100 * index + seed)
            rows = []
            for epoch in range(num_epochs):
                learnt = 1 - math.exp(-(epoch + 1) / 4)
                accuracy = 45 + 40 * learnt - index + noise.gauss(0, 0.1)
                evaluated = {"loss": 1.6 - learnt + noise.gauss(0, 0.02), "accuracy": accuracy}
                rows.append(
                    {
                        "epoch": epoch,
                        "learning_rate": 0.01,
                        "train_loss": 1.7 - 1.2 * learnt,
                        "train_accuracy": 40 + 45 * learnt,
                        **{f"val_{k}": v if selection == "val" else None for k, v in evaluated.items()},
                        **{f"test_{k}": v if selection == "test" else None for k, v in evaluated.items()},
                    }
                )
            if (arm, seed) in unfinished:
                write_rows(rows_path(folder, arm, seed), rows[: num_epochs // 2])
                continue
            write_rows(rows_path(folder, arm, seed), rows)
            best = max(rows, key=lambda row: row[f"{selection}_accuracy"])
            scores = {
                "arm": arm,
                "seed": seed,
                "selection": selection,
                "weights": "slow" if arm == LOOKAHEAD else "fast",
                "best_epoch": best["epoch"],
                "test_accuracy": best[f"{selection}_accuracy"],
                "last_epoch": num_epochs - 1,
            }
            write_json(scores_path(folder, arm, seed), scores)
    return folder


def figure_of(folder):
    results = read_results(folder)
    return make_figure(results, title(results), AS_PUBLISHED)


def labels(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


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
    paths = (first.summary_json, first.summary_md, first.figure)
    before = [path.read_bytes() for path in paths]
    assert render(tmp_path) == first
    assert [path.read_bytes() for path in paths] == before


def test_selection_on_the_test_set_is_labelled_wherever_it_shows(tmp_path):
    report = render(fake_comparison(tmp_path, selection="test", published=PUBLISHED))
    wrapped = " ".join(report.table.split())
    assert "best epoch on the" in wrapped and f"Published, Adam: {AS_PUBLISHED}, its notebook." in wrapped
    assert report.verdict.endswith(f"[{AS_PUBLISHED}]")
    header = next(line for line in report.summary_md.read_text().splitlines() if line.startswith("| arm"))
    assert f"test accuracy (%), {AS_PUBLISHED}" in header and "last epoch, test (%)" in header
    figure = figure_of(tmp_path)
    assert f"test score of a run, {AS_PUBLISHED}" in labels(figure)
    assert f"published figure, {AS_PUBLISHED}" in labels(figure)
    lines = {line.get_label(): line for line in figure.axes[1].get_lines()}
    assert set(lines["Adam, published 90.78 %"].get_ydata()) == {90.78}


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


def test_figure_draws_the_mean_and_the_range(tmp_path):
    figure = figure_of(fake_comparison(tmp_path))
    loss, accuracy = figure.axes
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss (nats)", "accuracy (%)"]
    assert "epoch" in loss.get_xlabel() and figure.get_suptitle() == "adam_lookahead: intended protocol, cifar10"
    lines = {line.get_label(): line for line in accuracy.get_lines()}
    curves = [f"{arm}, {split}" for arm in (LOOKAHEAD, ADAM) for split in ("training", "validation")]
    assert set(lines) == {*curves, f"{LOOKAHEAD}, scored", f"{ADAM}, scored"}
    assert [line.get_label() for line in loss.get_lines()] == curves
    files = (rows_path(tmp_path, ADAM, seed).read_text() for seed in range(3))
    measured = np.array([[json.loads(row)["val_accuracy"] for row in text.splitlines()] for text in files])
    np.testing.assert_allclose(lines["Adam, validation"].get_ydata(), measured.mean(0))
    band = accuracy.collections[-1].get_paths()[0].vertices  # Adam's validation, drawn last
    assert {round(y, 9) for y in band[:, 1]} == {round(y, 9) for y in (*measured.min(0), *measured.max(0))}
    assert len(lines["Adam, scored"].get_xdata()) == 3
    for line in (*loss.get_lines(), *accuracy.get_lines()):
        assert np.isfinite(line.get_ydata()).all()
    # Readable in grey: the arms differ in marker, training and validation in line style.
    assert len({line.get_marker() for label, line in lines.items() if "validation" in label}) == 2
    assert lines["Adam, training"].get_linestyle() != lines["Adam, validation"].get_linestyle()
    assert "bands: least to most over the seeds" in figure.legends[0].get_title().get_text()


def test_one_epoch_shows_points_and_bars_side_by_side(tmp_path):
    figure = figure_of(fake_comparison(tmp_path, num_epochs=1))
    loss = figure.axes[0]
    assert list(loss.get_xticks()) == [0] and len(loss.collections) == 4  # a bar a curve
    assert len({float(line.get_xdata()[0]) for line in loss.get_lines()}) == 2  # an offset an arm
    assert "bars: least to most" in figure.legends[0].get_title().get_text()


@pytest.mark.parametrize("num_arms", [2, 9])
def test_legend_lies_within_the_figure_and_off_the_data(tmp_path, num_arms):
    arms = [f"SGD, learning rate {index}, and a name that is rather long" for index in range(num_arms)]
    figure = figure_of(fake_comparison(tmp_path, arms=arms, selection="test", published={arms[0]: {"best": 90.0}}))
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).draw()
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= figure.bbox.x1 and legend.y0 >= 0
    for axes in figure.axes:
        assert not legend.overlaps(axes.get_window_extent())
    looks = {(handle.get_color(), handle.get_marker()) for handle in figure.legends[0].legend_handles[:num_arms]}
    assert len(looks) == num_arms


def test_png_is_light_small_and_the_users_settings_stay(tmp_path):
    with matplotlib.style.context("dark_background"):
        before = dict(matplotlib.rcParams)
        report = render(fake_comparison(tmp_path, num_epochs=51))
        assert dict(matplotlib.rcParams) == before
    image = Image.open(report.figure)
    assert image.format == "PNG" and image.size == (1500, 750) and image.info["dpi"] == pytest.approx((150, 150), 0.01)
    assert report.figure.stat().st_size < 300_000
    assert np.asarray(image.convert("L")).mean() > 200  # white, in spite of the user's dark style


def test_matplotlib_is_imported_only_to_draw_and_pyplot_never(tmp_path):
    fake_comparison(tmp_path)
    code = (
        "import sys; from jaxresnet.report import render; assert 'matplotlib' not in sys.modules\n"
        f"render({str(tmp_path)!r}); assert 'matplotlib' in sys.modules and 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_damaged_folder_is_refused_and_its_summary_left_alone(tmp_path):
    report = render(fake_comparison(tmp_path))
    before = report.summary_json.read_bytes()
    path = rows_path(tmp_path, ADAM, 1)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ResultsError, match=r"adam-seed1\.jsonl, line 6"):
        render(tmp_path)
    assert report.summary_json.read_bytes() == before
