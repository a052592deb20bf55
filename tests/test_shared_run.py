"""A run that several processes share: its checkpoints, and how copies that have parted are noticed. What several
processes do with it is in test_launch.py; here is one, which calls the same code."""

import jax
import numpy as np
import pytest
from support.tiny import RUN, assert_same_bits, collect_garbage

import jaxresnet.training.shared_run as module
from jaxresnet.errors import ConfigError
from jaxresnet.training.checkpoint import Checkpoints, DamagedError
from jaxresnet.training.engine import make_engine
from jaxresnet.training.shared_run import SharedCheckpoints, agreed, check_copies, check_processes, open_checkpoints

pytestmark = pytest.mark.devices(2)
DEVICES = tuple(jax.devices()[:2])


@pytest.fixture(autouse=True)
def leave_no_abandoned_reads():
    yield
    collect_garbage()


@pytest.fixture(scope="module")
def engine():
    return make_engine(RUN, 256, DEVICES)


def shared(folder):
    checkpoints = SharedCheckpoints(folder, DEVICES)
    return checkpoints, checkpoints.own()


def test_it_has_what_checkpoints_have(tmp_path):
    """The train loop uses either."""
    with Checkpoints(tmp_path) as own:
        names = {name for name in dir(own) if not name.startswith("_")}
    checkpoints, opened = shared(tmp_path)
    with opened:
        assert names <= set(dir(checkpoints))
        for name in names:
            assert callable(getattr(checkpoints, name)) == callable(getattr(own, name)), name


def test_what_is_saved_is_restored_by_either(engine, tmp_path):
    state, totals = engine.init(3), engine.zero_totals()
    record = {"config": {}, "best_step": None, "history": [1.5, None, "x"]}
    checkpoints, opened = shared(tmp_path)
    with opened:
        checkpoints.save(state, totals, record, None)
        assert checkpoints.steps() == [0] and checkpoints.record(0) == record
        saved = checkpoints.restore(0, engine.init(0), totals)
    assert_same_bits(saved.state, state)
    assert_same_bits(saved.totals, totals)
    assert saved.record == record and saved.state.step.sharding == state.step.sharding
    with open_checkpoints(tmp_path, DEVICES) as own:
        assert isinstance(own, Checkpoints)
        assert_same_bits(own.restore(0, engine.init(0), totals).state, state)


def test_a_checkpoint_of_one_process_is_restored(engine, tmp_path):
    state, totals = engine.init(3), engine.zero_totals()
    with Checkpoints(tmp_path) as own:
        own.save(state, totals, {"config": {}}, None)
    checkpoints, opened = shared(tmp_path)
    with opened:
        assert_same_bits(checkpoints.restore(0, engine.init(0), totals).state, state)


def test_a_damaged_one_is_refused_and_set_aside(engine, tmp_path):
    state, totals = engine.init(3), engine.zero_totals()
    checkpoints, opened = shared(tmp_path)
    with opened:
        checkpoints.save(state, totals, {"config": {}}, None)
        for path in (tmp_path / "0").rglob("d/*"):
            path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises(DamagedError):
            checkpoints.restore(0, state, totals)
        checkpoints.set_aside(0, "cut")
        assert checkpoints.steps() == [] and "cut; kept as damaged-0" in checkpoints.damaged[0]


def test_any_one_stops_all(monkeypatch):
    assert agreed(lambda: True)() is True and agreed(lambda: False)() is False
    monkeypatch.setattr(module, "gather", lambda mine: [mine, True])
    assert agreed(lambda: False)() is True


def test_copies_that_have_parted_are_noticed(engine, monkeypatch):
    told = []
    monkeypatch.setattr(module, "several", lambda: True)
    monkeypatch.setattr(module, "check_same", lambda what, value: told.append((what, value["crc32"])))
    state = engine.init(0)
    kernel = state.params["fc"]["kernel"] if "fc" in state.params else jax.tree.leaves(state.params)[-1]
    other = np.asarray(kernel).copy()
    other.view(np.uint32).flat[0] ^= 1  # the last bit of one number
    parted = jax.tree.map(lambda a: jax.device_put(other, a.sharding) if a is kernel else a, state)
    for one in (state, engine.init(0), parted):
        check_copies(one)
    assert told[0] == told[1] and told[0][1] != told[2][1] and "after step 0" in told[0][0]


def test_a_run_is_for_all_processes(tiny_data, monkeypatch):
    check_processes(RUN, tiny_data, DEVICES)
    monkeypatch.setattr(module, "several", lambda: True)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    with pytest.raises(ConfigError, match="all 2 processes must share a run, these are of 1"):
        check_processes(RUN, tiny_data, DEVICES)
