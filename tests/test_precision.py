"""What `precision="auto"` becomes, and that runs and comparisons record it."""

import json
from dataclasses import replace
from types import SimpleNamespace

import jax
import pytest
from support.tiny import RUN

from jaxresnet import Experiment, ModelConfig, TrainConfig, compare, fit, published
from jaxresnet.errors import ResultsError
from jaxresnet.hardware import automatic_precision as automatic
from jaxresnet.hardware import resolved
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import make_engine

ONE = jax.devices()[:1]
AUTO = replace(RUN, model=replace(RUN.model, precision="auto"), num_epochs=1)


def device(platform, **more):
    return SimpleNamespace(platform=platform, **more)


@pytest.mark.parametrize(
    ("one", "cpu_does", "precision"),
    [
        (device("cpu"), "0", "float32"),
        (device("cpu"), "1", "bfloat16"),
        (device("gpu", compute_capability="9.0"), "0", "bfloat16"),
        (device("gpu", compute_capability="8.0"), "0", "bfloat16"),
        (device("gpu", compute_capability="7.5"), "0", "float32"),
        (device("gpu", compute_capability="gfx90a"), "0", "bfloat16"),
        (device("tpu"), "0", "bfloat16"),
    ],
    ids=lambda value: str(getattr(value, "__dict__", value)),
)
def test_where_bfloat16_is_faster(one, cpu_does, precision, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", cpu_does)
    assert automatic(one) == precision
    assert resolved(TrainConfig(), one).model == ModelConfig(precision=precision)
    for chosen in ("float32", "bfloat16"):
        config = TrainConfig(model=ModelConfig(precision=chosen))
        assert resolved(config, one) is config


def test_it_is_the_default_but_for_the_published_runs():
    assert TrainConfig().model.precision == "auto"
    for run in published.values():
        assert run.config.model.precision == "float32"
        arms = {"A": run.config}
        experiment = Experiment("", {"x": arms})
        for protocol, precision in (("published", "float32"), ("intended", "auto")):
            assert experiment.arms("x", protocol)["A"].model.precision == precision


@pytest.mark.skipif(ONE[0].platform != "cpu", reason="sets whether a CPU multiplies bfloat16")
@pytest.mark.parametrize(("cpu_does", "precision"), [("0", "float32"), ("1", "bfloat16")])
def test_a_run_records_what_it_was(cpu_does, precision, monkeypatch, tiny_data, tmp_path):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", cpu_does)
    fit(AUTO, tiny_data, tmp_path / "run", devices=ONE)
    with Checkpoints(tmp_path / "run", read_only=True) as checkpoints:
        assert checkpoints.record(checkpoints.last_step())["config"]["model"]["precision"] == precision
    compare({"arm": AUTO}, (0,), tiny_data, tmp_path / "out", devices=ONE)
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["arms"]["arm"]["model"]["precision"] == precision


@pytest.mark.skipif(ONE[0].platform != "cpu", reason="sets whether a CPU multiplies bfloat16")
@pytest.mark.parametrize("began", ["0", "1"])
def test_a_comparison_goes_on_in_the_precision_it_was_begun_in(began, monkeypatch, tiny_data, tmp_path):
    """On another device it may be another that suits it."""
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", began)
    compare({"arm": AUTO}, (0,), tiny_data, tmp_path, devices=ONE)
    before = json.loads((tmp_path / "config.json").read_text())["arms"]
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", str(1 - int(began)))
    compare({"arm": AUTO}, (0, 1), tiny_data, tmp_path, devices=ONE)
    assert json.loads((tmp_path / "config.json").read_text())["arms"] == before
    runs = [json.loads((tmp_path / f"runs/arm-seed{seed}.json").read_text()) for seed in (0, 1)]
    assert runs[0]["config"]["model"] == runs[1]["config"]["model"] == before["arm"]["model"]
    other = {"arm": replace(AUTO, model=replace(AUTO.model, precision=("bfloat16", "float32")[int(began)]))}
    with pytest.raises(ResultsError, match="precision"):
        compare(other, (0, 1), tiny_data, tmp_path, devices=ONE)


@pytest.mark.skipif(ONE[0].platform != "cpu", reason="there auto is bfloat16")
def test_it_shares_the_programs_of_what_it_becomes():
    assert make_engine(AUTO, 256, ONE) is make_engine(RUN, 256, ONE)
