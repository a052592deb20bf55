"""A measurement of networks, in which they take turns."""

from dataclasses import replace

import pytest
from support.tiny import MODEL

from jaxresnet.comparison.model_costs import measure_models
from jaxresnet.recipes import published_networks
from jaxresnet.results.schemas import read_measurement


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

    monkeypatch.setattr("jaxresnet.comparison.model_costs._turn", fake_turn)
    return taken


MODELS = {name: published_networks[name] for name in ("configuration 1", "configuration 5", "configuration 8")}


def test_networks_take_turns_and_compiling_is_not_counted(turns, tmp_path):
    measure_models(MODELS, tmp_path)
    one, five = ((2, 2, 2, 2), 64), ((1, 1, 1, 1), 64)
    assert [turn[:2] for turn in turns] == [one, five] * 6
    found = read_measurement(tmp_path)
    for name in ("configuration 1", "configuration 5"):
        assert found["models"][name]["step_seconds"] == pytest.approx([0.1, 0.5, 0.3, 0.2, 0.4])
        assert found["models"][name]["median_step_seconds"] == pytest.approx(0.3)
    assert found["models"]["configuration 8"]["step_seconds"] is None
    assert found["models"]["configuration 8"]["params"] == 4_903_242
    assert {turn[2] for turn in turns} == {found["timing"]["batch_size"]} <= {128, 512}
    assert found["environment"]["device"] and found["timing"]["width"] == "full" and found["demo"] is False


def test_the_demo_says_that_it_times_narrower_networks(turns, tmp_path):
    text = measure_models(MODELS, tmp_path, demo=True)
    assert {turn[1:] for turn in turns} == {(16, 16)}
    assert "a quarter of the width" in text and "12,550,218" in text
    found = read_measurement(tmp_path)
    assert found["demo"] is True and found["timing"]["width"] == "a quarter"


def test_a_real_measurement_of_a_tiny_network(tmp_path):
    measure_models({"tiny": MODEL, "no pool": replace(MODEL, pool_size=4)}, tmp_path, demo=True)
    found = read_measurement(tmp_path)["models"]
    times = found["tiny"]["step_seconds"]
    assert len(times) == 3 and 0 < min(times) <= found["tiny"]["median_step_seconds"] <= max(times) < 10
    assert found["no pool"]["step_seconds"] is None and found["no pool"]["problem_here"]
