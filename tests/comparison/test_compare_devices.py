"""A comparison with a run on each device: the same results, and all runs stop when one does."""

import signal
import threading
import time
from dataclasses import replace

import jax
import pytest
from support.tiny import STEADY, TIMES, contents, stop_after

from jaxresnet.comparison.compare import Hooks, compare
from jaxresnet.errors import StorageError
from jaxresnet.results.store import CHECKPOINTS, read_results
from jaxresnet.training.fit import Interrupted, fit

pytestmark = pytest.mark.devices(3)
ONE, THREE = jax.devices()[:1], jax.devices()[:3]
# Batches that three devices can share; the arms differ in numbers alone, so each set of devices compiles once.
SHARED = replace(STEADY, batch_size=48, val_size=60)  # 5 steps an epoch
SPREAD_ARMS = {"lr 2e-3": SHARED, "lr 1e-3": replace(SHARED, optim=replace(SHARED.optim, learning_rate=1e-3))}
SPREAD_SEEDS = (0, 1)


def spread(data, out, devices=THREE, how="runs", arms=SPREAD_ARMS, seeds=SPREAD_SEEDS, **hooks):
    return compare(arms, seeds, data, out, name="tiny", devices=devices, spread=how, hooks=Hooks(**hooks))


@pytest.fixture(scope="module")
def alone(tiny_data, tmp_path_factory):
    """The root of results in which all runs were made on one device, one after another."""
    out = tmp_path_factory.mktemp("alone") / "out"
    spread(tiny_data, out, ONE)
    return out


def checkpoints(out):
    """{(arm, seed): steps of which there is a checkpoint} of all runs that were begun."""
    found = {}
    for arm, runs in read_results(out / "tiny").runs.items():
        for seed, run in runs.items():
            if (run.folder / CHECKPOINTS).is_dir():
                found[arm, seed] = {int(p.name) for p in (run.folder / CHECKPOINTS).iterdir() if p.name.isdigit()}
    return found


class Recorder:
    """Stands in for `fit`: notes which runs are on which devices, and calls the real one."""

    def __init__(self, monkeypatch, together=1):
        self.lock = threading.Lock()
        self.devices, self.busy, self.ended = {}, set(), {}
        self.barrier = threading.Barrier(together)
        monkeypatch.setattr("jaxresnet.comparison.executors.fit", self)

    def __call__(self, config, data, workdir, *, devices, **kwargs):
        with self.lock:
            assert not self.busy & set(devices), "a device has two runs at once"
            self.busy |= set(devices)
            (arm,) = (arm for arm, arms in SPREAD_ARMS.items() if arms.optim == config.optim)
            self.devices[arm, config.seed] = devices
            first = len(self.devices) <= self.barrier.parties
        if first:
            self.barrier.wait(60)  # as many as there are devices get here only if they run at the same time
        try:
            result = fit(config, data, workdir, devices=devices, **kwargs)
            on = {device for leaf in jax.tree.leaves(result.state) for device in leaf.devices()}
            assert on == set(devices)
            return result
        finally:
            with self.lock:
                self.busy -= set(devices)
            self.ended.setdefault((arm, config.seed), threading.Event()).set()


def test_a_run_a_device_gives_the_same_bytes_as_one_device_alone(alone, tiny_data, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch, together=3)
    out = tmp_path / "out"
    assert spread(tiny_data, out).report.complete
    assert contents(out, timed=False) == contents(alone, timed=False)
    assert len(recorder.devices) == 4 and all(len(devices) == 1 for devices in recorder.devices.values())
    assert {device for (device,) in recorder.devices.values()} == set(THREE)
    assert read_results(out / "tiny").runs["lr 1e-3"][1].scores["environment"]["num_devices"] == 1


def test_sharing_batches_gives_the_same_to_rounding(alone, tiny_data, tmp_path, monkeypatch):
    recorder = Recorder(monkeypatch)
    out = tmp_path / "out"
    spread(tiny_data, out, how="data")
    assert set(recorder.devices.values()) == {tuple(THREE)}
    one, several = read_results(alone / "tiny"), read_results(out / "tiny")
    for arm, seed in ((arm, seed) for arm in SPREAD_ARMS for seed in SPREAD_SEEDS):
        a, b = one.runs[arm][seed], several.runs[arm][seed]
        assert a.scores["environment"]["num_devices"] == 1 and b.scores["environment"]["num_devices"] == 3
        for row, other in ((a.scores, b.scores), *zip(a.rows, b.rows, strict=True)):
            numbers = {name: value for name, value in row.items() if isinstance(value, float) and name not in TIMES}
            assert row.keys() == other.keys() and len(numbers) >= 3
            assert {name: other[name] for name in numbers} == pytest.approx(numbers, rel=1e-4)
    assert one.runs["lr 2e-3"][0].scores["test_loss"] != one.runs["lr 1e-3"][0].scores["test_loss"]


def test_asked_to_stop_all_runs_stop_and_continue_to_the_same_bytes(alone, tiny_data, tmp_path):
    """First by should_stop, then by Ctrl-C: Python interrupts the thread that waits, not those that train."""
    out, pressed = tmp_path / "out", threading.Event()
    with pytest.raises(Interrupted, match=str(out)):
        spread(tiny_data, out, should_stop=stop_after(20))
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
    out = tmp_path / "out"
    recorder = Recorder(monkeypatch, together=3)
    recorder.ended["lr 1e-3", 0] = ended = threading.Event()

    def fail(arm, seed, rows):
        if (arm, seed, len(rows)) == ("lr 1e-3", 0, 2):
            raise StorageError("no room")  # not a run's own trouble, which does not stop the others

    def wait_for_it(arm, seed, epoch, images):
        if (arm, seed) != ("lr 1e-3", 0) and (epoch, images) == (1, 96):
            assert ended.wait(60)
            time.sleep(0.5)  # until the others have been told

    with pytest.raises(StorageError, match="no room"):
        spread(tiny_data, out, on_epoch=fail, on_progress=wait_for_it)
    steps = checkpoints(out)
    assert set(steps) == {("lr 2e-3", 0), ("lr 1e-3", 0), ("lr 2e-3", 1)}, "the first three and no more"
    for seed in (0, 1):
        assert 7 in steps["lr 2e-3", seed], "in the middle of the second epoch"
    assert 10 in steps["lr 1e-3", 0], "the epoch before it failed is safe"
    assert len(read_results(out / "tiny").missing) == 4
    spread(tiny_data, out)
    assert contents(out, timed=False) == contents(alone, timed=False)
