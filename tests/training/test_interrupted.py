"""Runs that are damaged, break or meet numbers that are not finite: what is taken up again, and what is said."""

from copy import copy
from dataclasses import replace

import jax
import numpy as np
import pytest
from support.tiny import (
    RUN,
    STEADY,
    assert_same_bits,
    assert_same_run,
    assert_same_to_rounding,
    collect_garbage,
    stop_after,
)

import jaxresnet.training.fit
from jaxresnet.errors import NonFiniteError, ResultsError, StorageError
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training.checkpoint import Checkpoints
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import Interrupted, fit

ONE = jax.devices()[:1]
LAST = replace(STEADY, selection="last")  # 4 steps an epoch, 3 epochs


@pytest.fixture(autouse=True)
def leave_no_abandoned_reads():
    yield
    collect_garbage()


@pytest.fixture(scope="module")
def whole(tiny_data):
    """The run that is never interrupted."""
    return fit(LAST, tiny_data, devices=ONE)


def begin(data, folder, config=LAST, calls=12):
    """Train until should_stop has been asked `calls` times, after each step and each epoch: with 12, until two steps of
    the last epoch are done. Then checkpoints of steps 4, 8 and 10 were written; 4 is kept where it is the best."""
    with pytest.raises(Interrupted):
        fit(config, data, folder, devices=ONE, should_stop=stop_after(calls))


def damage(folder, step, what="arrays"):
    if what == "record":
        path = folder / str(step) / "_CHECKPOINT_METADATA"
        path.write_text(path.read_text().replace("test_loss", "test_lost"))
        return
    for path in (folder / str(step)).rglob("d/*"):
        path.write_bytes(path.read_bytes()[:-100])


# ---------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("what", ["arrays", "record"])
def test_the_checkpoint_before_a_damaged_one_is_used(whole, tiny_data, tmp_path, capsys, what):
    begin(tiny_data, tmp_path)
    damage(tmp_path, 10, what)
    steps = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert len(steps) == 4, "from step 8 on"
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/10: ") and "kept as damaged-10" in warning
    assert f"Continuing from the checkpoint before, {tmp_path}/8" in warning
    assert_same_run(resumed, whole)
    assert (tmp_path / "damaged-10").is_dir(), "nothing is thrown away"


def test_with_no_checkpoint_left_the_run_begins_anew_only_if_told_to(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    damage(tmp_path, 10)
    damage(tmp_path, 8, "record")
    for reason in ("8: its record is damaged", "damaged-8: set aside before"):  # however often it is tried
        with pytest.raises(ResultsError, match=f"no checkpoint to continue from .*/{reason}.*--restart"):
            fit(LAST, tiny_data, tmp_path, devices=ONE)
        assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged-10", "damaged-8"]
    again = fit(LAST, tiny_data, tmp_path, devices=ONE, restart=True)
    assert "the run begins anew" in capsys.readouterr().err
    assert_same_run(again, whole)
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)


def test_restart_keeps_what_is_whole(whole, tiny_data, tmp_path):
    begin(tiny_data, tmp_path)
    steps = []
    fit(LAST, tiny_data, tmp_path, devices=ONE, restart=True, on_progress=lambda *at: steps.append(at))
    assert len(steps) == 2


def test_a_damaged_checkpoint_of_the_chosen_epoch_is_noticed_before_training_goes_on(
    tiny_data, tmp_path, monkeypatch, capsys
):
    """Epoch 0 is the best; no other checkpoint holds its weights, so only training anew makes them again."""
    accuracies = {0: 30.0, 1: 20.0, 2: 10.0}
    monkeypatch.setattr(
        jaxresnet.training.fit._Run, "_score", lambda self, state, name: (1.0, accuracies.get(self.epoch, 5))
    )
    uninterrupted = fit(RUN, tiny_data, devices=ONE)
    begin(tiny_data, tmp_path, RUN)
    damage(tmp_path, 4)
    with pytest.raises(ResultsError, match=rf"{tmp_path}/4: the checkpoint cannot be read.*--restart"):
        fit(RUN, tiny_data, tmp_path, devices=ONE)
    with pytest.raises(ResultsError, match="--restart"):  # nor is it forgotten
        fit(RUN, tiny_data, tmp_path, devices=ONE)
    again = fit(RUN, tiny_data, tmp_path, devices=ONE, restart=True)
    assert again.summary["best_epoch"] == 0
    assert_same_run(again, uninterrupted)


def test_what_was_best_before_a_damaged_checkpoint_is_still_there(tiny_data, tmp_path, monkeypatch):
    """Epoch 2 was the best and is damaged; after epoch 1, epoch 0 was."""
    accuracies = {0: 30.0, 1: 20.0, 2: 40.0}
    monkeypatch.setattr(
        jaxresnet.training.fit._Run, "_score", lambda self, state, name: (1.0, accuracies.get(self.epoch, 5))
    )
    uninterrupted = fit(RUN, tiny_data, tmp_path, devices=ONE)
    damage(tmp_path, 12)
    accuracies[2] = 25.0  # as it may on a device that is not exact
    again = fit(RUN, tiny_data, tmp_path, devices=ONE)
    assert (uninterrupted.summary["best_epoch"], again.summary["best_epoch"]) == (2, 0)
    assert int(again.state.step) == 4


def test_what_was_half_written_is_named_and_the_one_before_used(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    (tmp_path / "10").rename(tmp_path / "10.orbax-checkpoint-tmp")
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE)
    warning = capsys.readouterr().err
    assert f"{tmp_path}/10.orbax-checkpoint-tmp: half-written. Continuing from the checkpoint before" in warning
    assert warning.rstrip().endswith(f"{tmp_path}/8")
    assert_same_run(resumed, whole)


def test_killed_while_the_first_checkpoint_was_written_the_run_begins_anew(whole, tiny_data, tmp_path, capsys):
    (tmp_path / "4.orbax-checkpoint-tmp").mkdir()
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)
    assert "half-written" in capsys.readouterr().err


def test_a_checkpoint_of_other_arrays_is_refused_not_called_damaged(tiny_data, tmp_path, monkeypatch):
    """As after an update of a library that keeps its state differently."""
    begin(tiny_data, tmp_path)
    restore = Checkpoints.restore

    def other(self, step, state, totals):
        return restore(self, step, state._replace(key=jax.numpy.zeros(4, "uint32")), totals)

    monkeypatch.setattr(Checkpoints, "restore", other)
    with pytest.raises(ResultsError, match=r"other arrays .*: state.key is uint32 \(2,\), not uint32 \(4,\)"):
        fit(LAST, tiny_data, tmp_path, devices=ONE)
    assert (tmp_path / "10").is_dir()


# ------------------------------------------------------------------------------------- other versions, devices, places


def test_a_run_that_goes_on_with_another_version_records_both(whole, tiny_data, tmp_path, monkeypatch, capsys):
    begin(tiny_data, tmp_path)
    real = jaxresnet.training.fit.backend
    monkeypatch.setattr(jaxresnet.training.fit, "backend", lambda devices: {**real(devices), "jax": "9.9.9"})
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE)
    warning = capsys.readouterr().err
    assert f"jax: '{jax.__version__}' -> '9.9.9'" in warning and "to rounding" in warning
    earlier = resumed.summary["earlier_backends"]
    assert [(b["jax"], b["step"]) for b in earlier] == [(jax.__version__, 0)]
    assert_same_run(resumed._replace(summary={**resumed.summary, "earlier_backends": []}), whole)
    saved = fit(LAST, tiny_data, tmp_path, devices=ONE)  # finished: nothing is trained with any version
    assert saved.summary["earlier_backends"] == earlier
    monkeypatch.setattr(jaxresnet.training.fit, "backend", real)
    assert fit(LAST, tiny_data, tmp_path, devices=ONE).summary["earlier_backends"] == earlier


@pytest.mark.devices(2)
def test_another_number_of_devices_is_recorded(tiny_data, tmp_path):
    begin(tiny_data, tmp_path)
    moved = fit(LAST, tiny_data, tmp_path, devices=jax.devices()[:2])
    assert [b["num_devices"] for b in moved.summary["earlier_backends"]] == [1]


def test_a_folder_that_was_moved_continues(whole, tiny_data, tmp_path):
    begin(tiny_data, tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert_same_run(fit(LAST, tiny_data, tmp_path / "there", devices=ONE), whole)


# --------------------------------------------------------------------------------------------- what breaks in between


def test_after_an_error_in_a_step_the_same_call_continues(whole, tiny_data, tmp_path):
    def breaks(epoch, images):
        if (epoch, images) == (1, 128):
            raise RuntimeError("an error in a step")

    with pytest.raises(RuntimeError, match="in a step"):
        fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=breaks)
    steps = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert len(steps) == 8, "no more than the epoch in flight was lost"
    assert_same_run(resumed, whole)


def test_a_disk_that_fills_up_costs_no_more_than_the_epoch_in_flight(whole, tiny_data, tmp_path, monkeypatch):
    save, saved = Checkpoints.save, []

    def full(self, state, totals, record, best_step):
        saved.append(int(state.step))
        if saved[-1] == 8:
            raise StorageError("a checkpoint cannot be written")
        save(self, state, totals, record, best_step)

    monkeypatch.setattr(Checkpoints, "save", full)
    with pytest.raises(StorageError):
        fit(LAST, tiny_data, tmp_path, devices=ONE)
    monkeypatch.setattr(Checkpoints, "save", save)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4"]
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)


# ------------------------------------------------------------------------------------------------------ not finite


SKIP = replace(LAST, skip_nonfinite=3)


@pytest.fixture
def bad_steps(monkeypatch):
    """A set of steps (counted over the run) that are given a learning rate that is not finite."""
    steps: set[int] = set()

    def hypers(optim, steps_per_epoch, num_epochs, epoch):
        made = epoch_hypers(optim, steps_per_epoch, num_epochs, epoch)
        rates = np.array(made.learning_rate)
        rates[[s - epoch * steps_per_epoch for s in steps if s // steps_per_epoch == epoch]] = np.inf
        return made._replace(learning_rate=rates)

    monkeypatch.setattr(jaxresnet.training.fit, "epoch_hypers", hypers)
    return steps


def test_without_a_bad_step_skipping_changes_nothing(whole, tiny_data):
    assert_same_to_rounding(fit(SKIP, tiny_data, devices=ONE).state, whole.state)


def test_bad_steps_are_skipped_and_counted(tiny_data, bad_steps):
    bad_steps |= {1, 6, 7}
    result = fit(SKIP, tiny_data, devices=ONE)
    assert [row["skipped_steps"] for row in result.history] == [1, 2, 0]
    assert result.summary["skipped_steps"] == 3
    assert int(result.state.step) == 12, "they count as steps, so that the schedule and the epochs stay where they are"
    for row in result.history:
        figures = [row[name] for name in ("train_loss", "grad_norm", "param_norm", "update_norm")]
        assert np.isfinite(figures).all(), "averages are over the steps taken"
    assert int(result.state.opt_state.count) == 9, "Lookahead's count is of the steps taken"


def test_a_skipped_step_leaves_everything_but_the_count_of_steps_as_it_was(tiny_data, bad_steps, tmp_path):
    begin(tiny_data, tmp_path / "a", SKIP, calls=3)
    bad_steps.add(3)
    begin(tiny_data, tmp_path / "b", SKIP, calls=5)
    engine = make_engine(SKIP, 256, ONE)

    def last(folder):
        with Checkpoints(folder, read_only=True) as checkpoints:
            return checkpoints.restore(checkpoints.last_step(), engine.init(0), engine.zero_totals())

    before, after = last(tmp_path / "a"), last(tmp_path / "b")
    assert (int(before.state.step), int(after.state.step)) == (3, 4)
    assert_same_bits(after.state._replace(step=before.state.step), before.state)


def test_one_bad_step_too_many_stops_the_run_at_that_step(tiny_data, bad_steps, tmp_path):
    bad_steps |= {1, 5, 6, 7}
    steps = []
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 5, the first of 3 there, more than skip_nonfinite=3"):
        fit(SKIP, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert steps[-1] == (1, 256)
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.steps() == [4], "the last good one"


def test_the_count_goes_on_after_an_interruption(tiny_data, bad_steps, tmp_path):
    """Stopped between two bad steps of one epoch."""
    bad_steps |= {1, 5, 7}
    uninterrupted = fit(SKIP, tiny_data, devices=ONE)
    begin(tiny_data, tmp_path, SKIP, calls=8)
    resumed = fit(SKIP, tiny_data, tmp_path, devices=ONE)
    assert resumed.summary["skipped_steps"] == 3
    assert_same_run(resumed, uninterrupted)


# --------------------------------------------------------------------------------------- several steps in a dispatch


@pytest.fixture
def three_steps_a_dispatch(monkeypatch):
    """As on a CPU that convolves by products of matrices: of the four steps of an epoch three, and then one."""

    def make(*args):
        engine = copy(make_engine(*args))
        engine.steps_per_dispatch = 3
        return engine

    monkeypatch.setattr(jaxresnet.training.fit, "make_engine", make)


def test_stopped_between_two_dispatches_of_an_epoch_a_run_goes_on_to_the_same_bits(
    three_steps_a_dispatch, tiny_data, tmp_path, whole
):
    uninterrupted = fit(LAST, tiny_data, devices=ONE)
    assert_same_to_rounding(uninterrupted.state, whole.state)
    begin(tiny_data, tmp_path, calls=4)  # after two dispatches, an epoch and a dispatch
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.last_step() == 7
    at = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at == [(1, 256), (2, 192), (2, 256)]
    assert_same_run(resumed, uninterrupted)


def test_a_step_within_a_dispatch_that_is_not_finite_is_named(three_steps_a_dispatch, tiny_data, bad_steps):
    bad_steps |= {5}
    at = []
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 5 \("):
        fit(LAST, tiny_data, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at[-1] == (1, 192), "nothing is begun after the dispatch that holds it"


def test_bad_steps_within_a_dispatch_are_skipped_and_counted(three_steps_a_dispatch, tiny_data, bad_steps):
    bad_steps |= {1, 6, 7}
    assert [row["skipped_steps"] for row in fit(SKIP, tiny_data, devices=ONE).history] == [1, 2, 0]
    bad_steps |= {5}
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 5, the first of 3 there, more than skip_nonfinite=3"):
        fit(SKIP, tiny_data, devices=ONE)


def test_an_epoch_without_a_single_good_step_stops_the_run(tiny_data, bad_steps):
    bad_steps |= {4, 5, 6, 7}
    with pytest.raises(NonFiniteError, match="epoch 1, step 4"):
        fit(replace(SKIP, skip_nonfinite=100), tiny_data, devices=ONE)


def test_how_many_may_be_skipped_compiles_nothing_new(tiny_data):
    assert make_engine(SKIP, 256, ONE) is make_engine(replace(SKIP, skip_nonfinite=9), 256, ONE)
    assert make_engine(SKIP, 256, ONE) is not make_engine(LAST, 256, ONE)


def test_batch_statistics_that_are_not_finite_are_noticed(tiny_data):
    """Weights so large that a variance overflows while the loss, which sees them normalised, is finite."""
    engine = make_engine(LAST, 256, ONE)
    state = engine.init(0)
    stem = state.params["conv1"] if "conv1" in state.params else state.params[next(iter(state.params))]
    huge = jax.tree.map(lambda a: a * np.float32(1e19), stem)
    params = {name: huge if value is stem else value for name, value in state.params.items()}
    placed = [jax.device_put(a[:256], state.key.sharding) for a in tiny_data.train]
    hypers = epoch_hypers(LAST.optim, 4, 3, 0)
    _, totals = engine.train_epoch(state._replace(params=params), engine.zero_totals(), hypers, *placed, 0)
    assert int(totals.bad_step) == 0
