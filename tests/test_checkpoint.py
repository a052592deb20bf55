"""What is saved comes back bit for bit, last and best stay, and a damaged or half-written checkpoint is named."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import assert_same_bits, collect_garbage

from jaxresnet.checkpoint import Checkpoints
from jaxresnet.errors import ResultsError
from jaxresnet.metrics import zero_totals
from jaxresnet.parallel import replicate
from jaxresnet.state import TrainState

RECORD = {"config": {"optim": {"eps": 1e-08}, "stage_sizes": [1, 1]}, "history": [{"val_loss": None}], "seconds": 0.1}


@pytest.fixture(autouse=True)
def leave_no_abandoned_reads():
    yield
    collect_garbage()


def make_state(step, num_devices=1):
    """A state of every dtype that a train state has, with numbers that text or a cast would not keep."""
    rng = np.random.default_rng(step)
    stats = {"mean": rng.normal(size=3).astype(np.float32), "var": np.float32([1e-45, 3.4e38, 1 / 3])}
    state = TrainState(
        step=np.int32(step),
        params={"stages": {"0": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)}}},
        batch_stats=stats,
        slow_batch_stats={},
        opt_state=(np.int32(step), (), {"mu": np.float32([-0.0, 1e-30])}),
        key=np.uint32([2**32 - 1, step]),
    )
    return replicate(jax.tree.map(jnp.asarray, state), tuple(jax.devices()[:num_devices]))


def steps_on_disk(folder):
    return sorted(int(p.name) for p in folder.iterdir() if p.is_dir())


def test_round_trip_keeps_every_bit(tmp_path):
    state, totals = make_state(7), zero_totals()._replace(norms=jnp.float32([1, 2, 3]))
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        assert checkpoints.last_step() is None
        checkpoints.save(state, totals, RECORD, best_step=None)
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:  # as a later process would
        assert checkpoints.last_step() == 7
        saved = checkpoints.restore(7, make_state(0), zero_totals())
        assert checkpoints.record(7) == RECORD
    assert saved.record == RECORD
    assert_same_bits(saved.state, state)
    assert_same_bits(saved.totals, totals)


def test_a_checkpoint_does_not_know_how_many_devices_wrote_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3, num_devices=8), zero_totals(), RECORD, None)
        saved = checkpoints.restore(3, make_state(0), zero_totals())
    assert_same_bits(saved.state, make_state(3))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(saved.state))


def test_last_and_best_stay_and_nothing_else(tmp_path):
    best_steps = {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 4}
    with Checkpoints(tmp_path) as checkpoints:
        for step, best in best_steps.items():
            checkpoints.save(make_state(step), zero_totals(), RECORD, best)
            assert steps_on_disk(tmp_path) == sorted({best, step})
        assert_same_bits(checkpoints.restore(4, make_state(0), zero_totals()).state, make_state(4))
    with Checkpoints(tmp_path) as checkpoints:  # a new process knows what to keep as well
        checkpoints.save(make_state(8), zero_totals(), RECORD, 4)
    assert steps_on_disk(tmp_path) == [4, 8]


def test_saving_a_step_again_changes_nothing(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(1), zero_totals(), RECORD, 1)
        checkpoints.save(make_state(1), zero_totals(), {"other": 1}, 1)
        assert checkpoints.record(1) == RECORD


def test_a_half_written_checkpoint_is_ignored(tmp_path):
    """Killed while writing: Orbax leaves a folder of a temporary name, without the file that marks it whole."""
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
    half = tmp_path / "9.orbax-checkpoint-tmp"
    half.mkdir()
    (half / "state").write_bytes(b"half")
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.last_step() == 5
        assert_same_bits(checkpoints.restore(5, make_state(0), zero_totals()).state, make_state(5))
        checkpoints.save(make_state(9), zero_totals(), RECORD, None)
        assert_same_bits(checkpoints.restore(9, make_state(0), zero_totals()).state, make_state(9))


def data_files(folder):
    return [p for p in folder.rglob("*") if p.is_file() and p.stat().st_size]


@pytest.mark.parametrize("damage", ["truncated", "overwritten", "deleted"])
def test_a_damaged_checkpoint_is_named_with_the_remedy(tmp_path, damage):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
    arrays = [p for p in data_files(tmp_path / "5") if "/d/" in p.as_posix()]
    assert arrays, "Orbax keeps the numbers of the arrays in folders d"
    for path in arrays:
        if damage == "deleted":
            path.unlink()
        elif damage == "truncated":
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        else:
            path.write_bytes(b"\xff" * path.stat().st_size)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ResultsError, match=r"/5: .*Delete that folder"):
        checkpoints.restore(5, make_state(0), zero_totals())


def test_arrays_of_another_shape_are_refused(tmp_path):
    other = make_state(0)._replace(params={"stages": {"0": {"kernel": jnp.zeros((3, 3, 2, 5))}}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
        with pytest.raises(ResultsError, match="cannot be read"):
            checkpoints.restore(5, other, zero_totals())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(tmp_path) as foreign:
        foreign.save(3, {"weights": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ResultsError, match="not a checkpoint of jaxresnet"):
        checkpoints.record(3)


def test_an_empty_folder_in_place_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "12").mkdir()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ResultsError, match="/12: not a checkpoint"):
        checkpoints.record(12)


def test_reading_leaves_the_folder_to_the_process_that_writes(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
    being_written = tmp_path / "9.orbax-checkpoint-tmp"
    being_written.mkdir()
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        assert checkpoints.record(5) == RECORD
    assert being_written.is_dir()
    with Checkpoints(tmp_path):
        deadline = time.monotonic() + 30  # Orbax removes it in the background
        while being_written.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not being_written.exists()


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(ResultsError, match="cannot keep checkpoints there"):
        Checkpoints(tmp_path / "file" / "checkpoints")
