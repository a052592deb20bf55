"""A measurement of networks, in which they take turns."""

from dataclasses import replace

import pytest
from support.tiny import MODEL

from jaxresnet.comparison.model_costs import measure_models
from jaxresnet.recipes import published_networks
from jaxresnet.results.schemas import read_measurement

MODELS = {name: published_networks[name] for name in ("configuration 1", "configuration 5", "configuration 8")}


def test_networks_take_turns_and_compiling_is_not_counted(monkeypatch, tmp_path):
    turns = []

    def fake_turn(model, batch_size, steps, device):
        times = iter([60.0, *(steps * t for t in (0.1, 0.5, 0.3, 0.2, 0.4))])  # the first turn compiles

        def turn():
            turns.append((model.stage_sizes, model.width, batch_size))
            return next(times)

        return turn

    monkeypatch.setattr("jaxresnet.comparison.model_costs._turn", fake_turn)
    measure_models(MODELS, tmp_path)
    one, five = ((2, 2, 2, 2), 64), ((1, 1, 1, 1), 64)
    assert [turn[:2] for turn in turns] == [one, five] * 6
    found = read_measurement(tmp_path)
    for name in ("configuration 1", "configuration 5"):
        assert found["models"][name]["step_seconds"] == pytest.approx([0.1, 0.5, 0.3, 0.2, 0.4])
        assert found["models"][name]["median_step_seconds"] == pytest.approx(0.3)
    assert found["models"]["configuration 8"]["step_seconds"] is None
    assert {turn[2] for turn in turns} == {found["timing"]["batch_size"]} <= {128, 512}
    assert found["environment"]["device"] and found["timing"]["width"] == "full" and found["demo"] is False
    turns.clear()
    measure_models({"five": MODELS["configuration 5"]}, tmp_path / "demo", demo=True)
    assert {turn[1:] for turn in turns} == {(16, 16)}, "a quarter of the width"


def test_the_demo_is_a_real_measurement_that_says_that_it_times_narrower_networks(tmp_path):
    text = measure_models({"tiny": MODEL, "no pool": replace(MODEL, pool_size=4)}, tmp_path, demo=True)
    found = read_measurement(tmp_path)
    tiny, no_pool = found["models"].values()
    times = tiny["step_seconds"]
    assert len(times) == 3 and 0 < min(times) <= tiny["median_step_seconds"] <= max(times) < 10
    assert no_pool["step_seconds"] is None and no_pool["problem_here"]
    assert found["demo"] is True and found["timing"]["width"] == "a quarter" and found["timing"]["batch_size"] == 16
    assert "a quarter of the width" in text and f"{tiny['params']:,}" in text
