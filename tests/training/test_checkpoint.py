"""What is saved comes back bit for bit, the last two stay, and a damaged or half-written checkpoint is named."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import assert_same_bits

from jaxresnet.errors import ResultsError, StorageError
from jaxresnet.training import checkpoint
from jaxresnet.training.checkpoint import DamagedError, Record, Saved, restore, save, saved_steps
from jaxresnet.training.devices import replicate
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.state import TrainState, Weights

RECORD = Record(
    {"optim": {"eps": 1e-08}, "stage_sizes": [1, 1]}, {"crc32": 1}, [{"val_loss": None}], 0.1, [{"step": 0}]
)


def make_saved(step, num_devices=1, record=RECORD):
    """A state of every dtype that a train state has, with numbers that text or a cast would not keep."""
    rng = np.random.default_rng(step)
    stats = {"mean": rng.normal(size=3).astype(np.float32), "var": np.float32([1e-45, 3.4e38, 1 / 3])}
    params = {"stages": {"0": {"kernel": rng.normal(size=(3, 3, 2, 4)).astype(np.float32)}}}
    state = TrainState(
        step=np.int32(step),
        params=params,
        batch_stats=stats,
        slow_batch_stats={},
        opt_state=(np.int32(step), (), {"mu": np.float32([-0.0, 1e-30])}),
        key=np.uint32([2**32 - 1, step]),
    )
    totals = zero_totals()._replace(norms=np.float32([1, 2, step]))
    weights = Weights({"params": jax.tree.map(np.negative, params), "batch_stats": stats}, {})
    arrays = replicate(jax.tree.map(jnp.asarray, (state, totals, weights)), tuple(jax.devices()[:num_devices]))
    return Saved(*arrays, record)


def assert_same(found, expected):
    assert found.record == expected.record
    assert_same_bits(found[:3], expected[:3])


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints at steps 4 and 5, never written to again."""
    folder = tmp_path_factory.mktemp("whole")
    for step in (4, 5):
        save(folder, make_saved(step))
    return folder


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def test_round_trip_keeps_every_bit(tmp_path):
    folder = tmp_path / "new" / "folder [k=5]"  # Orbax takes no pattern for one
    assert saved_steps(folder) == []
    save(folder, make_saved(7))
    assert saved_steps(folder) == [7]
    assert_same(restore(folder, 7, make_saved(0)), make_saved(7))
    assert_same_bits(checkpoint.restore_best(folder, 7, make_saved(0).best), make_saved(7).best)


@pytest.mark.devices(8)
def test_a_checkpoint_does_not_know_how_many_devices_wrote_it(tmp_path):
    save(tmp_path, make_saved(3, num_devices=8))
    saved = restore(tmp_path, 3, make_saved(0))
    assert_same(saved, make_saved(3))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(saved.state))


def test_the_last_two_stay_and_nothing_else(tmp_path):
    for step, kept in {1: ["1"], 2: ["1", "2"], 3: ["2", "3"], 10: ["10", "3"]}.items():
        save(tmp_path, make_saved(step))
        assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert saved_steps(tmp_path) == [10, 3]


def test_saving_a_step_again_changes_nothing(copy):
    save(copy, make_saved(5, record=Record({}, {})))
    assert_same(restore(copy, 5, make_saved(0)), make_saved(5))


def test_weights_alone_can_be_kept(tmp_path):
    best = make_saved(1).best
    checkpoint.save_weights(tmp_path, best, RECORD)
    assert saved_steps(tmp_path) == [0]
    assert_same_bits(checkpoint.restore_best(tmp_path, 0, make_saved(2).best), best)
    with pytest.raises(ResultsError, match="holds other arrays than this run"):
        restore(tmp_path, 0, make_saved(0))


# ------------------------------------------------------------------------------------------------------- damage


def test_without_its_record_a_checkpoint_was_never_finished(copy):
    """The record is written last: so is everything that a killed process leaves."""
    (copy / "5" / "record.json").unlink()
    (copy / "9" / "state.orbax-checkpoint-tmp").mkdir(parents=True)
    assert saved_steps(copy) == [4]
    assert checkpoint.remove_unfinished(copy) == [f"{copy}/5", f"{copy}/9"]
    assert_same(restore(copy, 4, make_saved(0)), make_saved(4))


def flip(data):
    return data[: len(data) // 2] + bytes([data[len(data) // 2] ^ 1]) + data[len(data) // 2 + 1 :] if data else b"x"


DAMAGES = {"cut": lambda data: data[: len(data) // 2] or b"x", "a bit": flip, "deleted": None}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_byte_in_any_file_is_noticed(whole, tmp_path, damage):
    files = sorted(p.relative_to(whole) for p in (whole / "5").rglob("*") if p.is_file())
    assert len(files) > 10
    for i, path in enumerate(files):
        folder = shutil.copytree(whole, tmp_path / str(i))
        if DAMAGES[damage]:
            (folder / path).write_bytes(DAMAGES[damage]((folder / path).read_bytes()))
        else:
            (folder / path).unlink()
        if saved_steps(folder) == [4]:
            assert path.name == "record.json"
            continue
        with pytest.raises(DamagedError, match=f"{folder}/5") as e:
            restore(folder, 5, make_saved(0))
        assert path.name in str(e.value)
        assert_same(restore(folder, 4, make_saved(0)), make_saved(4))


@pytest.mark.parametrize("change", [{"history": []}, {"seconds": 0.2}, {"config": {}}], ids=str)
def test_a_record_that_was_changed_is_noticed(copy, change):
    """Valid JSON all the same."""
    file = copy / "5" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(DamagedError, match=r"record\.json: is damaged"):
        checkpoint.read_record(copy, 5)


def test_a_damaged_one_is_renamed_not_removed(copy):
    assert checkpoint.set_aside(copy, 5) == f"{copy}/damaged-5"
    save(copy, make_saved(5))
    assert checkpoint.set_aside(copy, 5) == f"{copy}/damaged-5-1"
    assert saved_steps(copy) == [4]


def test_a_disk_that_is_full_leaves_the_checkpoints_before(copy, monkeypatch):
    """TensorStore raises ValueError, the operating system OSError."""
    from orbax.checkpoint import v1 as ocp

    for error in (ValueError("RESOURCE_EXHAUSTED: No space left on device\nat length"), OSError(28, "No space left")):

        def full(*_, error=error, **__):
            raise error

        monkeypatch.setattr(ocp, "save", full)
        with pytest.raises(StorageError, match=r"cannot be written \(.*No space left.*make room"):
            save(copy, make_saved(6))
    assert saved_steps(copy) == [5, 4]


def test_arrays_of_another_shape_are_refused_and_not_called_damaged(copy):
    like = make_saved(0)
    like = like._replace(state=like.state._replace(params={"stages": {"0": {"kernel": jnp.zeros((3, 3, 2, 5))}}}))
    what = r"state\.params\.stages\.0\.kernel is float32 \(3, 3, 2, 4\) there and float32 \(3, 3, 2, 5\) here"
    with pytest.raises(ResultsError, match=what) as error:
        restore(copy, 5, like)
    assert not isinstance(error.value, DamagedError)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="a checkpoint cannot be written"):
        save(tmp_path / "file" / "checkpoints", make_saved(1))
