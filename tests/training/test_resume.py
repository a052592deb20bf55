"""Runs that are damaged, break or meet numbers that are not finite: what is taken up again, and what is said."""

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
    script_scores,
    stop_after,
    without_times,
)

import jaxresnet.training.fit
from jaxresnet.errors import NonFiniteError, ResultsError, StorageError
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training import checkpoint, engine
from jaxresnet.training.checkpoint import saved_steps
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import Interrupted, fit
from jaxresnet.training.state import weights_of

ONE = jax.devices()[:1]
LAST = replace(STEADY, selection="last")  # 4 steps an epoch, 3 epochs
LONG = replace(RUN, num_epochs=5)


@pytest.fixture(scope="module")
def whole(tiny_data):
    """The run that is never interrupted."""
    return fit(LAST, tiny_data, devices=ONE)


def begin(data, folder, config=LAST, calls=10):
    """Train until should_stop has been asked `calls` times: after each step and, in place of the last, each epoch. With
    10, until two steps of the last epoch are done."""
    with pytest.raises(Interrupted):
        fit(config, data, folder, devices=ONE, should_stop=stop_after(calls))


def damage(folder, step, what="state"):
    path = folder / str(step) / "record.json"
    if what != "record":
        path = max((folder / str(step) / what).rglob("d/*"), key=lambda p: p.stat().st_size)
    data = path.read_bytes()
    path.write_bytes(data[:-100])


def restored(folder, config=LAST):
    programs = make_engine(config, 256, ONE)
    state = engine.init_state(programs, 0)
    like = checkpoint.Saved(state, engine.init_totals(programs), weights_of(state), checkpoint.Record({}, {}))
    return checkpoint.restore(folder, saved_steps(folder)[0], like)


# ---------------------------------------------------------------------------------------------- damaged checkpoints


@pytest.mark.parametrize("what", ["state", "best", "record"])
def test_the_checkpoint_before_a_damaged_one_is_used(whole, tiny_data, tmp_path, capsys, what):
    begin(tiny_data, tmp_path)
    assert saved_steps(tmp_path) == [10, 8]
    damage(tmp_path, 10, what)
    steps = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert len(steps) == 4, "from step 8 on"
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/10") and f"kept as {tmp_path}/damaged-10" in warning
    assert f"Continuing from the checkpoint before, {tmp_path}/8" in warning
    assert_same_run(resumed, whole)
    assert (tmp_path / "damaged-10").is_dir(), "nothing is thrown away"


def test_with_no_checkpoint_left_the_run_begins_anew_only_if_told_to(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    damage(tmp_path, 10)
    damage(tmp_path, 8, "record")
    for reason in (r"8/record\.json, line .*: cut off", "damaged-8: set aside before"):  # however often it is tried
        with pytest.raises(ResultsError, match=f"no checkpoint to continue from .*/{reason}.*--restart"):
            fit(LAST, tiny_data, tmp_path, devices=ONE)
        assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["damaged-10", "damaged-8"]
    again = fit(LAST, tiny_data, tmp_path, devices=ONE, restart=True)
    assert_same_run(again, whole)
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)


def test_restart_keeps_what_is_whole(tiny_data, tmp_path):
    begin(tiny_data, tmp_path)
    steps = []
    fit(LAST, tiny_data, tmp_path, devices=ONE, restart=True, on_progress=lambda *at: steps.append(at))
    assert len(steps) == 2


def test_what_was_half_written_is_named_and_the_one_before_used(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    (tmp_path / "10" / "record.json").unlink()
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE)
    warning = capsys.readouterr().err
    assert f"{tmp_path}/10: half-written. Continuing from the checkpoint before, {tmp_path}/8" in warning
    assert_same_run(resumed, whole)


def test_killed_while_the_first_checkpoint_was_written_the_run_begins_anew(whole, tiny_data, tmp_path, capsys):
    (tmp_path / "4" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)
    assert "half-written. There is no checkpoint before" in capsys.readouterr().err


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
    monkeypatch.setattr(jaxresnet.training.fit, "backend", real)
    finished = fit(LAST, tiny_data, tmp_path, devices=ONE)  # nothing is trained with any version
    assert finished.summary["earlier_backends"] == earlier


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
    save = checkpoint.save

    def full(folder, saved):
        if int(saved.state.step) == 8:
            raise StorageError("a checkpoint cannot be written")
        save(folder, saved)

    monkeypatch.setattr(checkpoint, "save", full)
    with pytest.raises(StorageError):
        fit(LAST, tiny_data, tmp_path, devices=ONE)
    monkeypatch.setattr(checkpoint, "save", save)
    assert saved_steps(tmp_path) == [4]
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)


# ------------------------------------------------------------- an epoch that takes less time than its checkpoint


@pytest.fixture
def accelerator(monkeypatch):
    """An epoch is a dispatch. Returns a function that sets CHECKPOINT_EVERY."""
    make = engine.make_engine
    monkeypatch.setattr(engine, "make_engine", lambda *args: make(*args)._replace(platform="tpu", steps_per_dispatch=4))
    return lambda every: monkeypatch.setattr(jaxresnet.training.fit, "CHECKPOINT_EVERY", every)


NEVER, ALWAYS = 1e9, 0.0


@pytest.mark.parametrize("every, expected", [(NEVER, [4, 4, 4, 4, 20]), (ALWAYS, [4, 8, 12, 16, 20])])
def test_the_first_and_the_last_epoch_always_have_a_checkpoint(accelerator, tiny_data, tmp_path, every, expected):
    accelerator(every)
    seen = []
    fit(LONG, tiny_data, tmp_path, devices=ONE, on_epoch=lambda _: seen.append(saved_steps(tmp_path)[0]))
    assert seen == expected


@pytest.mark.parametrize("accuracies, best", [([1, 5, 2, 2, 2], 1), ([9, 1, 1, 1, 1], 0), ([1, 2, 3, 4, 5], 4)])
def test_the_chosen_epoch_is_kept_in_between(accelerator, tiny_data, tmp_path, monkeypatch, accuracies, best):
    results = []
    for every in (ALWAYS, NEVER):
        accelerator(every)
        with monkeypatch.context() as patch:
            scored = script_scores(patch, val=accuracies, test=[50] * 9)
            results.append(fit(LONG, tiny_data, tmp_path / str(every), devices=ONE))
        for (path, a), (_, b) in zip(scored[best][1], scored[-1][1], strict=True):
            assert a.tobytes() == b.tobytes(), path
    often, rare = results
    assert rare.summary["best_epoch"] == best
    assert_same_run(rare, often)


def test_a_stop_and_a_crash_lose_nothing_that_is_not_repeated(accelerator, tiny_data, tmp_path):
    def crash(history):
        if len(history) == 4:
            raise MemoryError

    accelerator(NEVER)
    whole = fit(LONG, tiny_data, devices=ONE)
    with pytest.raises(Interrupted):
        fit(LONG, tiny_data, tmp_path / "stopped", devices=ONE, should_stop=stop_after(3))
    assert saved_steps(tmp_path / "stopped") == [12, 4]
    with pytest.raises(MemoryError):
        fit(LONG, tiny_data, tmp_path / "crashed", devices=ONE, on_epoch=crash)
    assert saved_steps(tmp_path / "crashed") == [4]
    for name in ("stopped", "crashed"):
        assert_same_run(fit(LONG, tiny_data, tmp_path / name, devices=ONE), whole)


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


@pytest.fixture
def three_steps_a_dispatch(monkeypatch):
    """As on a CPU that convolves by products of matrices: of the four steps of an epoch three, and then one."""
    make = engine.make_engine
    monkeypatch.setattr(engine, "make_engine", lambda *args: make(*args)._replace(steps_per_dispatch=3))


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
    begin(tiny_data, tmp_path / "a", SKIP, calls=2)
    bad_steps.add(2)
    begin(tiny_data, tmp_path / "b", SKIP, calls=3)
    before, after = restored(tmp_path / "a", SKIP), restored(tmp_path / "b", SKIP)
    assert (int(before.state.step), int(after.state.step)) == (2, 3)
    assert_same_bits(after.state._replace(step=before.state.step), before.state)


def test_one_bad_step_too_many_stops_the_run_at_that_step(tiny_data, bad_steps, tmp_path):
    bad_steps |= {1, 5, 6, 7}
    steps = []
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 5, the first of 3 there, more than skip_nonfinite=3"):
        fit(SKIP, tiny_data, tmp_path, devices=ONE, on_progress=lambda *at: steps.append(at))
    assert steps[-1] == (1, 256)
    assert saved_steps(tmp_path) == [4], "the last good one"


def test_the_count_goes_on_after_an_interruption(tiny_data, bad_steps, tmp_path):
    """Stopped between two bad steps of one epoch."""
    bad_steps |= {1, 5, 7}
    uninterrupted = fit(SKIP, tiny_data, devices=ONE)
    begin(tiny_data, tmp_path, SKIP, calls=6)
    resumed = fit(SKIP, tiny_data, tmp_path, devices=ONE)
    assert resumed.summary["skipped_steps"] == 3
    assert_same_run(resumed, uninterrupted)


def test_an_epoch_without_a_single_good_step_stops_the_run(tiny_data, bad_steps):
    bad_steps |= {4, 5, 6, 7}
    with pytest.raises(NonFiniteError, match="epoch 1, step 4, and so in every step of it"):
        fit(replace(SKIP, skip_nonfinite=100), tiny_data, devices=ONE)


def test_stopped_between_two_dispatches_a_run_goes_on_to_the_same_bits(three_steps_a_dispatch, tiny_data, tmp_path):
    uninterrupted = fit(LAST, tiny_data, devices=ONE)
    begin(tiny_data, tmp_path, calls=3)  # after an epoch and a dispatch
    assert saved_steps(tmp_path)[0] == 7
    at = []
    resumed = fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at == [(1, 256), (2, 192), (2, 256)]
    assert list(map(without_times, resumed.history)) == list(map(without_times, uninterrupted.history))
    assert_same_run(resumed, uninterrupted)


def test_bad_steps_within_a_dispatch_are_skipped_counted_and_named(three_steps_a_dispatch, tiny_data, bad_steps):
    bad_steps |= {1, 6, 7}
    assert [row["skipped_steps"] for row in fit(SKIP, tiny_data, devices=ONE).history] == [1, 2, 0]
    bad_steps |= {5}
    with pytest.raises(NonFiniteError, match=r"epoch 1, step 5, the first of 3 there, more than skip_nonfinite=3"):
        fit(SKIP, tiny_data, devices=ONE)
    at = []
    with pytest.raises(NonFiniteError, match=r"epoch 0, step 1 \("):
        fit(LAST, tiny_data, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at == [(0, 192)], "nothing is begun after the dispatch that holds it"
