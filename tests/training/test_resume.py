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
)

import jaxresnet.training.fit
from jaxresnet.errors import Interrupted, NonFiniteError, ResultsError
from jaxresnet.optim.schedules import epoch_hypers
from jaxresnet.training import checkpoint, engine
from jaxresnet.training.checkpoint import saved_steps
from jaxresnet.training.engine import make_engine
from jaxresnet.training.fit import fit
from jaxresnet.training.state import weights_of

pytestmark = pytest.mark.usefixtures("a_step_a_dispatch")
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


def fit_telling(config, data, folder=None, **kwargs):
    """(result, [(epoch, images done in it), ...] of every dispatch)."""
    told = []
    return fit(config, data, folder, devices=ONE, on_progress=lambda *at: told.append(at), **kwargs), told


def damage(folder, step, what="state"):
    path = folder / str(step) / "record.json"
    if what != "record":
        path = max((folder / str(step) / what).rglob("d/*"), key=lambda p: p.stat().st_size)
    path.write_bytes(path.read_bytes()[:-100])


# ---------------------------------------------------------------------------------------------- damaged checkpoints


def test_the_checkpoint_before_a_damaged_one_is_used(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    assert saved_steps(tmp_path) == [10, 8]
    damage(tmp_path, 10)
    resumed, told = fit_telling(LAST, tiny_data, tmp_path)
    assert len(told) == 4, "from step 8 on"
    warning = capsys.readouterr().err
    assert warning.startswith(f"warning: {tmp_path}/10") and f"kept as {tmp_path}/damaged-10" in warning
    assert f"Continuing from the checkpoint before, {tmp_path}/8" in warning
    assert_same_run(resumed, whole)
    assert (tmp_path / "damaged-10").is_dir(), "nothing is thrown away"


def test_with_no_checkpoint_left_the_run_begins_anew_only_if_told_to(whole, tiny_data, tmp_path):
    begin(tiny_data, tmp_path)
    damage(tmp_path, 10, "best")
    damage(tmp_path, 8, "record")
    for reason in (r"8/record\.json, line .*: cut off", "damaged-8: set aside before"):  # however often it is tried
        with pytest.raises(ResultsError, match=f"no checkpoint to continue from .*/{reason}.*--restart"):
            fit(LAST, tiny_data, tmp_path, devices=ONE)
        assert sorted(p.name for p in tmp_path.glob("[!.]*")) == ["damaged-10", "damaged-8"]
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE, restart=True), whole)
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)


def test_what_was_half_written_is_named_and_a_restart_keeps_what_is_whole(whole, tiny_data, tmp_path, capsys):
    begin(tiny_data, tmp_path)
    (tmp_path / "10" / "record.json").unlink()
    resumed, told = fit_telling(LAST, tiny_data, tmp_path, restart=True)
    assert len(told) == 4, "from step 8 on"
    warning = capsys.readouterr().err
    assert f"{tmp_path}/10: half-written. Continuing from the checkpoint before, {tmp_path}/8" in warning
    assert_same_run(resumed, whole)


def test_killed_while_the_first_checkpoint_was_written_the_run_begins_anew(whole, tiny_data, tmp_path, capsys):
    (tmp_path / "4" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert_same_run(fit(LAST, tiny_data, tmp_path, devices=ONE), whole)
    assert "half-written. There is no checkpoint before" in capsys.readouterr().err


# ------------------------------------------------------------------------- other versions and places, and what breaks


def test_a_run_that_goes_on_elsewhere_records_both_versions(whole, tiny_data, tmp_path, monkeypatch, capsys):
    begin(tiny_data, tmp_path / "here")
    folder = (tmp_path / "here").rename(tmp_path / "there")
    real = jaxresnet.training.fit.backend
    monkeypatch.setattr(jaxresnet.training.fit, "backend", lambda devices: {**real(devices), "jax": "9.9.9"})
    resumed = fit(LAST, tiny_data, folder, devices=ONE)
    warning = capsys.readouterr().err
    assert f"jax: '{jax.__version__}' -> '9.9.9'" in warning and "to rounding" in warning
    earlier = resumed.summary["earlier_backends"]
    assert [(b["jax"], b["step"]) for b in earlier] == [(jax.__version__, 0)]
    assert_same_run(resumed._replace(summary={**resumed.summary, "earlier_backends": []}), whole)
    monkeypatch.setattr(jaxresnet.training.fit, "backend", real)
    finished = fit(LAST, tiny_data, folder, devices=ONE)  # nothing is trained with any version
    assert finished.summary["earlier_backends"] == earlier


@pytest.mark.parametrize("where", ["in a step", "when its checkpoint is written"])
def test_what_breaks_in_an_epoch_costs_no_more_than_that_epoch(whole, tiny_data, tmp_path, monkeypatch, where):
    save = checkpoint.save

    def step(*at):
        if where == "in a step" and at == (1, 128):
            raise RuntimeError(where)

    def full(folder, saved):
        if where != "in a step" and int(saved.state.step) == 8:
            raise RuntimeError(where)
        save(folder, saved)

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match=where):
        patch.setattr(checkpoint, "save", full)
        fit(LAST, tiny_data, tmp_path, devices=ONE, on_progress=step)
    assert saved_steps(tmp_path) == [4]
    resumed, told = fit_telling(LAST, tiny_data, tmp_path)
    assert len(told) == 8
    assert_same_run(resumed, whole)


# ------------------------------------------------------------- an epoch that takes less time than its checkpoint


NEVER, ALWAYS = 1e9, 0.0


@pytest.fixture
def accelerator(monkeypatch):
    """Returns a function that sets CHECKPOINT_EVERY. Steps are dispatched one by one, as convolutions in a loop would
    take their time here."""
    make = engine.make_engine
    monkeypatch.setattr(engine, "make_engine", lambda *args: make(*args)._replace(platform="tpu"))
    return lambda every: monkeypatch.setattr(jaxresnet.training.fit, "CHECKPOINT_EVERY", every)


def test_first_last_and_chosen_epochs_are_kept_however_rare_checkpoints_are(
    accelerator, tiny_data, tmp_path, monkeypatch
):
    results = []
    for every, expected in ((ALWAYS, [4, 8, 12, 16, 20]), (NEVER, [4, 4, 4, 4, 20])):
        accelerator(every)
        folder, seen = tmp_path / str(every), []
        with monkeypatch.context() as patch:
            scored = script_scores(patch, val=[1, 5, 2, 2, 2], test=[50])
            tell = {"on_epoch": lambda _, seen=seen, folder=folder: seen.append(saved_steps(folder)[0])}
            results.append(fit(LONG, tiny_data, folder, devices=ONE, **tell))
        assert seen == expected
        assert_same_bits(dict(scored[1][1]), dict(scored[-1][1]))
    often, rare = results
    assert rare.summary["best_epoch"] == 1
    assert_same_run(rare, often)


def test_a_stop_and_a_crash_lose_nothing_that_is_not_repeated(accelerator, tiny_data, tmp_path):
    def crash(history):
        if len(history) == 4:
            raise MemoryError

    accelerator(NEVER)
    whole = fit(LONG, tiny_data, devices=ONE)
    begin(tiny_data, tmp_path / "stopped", LONG, calls=12)
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


def test_without_a_bad_step_skipping_changes_nothing(whole, tiny_data):
    assert_same_to_rounding(fit(SKIP, tiny_data, devices=ONE).state, whole.state)


def test_bad_steps_are_skipped_and_counted_over_an_interruption_too(tiny_data, bad_steps, tmp_path):
    bad_steps |= {1, 5, 7}
    result = fit(SKIP, tiny_data, devices=ONE)
    assert [row["skipped_steps"] for row in result.history] == [1, 2, 0]
    assert result.summary["skipped_steps"] == 3
    assert int(result.state.step) == 12, "they count as steps, so that the schedule and the epochs stay where they are"
    for row in result.history:
        figures = [row[name] for name in ("train_loss", "grad_norm", "param_norm", "update_norm")]
        assert np.isfinite(figures).all(), "averages are over the steps taken"
    assert int(result.state.opt_state.count) == 9, "Lookahead's count is of the steps taken"
    begin(tiny_data, tmp_path, SKIP, calls=6)  # between two bad steps of one epoch
    assert_same_run(fit(SKIP, tiny_data, tmp_path, devices=ONE), result)


def test_a_skipped_step_leaves_everything_but_the_count_of_steps_as_it_was(tiny_data, bad_steps, tmp_path):
    bad_steps.add(2)
    programs = make_engine(SKIP, 256, ONE)
    state = engine.unpacked(programs, engine.init_state(programs, 0))
    like = checkpoint.Saved(state, engine.init_totals(programs), weights_of(state), None)
    for calls in (2, 1):
        begin(tiny_data, tmp_path, SKIP, calls)
    before, after = (checkpoint.restore(tmp_path, step, like).state for step in (2, 3))
    assert_same_bits(after._replace(step=before.step), before)


def test_one_bad_step_too_many_stops_the_run_at_that_step(tiny_data, bad_steps, tmp_path):
    bad_steps |= {1, 5, 6, 7}
    at = []
    with pytest.raises(
        NonFiniteError,
        match=r"epoch 2, step 2 of 4, the first of 3 in it, after 1 in those before: more than skip_nonfinite=3",
    ):
        fit(SKIP, tiny_data, tmp_path, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at[-1] == (1, 256)
    assert saved_steps(tmp_path) == [4], "the last good one"
    bad_steps.add(4)
    with pytest.raises(NonFiniteError, match="epoch 2, step 1 of 4, and so in every step of it"):
        fit(replace(SKIP, skip_nonfinite=100), tiny_data, devices=ONE)


def test_among_steps_of_one_dispatch_bad_ones_are_told_apart_and_a_stop_between_dispatches_keeps_every_bit(
    tiny_data, bad_steps, tmp_path, monkeypatch
):
    """As on a CPU: of the four steps of an epoch three, and then one."""
    make = engine.make_engine
    monkeypatch.setattr(engine, "make_engine", lambda *args: make(*args)._replace(steps_per_dispatch=3))
    bad_steps |= {1, 6, 7}
    uninterrupted = fit(SKIP, tiny_data, devices=ONE)
    assert [row["skipped_steps"] for row in uninterrupted.history] == [1, 2, 0]
    begin(tiny_data, tmp_path, SKIP, calls=3)  # after an epoch and a dispatch
    assert saved_steps(tmp_path)[0] == 7
    resumed, told = fit_telling(SKIP, tiny_data, tmp_path)
    assert told == [(1, 256), (2, 192), (2, 256)]
    assert_same_run(resumed, uninterrupted)
    bad_steps.add(5)
    at = []
    with pytest.raises(
        NonFiniteError,
        match=r"epoch 2, step 2 of 4, the first of 2 in it, after 1 in those before: more than skip_nonfinite=2",
    ):
        fit(replace(SKIP, skip_nonfinite=2), tiny_data, devices=ONE, on_progress=lambda *where: at.append(where))
    assert at == [(0, 192), (0, 256), (1, 192)], "nothing is begun after the dispatch that holds them"
