"""Results of the layout before there was a store: finished runs are taken over with their weights."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp
from support.fake_weights import numbers
from support.tiny import RUN

from jaxresnet.comparison.compare import RunsFailed, compare
from jaxresnet.comparison.imports import import_comparison
from jaxresnet.config import to_dict
from jaxresnet.data.dataset import fingerprint
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json, write_rows
from jaxresnet.interop.torch import from_torch
from jaxresnet.nn.resnet import build_model
from jaxresnet.results.schemas import comparison_path
from jaxresnet.results.store import read_results
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.predict import blank_state, predict

ARMS = {"Adam + Lookahead": RUN, "Adam": replace(RUN, optim=replace(RUN.optim, lookahead=False))}
FAST, SLOW = (from_torch(numbers(RUN.model, seed=seed)) for seed in (1, 2))


@pytest.fixture
def old(tiny_data, tmp_path):
    """Two arms with seed 3, of which one has its checkpoint, and seed 4, which has no scores yet."""
    folder = tmp_path / "old" / "tiny"
    arms = {arm: {k: v for k, v in to_dict(config).items() if k != "seed"} for arm, config in ARMS.items()}
    told = {"name": "adam", "protocol": "intended", "published": {}, "environment": {"device": "cpu"}}
    write_json(folder / "config.json", {**told, "dataset": fingerprint(tiny_data), "seeds": [3, 4], "arms": arms})
    row = {"train_loss": 2.0, "train_accuracy": 25.0, "test_accuracy": None}
    rows = [{**row, "epoch": i, "step": 4 * i + 4, "val_accuracy": 20.0 - i} for i in range(3)]
    scores = {"selection": "val", "weights": "slow", "best_epoch": 0, "last_epoch": 2, "test_accuracy": 18.0}
    for arm, slug in zip(ARMS, ("adam-lookahead", "adam"), strict=True):
        write_rows(folder / "runs" / f"{slug}-seed3.jsonl", rows)
        write_rows(folder / "runs" / f"{slug}-seed4.jsonl", rows[:1])
        write_json(folder / "runs" / f"{slug}-seed3.json", {"arm": arm, "seed": 3, **scores})
    state = jax.tree.map(lambda a: np.full(a.shape, 4, a.dtype), blank_state(RUN))
    state = state._replace(**FAST, slow_batch_stats=SLOW["batch_stats"])
    state = state._replace(opt_state=state.opt_state._replace(slow_params=SLOW["params"]))
    ocp.save(folder / "checkpoints" / "adam-lookahead-seed3" / "4", {"state": state, "totals": zero_totals()})
    return folder


def test_finished_runs_are_runs_of_the_store(old, tiny_data, tmp_path, monkeypatch):
    assert import_comparison(old.parent, tmp_path / "out") == ["tiny"]
    results = read_results(tmp_path / "out" / "tiny")
    for arm in ARMS:
        run = results.runs[arm][3]
        assert (run.scores["test_accuracy"], len(run.rows), run.rows[2]["step"]) == (18.0, 3, 12)

    began = comparison_path(tmp_path / "out" / "tiny").stat()
    assert import_comparison(old, tmp_path / "out") == ["tiny"], "what an error ended is begun again"
    assert comparison_path(tmp_path / "out" / "tiny").stat() == began

    folder = results.runs["Adam + Lookahead"][3].folder
    images = ((tiny_data.test.images / 255 - [0.4914, 0.4822, 0.4465]) / [0.2023, 0.1994, 0.2010]).astype(np.float32)
    logits, _ = build_model(RUN.model).apply(SLOW, images, False)
    np.testing.assert_allclose(predict(folder, tiny_data.test.images), jax.nn.softmax(logits), atol=1e-5)

    monkeypatch.setattr("jaxresnet.comparison.executors.fit", lambda *_, **__: 1 / 0)
    with pytest.raises(RunsFailed) as error:
        compare(ARMS, (3, 4), tiny_data, tmp_path / "out", name="tiny", devices=jax.devices()[:1])
    assert list(error.value.failures) == results.missing == [(arm, 4) for arm in ARMS], "no other was to be trained"


def test_what_cannot_be_imported_is_refused(old, tmp_path):
    def refused(folder, out, match):
        with pytest.raises(ResultsError, match=match):
            import_comparison(folder, tmp_path / out)

    refused(tmp_path, "out", r"holds no config\.json; give the folder of a comparison")
    for found in ({}, {"best_epoch": 3, "selection": "val", "test_accuracy": 18.0}):  # of three epochs
        write_json(old / "runs" / "adam-seed3.json", found)
        refused(old, "out", r"adam-seed3\.json: 'best_epoch' is missing or malformed, .* 3 epochs in adam-seed3\.jsonl")
    for array in (old / "checkpoints").rglob("d/*"):
        array.write_bytes(b"damaged")
    refused(old, "other", r"checkpoints/adam-lookahead-seed3/4: cannot be read \(")
    (old / "config.json").write_text("{}")
    refused(old, "other", "'arms' is missing or malformed")
