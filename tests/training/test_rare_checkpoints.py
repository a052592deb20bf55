"""Where an epoch takes less time than its checkpoint, as on accelerators: what is written, and that nothing is lost."""

from dataclasses import replace

import jax
import pytest
from support.tiny import RUN, assert_same_bits, leaves, stop_after, without_times

import jaxresnet.training.fit
from jaxresnet.config import TrainConfig
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import Engine
from jaxresnet.training.fit import Interrupted, fit

LONG = replace(RUN, num_epochs=5)  # 4 steps each
NEVER, ALWAYS = 1e9, 0.0


@pytest.fixture(scope="module")
def accelerator():
    """An engine that runs an epoch in a dispatch."""
    engine = Engine(RUN, 256, tuple(jax.devices()[:1]))
    engine.whole_epochs = True
    return engine


@pytest.fixture
def run(accelerator, tiny_data, monkeypatch):
    """`fit` with it; `every` as CHECKPOINT_EVERY, validation accuracies as given where they are."""

    def run(config: TrainConfig, workdir, every, accuracies=None, **kwargs):
        monkeypatch.setattr(jaxresnet.training.fit, "make_engine", lambda *_: accelerator)
        monkeypatch.setattr(jaxresnet.training.fit, "CHECKPOINT_EVERY", every)
        if accuracies:
            monkeypatch.setattr(
                jaxresnet.training.fit._Run,
                "_score",
                lambda self, state, name: (1.0, accuracies[self.epoch] if name == "val" else 50.0),
            )
        return fit(config, tiny_data, workdir, **kwargs)

    return run


def steps_in(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


def test_the_first_and_the_last_epoch_always_have_one(run, tmp_path):
    seen = []
    run(LONG, tmp_path, NEVER, [50, 40, 30, 20, 10], on_epoch=lambda _: seen.append(steps_in(tmp_path)))
    assert seen == [[4]] * 4 + [[4, 20]]


def test_often_where_they_cost_nothing(run, tmp_path):
    seen = []
    run(LONG, tmp_path, ALWAYS, [10, 20, 30, 40, 50], on_epoch=lambda _: seen.append(steps_in(tmp_path)[-1]))
    assert seen == [4, 8, 12, 16, 20]


@pytest.mark.parametrize("accuracies, best", [([1, 5, 2, 2, 2], 1), ([9, 1, 1, 1, 1], 0), ([1, 2, 3, 4, 5], 4)])
def test_the_chosen_epoch_is_kept_in_between(run, tmp_path, accuracies, best):
    """In memory, and on disk with the next checkpoint: both give the state of that epoch."""
    often = run(LONG, tmp_path / "often", ALWAYS, accuracies)
    rare = run(LONG, tmp_path / "rare", NEVER, accuracies)
    assert rare.summary["best_epoch"] == often.summary["best_epoch"] == best
    assert_same_bits(rare.state, often.state)
    again = run(LONG, tmp_path / "rare", NEVER, accuracies)  # finished: all of it comes from the checkpoints
    assert_same_bits(again.state, often.state)
    with Checkpoints(tmp_path / "rare") as checkpoints:
        record = checkpoints.record(4 * (best + 1))
    assert len(record["history"]) == best + 1 and record["history"][-1]["val_accuracy"] == accuracies[best]


def test_a_stop_keeps_every_finished_epoch(run, tmp_path):
    whole = run(LONG, tmp_path / "whole", ALWAYS, [1, 5, 2, 2, 2])
    with pytest.raises(Interrupted):
        run(LONG, tmp_path / "stopped", NEVER, [1, 5, 2, 2, 2], should_stop=stop_after(6))
    assert steps_in(tmp_path / "stopped")[:2] == [8, 12], "the best and the last"
    resumed = run(LONG, tmp_path / "stopped", NEVER, [1, 5, 2, 2, 2])
    assert list(map(without_times, resumed.history)) == list(map(without_times, whole.history))
    assert_same_bits(resumed.state, whole.state)


def test_a_crash_loses_what_came_after_the_last_one_and_repeats_it(run, tmp_path):
    def crash(history):
        if len(history) == 4:
            raise MemoryError

    whole = run(LONG, tmp_path / "whole", ALWAYS)
    with pytest.raises(MemoryError):
        run(LONG, tmp_path / "crashed", NEVER, on_epoch=crash)
    assert steps_in(tmp_path / "crashed") == [4]
    resumed = run(LONG, tmp_path / "crashed", NEVER)
    assert list(map(without_times, resumed.history)) == list(map(without_times, whole.history))
    assert_same_bits(resumed.state, whole.state)
    assert len(leaves(resumed.state)) > 10
