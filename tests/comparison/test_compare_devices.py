"""A comparison with a run on each device: the same results, and all runs stop when one does."""

import signal
import threading
import time
from dataclasses import replace

import jax
import pytest
from support.tiny import RUN, contents, stop_after

from jaxresnet.comparison.compare import Hooks, compare
from jaxresnet.errors import Interrupted, StorageError
from jaxresnet.results.store import CHECKPOINTS, read_results
from jaxresnet.training import engine
from jaxresnet.training.fit import fit

pytestmark = [pytest.mark.devices(3), pytest.mark.usefixtures("a_step_a_dispatch")]
THREE = jax.devices()[:3]
# The arms differ in numbers alone, so each device compiles once.
CONFIG = replace(RUN, batch_size=48, val_size=60)  # 5 steps an epoch
ARMS = {f"lr {rate}": replace(CONFIG, optim=replace(CONFIG.optim, learning_rate=rate)) for rate in (0.002, 0.001)}


def spread(data, out, devices=THREE, **hooks):
    side_by_side = "runs" if len(devices) > 1 else "data"
    return compare(ARMS, (0, 1), data, out, name="tiny", devices=devices, spread=side_by_side, hooks=Hooks(**hooks))


@pytest.fixture(scope="module")
def alone(tiny_data, tmp_path_factory):
    """The root of results in which all runs were made on one device, one after another."""
    out = tmp_path_factory.mktemp("alone") / "out"
    spread(tiny_data, out, THREE[:1])
    return out


def checkpoints(out):
    """{(arm, seed): steps of which there is a checkpoint} of all runs that were begun."""
    runs = [run for of_arm in read_results(out / "tiny").runs.values() for run in of_arm.values()]
    return {
        (run.arm, run.seed): {int(path.name) for path in (run.folder / CHECKPOINTS).glob("[0-9]*")}
        for run in runs
        if (run.folder / CHECKPOINTS).is_dir()
    }


def test_a_run_a_device_gives_the_same_bytes_as_one_device_alone(alone, tiny_data, tmp_path, monkeypatch):
    out, used, together = tmp_path / "out", [], threading.Barrier(3)

    def noting(config, data, workdir, *, devices, **kwargs):
        used.append(devices)
        if len(used) <= 3:
            together.wait(60)  # three get here only if they run at the same time
        result = fit(config, data, workdir, devices=devices, **kwargs)
        assert {device for leaf in jax.tree.leaves(result.state) for device in leaf.devices()} == set(devices)
        return result

    monkeypatch.setattr("jaxresnet.comparison.executors.fit", noting)
    assert spread(tiny_data, out).report.complete
    assert contents(out, timed=False) == contents(alone, timed=False)
    assert len(used) == 4 and {device for (device,) in used[:3]} == set(THREE)
    assert read_results(out / "tiny").runs["lr 0.001"][1].scores["environment"]["num_devices"] == 1


def test_runs_side_by_side_on_one_device_share_what_is_compiled_and_give_the_same_bytes(
    alone, tiny_data, tmp_path, monkeypatch
):
    out, at_once, together, compiled = tmp_path / "out", [], threading.Barrier(2), []
    monkeypatch.setattr("jaxresnet.comparison.plan.num_cores", lambda: 2)
    compiler = engine.map_and_compile

    def compiling(fn, *args, **kwargs):
        compiled.append(fn)
        time.sleep(0.5)  # long enough for the other to ask for it, too
        return compiler(fn, *args, **kwargs)

    monkeypatch.setattr(engine, "map_and_compile", compiling)
    engine._train_program.cache_clear()

    def noting(*args, **kwargs):
        at_once.append(kwargs["devices"])
        if len(at_once) <= 2:
            together.wait(60)  # two get here only if they run at the same time
        return fit(*args, **kwargs)

    monkeypatch.setattr("jaxresnet.comparison.executors.fit", noting)
    assert compare(ARMS, (0, 1), tiny_data, out, name="tiny", devices=THREE[:1], spread="runs").report.complete
    assert contents(out, timed=False) == contents(alone, timed=False)
    assert at_once == [tuple(THREE[:1])] * 4 and len(compiled) <= 2, "one program for whole batches, one for the last"


def test_asked_to_stop_all_runs_stop_and_continue_to_the_same_bytes(alone, tiny_data, tmp_path):
    """First by should_stop, then by Ctrl-C: Python interrupts the thread that waits, not those that train."""
    out, pressed = tmp_path / "out", threading.Event()
    with pytest.raises(Interrupted) as told:
        spread(tiny_data, out, should_stop=stop_after(20))
    kept = sorted(str(path) for path in out.glob(f"runs/*/{CHECKPOINTS}"))
    assert kept and all(f"checkpoint in {path}" in str(told.value) for path in kept)
    assert len(read_results(out / "tiny").missing) >= 3, "a run asks 19 times in all"
    assert 0 < len(checkpoints(out)) <= 3, "the runs that waited were not begun"

    def press(arm, seed, epoch, images):
        if not pressed.is_set():
            pressed.set()
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(1)  # until it is heard

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job is not to hear it
    try:
        with pytest.raises(KeyboardInterrupt):
            spread(tiny_data, out, on_progress=press)
    finally:
        signal.signal(signal.SIGINT, before)
    assert pressed.is_set() and read_results(out / "tiny").missing
    spread(tiny_data, out)
    assert contents(out, timed=False) == contents(alone, timed=False)


def test_a_run_that_fails_stops_the_others_with_their_checkpoints_saved(alone, tiny_data, tmp_path, monkeypatch):
    out, together, ended = tmp_path / "out", threading.Barrier(3), threading.Event()

    def fail(arm, seed, rows):
        if (arm, seed, len(rows)) == ("lr 0.001", 0, 2):
            raise StorageError("no room")  # not a run's own trouble, which does not stop the others

    def ending(*args, **kwargs):
        try:
            return fit(*args, **kwargs)
        except StorageError:
            ended.set()
            raise

    def wait_for_it(arm, seed, epoch, images):
        if (arm, seed) != ("lr 0.001", 0) and (epoch, images) == (1, 96):
            assert ended.wait(60)
            time.sleep(0.5)  # until the others have been told

    monkeypatch.setattr("jaxresnet.comparison.executors.fit", ending)
    with pytest.raises(StorageError, match="no room"):
        spread(tiny_data, out, on_run=lambda *run: together.wait(60), on_epoch=fail, on_progress=wait_for_it)
    steps = checkpoints(out)
    assert set(steps) == {("lr 0.002", 0), ("lr 0.001", 0), ("lr 0.002", 1)}, "the first three and no more"
    assert 7 in steps["lr 0.002", 0] and 7 in steps["lr 0.002", 1], "in the middle of the second epoch"
    assert 10 in steps["lr 0.001", 0], "the epoch before it failed is safe"
    assert read_results(out / "tiny").failures == {}, "it is everyone's trouble"
    spread(tiny_data, out)
    assert contents(out, timed=False) == contents(alone, timed=False)
