"""The published configurations: what they have, which of them run, and a measurement in which they take turns."""

import json
import runpy
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import MODEL

import jaxresnet.comparison.model_costs
from jaxresnet.comparison.model_costs import (
    count_parameters,
    measure_models,
    problem_here,
    published_models,
    published_problem,
    render_models,
    widest_under_budget,
)
from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError
from jaxresnet.nn.resnet import count_params
from jaxresnet.recipes import published
from jaxresnet.reporting.figure_models import make_models

COUNTS = (12_550_218, 6_279_498, 5_419_338, 11_173_962, *[4_903_242] * 4)


def test_parameters_are_the_published_counts():
    assert tuple(map(count_parameters, published_models.values())) == COUNTS
    assert count_params(published_models["configuration 3"]) == COUNTS[2]


def test_which_run_as_published_and_why_the_others_do_not():
    problems = {name[-1]: published_problem(model) for name, model in published_models.items()}
    assert [number for number, problem in problems.items() if problem is None] == ["3", "4", "5"]
    unpadded = "the 3x3 shortcut of stage 2, which is not padded, makes 15x15 of a 32x32 map"
    assert problems["1"].startswith(unpadded) and problems["2"] == problems["1"]
    assert problems["6"].endswith("2x2 of the last 4x4 map: 2,048 numbers, where the linear layer takes 512")
    assert problems["7"] == "a pool of 8x8 leaves nothing of the last 4x4 map"
    assert problems["8"] == "a pool of 16x16 leaves nothing of the last 4x4 map"


def as_published(model, images):
    """The published forward pass as far as shapes go: padded 3x3 paths, unpadded shortcuts, one linear layer."""
    x = jnp.repeat(images, 2, axis=-1)  # width 2
    for stage in range(1, len(model.stage_sizes)):
        c, k = x.shape[-1], model.shortcut_kernel

        def conv(size, padding, x=x, c=c):
            kernel = jnp.zeros((size, size, c, 2 * c))
            return jax.lax.conv_general_dilated(
                x, kernel, (2, 2), (padding, padding), dimension_numbers=("NHWC", "HWIO", "NHWC")
            )

        x = jax.lax.add(conv(3, (1, 1)), conv(k, (0, 0)))
        assert x.shape[-1] == 2 ** (stage + 1)
    pool = (1, model.pool_size, model.pool_size, 1)
    pooled = jax.lax.reduce_window(x, 0.0, jax.lax.add, pool, pool, "VALID")
    return pooled.reshape(len(images), -1) @ jnp.zeros((x.shape[-1], 10))


@pytest.mark.parametrize("model", [*published_models.values(), ModelConfig(pool_size=4, stage_sizes=(3, 1, 2, 1))])
def test_the_verdicts_are_those_of_the_shapes_themselves(model):
    images = jnp.zeros((1, 32, 32, 1))
    if published_problem(model) is None:
        assert jax.eval_shape(lambda: as_published(model, images)).shape == (1, 10)
    else:
        with pytest.raises(TypeError):
            jax.eval_shape(lambda: as_published(model, images))


def test_here_the_padded_shortcut_runs_and_a_pool_must_fit():
    refused = {name: problem_here(model) for name, model in published_models.items() if problem_here(model)}
    assert list(refused) == ["configuration 6", "configuration 7", "configuration 8"]
    assert refused["configuration 7"].startswith("pool_size=8: must be 4")


def test_the_widest_full_resnet18_under_five_million():
    full = ModelConfig(stage_sizes=(2, 2, 2, 2))
    found = widest_under_budget(full)
    assert found == replace(full, width=42)
    assert count_params(found) < 5_000_000 <= count_params(replace(full, width=43))
    assert widest_under_budget(ModelConfig(), COUNTS[4] + 1).width == 64
    assert widest_under_budget(ModelConfig(), COUNTS[4]).width == 63
    with pytest.raises(ConfigError, match="budget=100"):
        widest_under_budget(full, 100)


# ---------------------------------------------------------------------------------------------------- measurement


@pytest.fixture
def turns(monkeypatch):
    """Replaces the training by seconds from a list, and keeps the order of the turns."""
    taken = []

    def fake_turn(model, batch_size, steps, device):
        times = iter([60.0, *(steps * t for t in (0.1, 0.5, 0.3, 0.2, 0.4))])  # the first turn compiles

        def turn():
            taken.append((model.stage_sizes, model.width, batch_size))
            return next(times)

        return turn

    monkeypatch.setattr(jaxresnet.comparison.model_costs, "_turn", fake_turn)
    return taken


MODELS = {name: published_models[name] for name in ("configuration 1", "configuration 5", "configuration 8")}


def test_networks_take_turns_and_compiling_is_not_counted(turns, tmp_path):
    measure_models(MODELS, tmp_path)
    one, five = ((2, 2, 2, 2), 64), ((1, 1, 1, 1), 64)
    assert [turn[:2] for turn in turns] == [one, five] * 6
    found = json.loads((tmp_path / "measurement.json").read_text())
    for name in ("configuration 1", "configuration 5"):
        assert found["models"][name]["step_seconds"] == pytest.approx([0.1, 0.5, 0.3, 0.2, 0.4])
        assert found["models"][name]["median_step_seconds"] == pytest.approx(0.3)
    assert found["models"]["configuration 8"]["step_seconds"] is None
    assert found["models"]["configuration 8"]["params"] == 4_903_242
    assert {turn[2] for turn in turns} == {found["timing"]["batch_size"]} <= {128, 512}
    assert found["environment"]["device"] and found["timing"]["width"] == "full" and found["demo"] is False


def test_the_table_says_what_runs_where_and_why_not(turns, tmp_path):
    text = measure_models(MODELS, tmp_path)
    page = (tmp_path / "model_parameters.md").read_text()
    header, _, *rows = (line for line in page.splitlines() if line.startswith("|"))
    names = [cell.strip() for cell in header.strip("|").split("|")]
    cells = [dict(zip(names, (c.strip() for c in row.strip("|").split("|")), strict=True)) for row in rows]
    first, fifth, last = cells
    assert first["parameters"] == "12,550,218" and first["multiply-adds"] == "605,754,368"
    assert [(c["as published"], c["here"]) for c in cells] == [
        ("fails", "runs"),
        ("runs", "runs"),
        ("fails", "refused"),
    ]
    assert fifth["step (ms)"] == "300" and fifth["least to most"] == "100 to 500" and last["step (ms)"] == ""
    for shown in (text, page):
        assert "configuration 1 as published: the 3x3 shortcut" in shown
        assert "configuration 8 here: pool_size=16: must be 4" in shown


def test_the_demo_says_that_it_times_narrower_networks(turns, tmp_path):
    text = measure_models(MODELS, tmp_path, demo=True)
    assert {turn[1:] for turn in turns} == {(16, 16)}
    assert "a quarter of the width given here" in text and "12,550,218" in text
    measurement = json.loads((tmp_path / "measurement.json").read_text())
    assert measurement["demo"] is True
    assert "a quarter of the width" in make_models(measurement, 5_000_000).axes[0].get_ylabel()


def test_table_and_figure_are_drawn_again_from_the_measurement_alone(turns, tmp_path):
    text = measure_models(MODELS, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"measurement.json", "model_parameters.md", "model_parameters.png"}
    for name in ("model_parameters.md", "model_parameters.png"):
        (tmp_path / name).unlink()
    assert render_models(tmp_path) == text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert len(before["model_parameters.png"]) < 300_000


def test_the_figure_has_a_mark_a_network_and_the_budget(turns, tmp_path):
    measure_models(MODELS, tmp_path)
    measurement = json.loads((tmp_path / "measurement.json").read_text())
    figure = make_models(measurement, 5_000_000)
    for axes, expected in zip(figure.axes, ([12.550218, 4.903242], [605.754368, 253.432832]), strict=True):
        marks = [line for line in axes.get_lines() if line.get_marker() == "o"]
        assert [float(mark.get_xdata()[0]) for mark in marks] == pytest.approx(expected)
        assert [float(mark.get_ydata()[0]) for mark in marks] == pytest.approx([300, 300])
        assert [text.get_text() for text in axes.texts] == ["1", "5"]
        assert all(np.isfinite(path.vertices).all() for bars in axes.collections for path in bars.get_paths())
    left, right = figure.axes
    assert left.get_xlabel() == "parameters (millions)" and "(millions)" in right.get_xlabel()
    assert left.get_ylabel() == f"training step, batch {measurement['timing']['batch_size']} (ms)"
    (budget,) = (line for line in left.get_lines() if line.get_label() == "5,000,000 parameters")
    assert list(budget.get_xdata()) == [5, 5]
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend[0] == "1: configuration 1, blocks 2,2,2,2, width 64, shortcut 3x3" and len(legend) == 3


def test_a_real_measurement_of_a_tiny_network(tmp_path):
    measure_models({"tiny": MODEL, "no pool": replace(MODEL, pool_size=4)}, tmp_path, demo=True)
    found = json.loads((tmp_path / "measurement.json").read_text())["models"]
    times = found["tiny"]["step_seconds"]
    assert len(times) == 3 and 0 < min(times) <= found["tiny"]["median_step_seconds"] <= max(times) < 10
    assert found["no pool"]["step_seconds"] is None and found["no pool"]["problem_here"]


def test_the_script_trains_what_runs_and_nothing_twice():
    script = Path(__file__).parents[2] / "experiments" / "model_parameters.py"
    experiment = runpy.run_path(str(script))["EXPERIMENT"]
    (arms,) = experiment.comparisons.values()
    assert list(arms) == [*(f"configuration {i}" for i in range(1, 6)), "narrowed ResNet-18"]
    assert len({config.model for config in arms.values()}) == len(arms)
    base = published["adam_512"].config
    assert all(replace(config, model=base.model) == base for config in arms.values())
    assert experiment.select((), False) == ["model_parameters"]
