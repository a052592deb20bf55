"""What is saved comes back bit for bit, the last two stay, and a damaged or half-written checkpoint is named."""

import json
import re
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


@pytest.mark.parametrize("num_devices", [1, pytest.param(8, marks=pytest.mark.devices(8))])
def test_what_is_saved_comes_back_bit_for_bit_on_the_host(tmp_path, num_devices):
    folder = tmp_path / "new" / "folder [k=5]"  # Orbax takes no pattern for one
    assert saved_steps(folder) == []
    save(folder, make_saved(7, num_devices))
    assert saved_steps(folder) == [7]
    found = restore(folder, 7, make_saved(0))
    assert_same(found, make_saved(7))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(found[:3]))  # on no device yet
    assert_same_bits(checkpoint.restore_best(folder, 7, make_saved(0).best), make_saved(7).best)


def test_the_last_two_stay_and_nothing_else_and_none_is_written_twice(tmp_path):
    for step, kept in {1: ["1"], 2: ["1", "2"], 3: ["2", "3"], 10: ["10", "3"]}.items():
        save(tmp_path, make_saved(step))
        assert sorted(p.name for p in tmp_path.iterdir()) == kept
    assert saved_steps(tmp_path) == [10, 3]
    save(tmp_path, make_saved(10, record=Record({}, {})))
    assert_same(restore(tmp_path, 10, make_saved(0)), make_saved(10))


# ------------------------------------------------------------------------------------------------------- damage


def flip(data):
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :] if data else b"x"


DAMAGES = {"cut": lambda data: data[: len(data) // 2] or b"x", "a bit": flip, "deleted": None}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_to_any_file_is_noticed_and_the_file_named(copy, damage):
    files = sorted(p for p in (copy / "5").rglob("*") if p.is_file())
    assert len(files) > 10
    for path in files:
        data = path.read_bytes()
        if damage == "deleted":
            path.unlink()
        else:
            path.write_bytes(DAMAGES[damage](data))
        if (damage, path.name) == ("deleted", "record.json"):
            assert saved_steps(copy) == [4], "it was never finished: the record is written last"
        else:
            with pytest.raises(DamagedError, match=f"{copy}/5.*{re.escape(path.name)}"):
                restore(copy, 5, make_saved(0))
        path.write_bytes(data)
    assert_same(restore(copy, 5, make_saved(0)), make_saved(5))


def test_a_record_that_was_changed_to_other_valid_json_is_noticed(copy):
    file = copy / "5" / "record.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"seconds": 0.2}))
    with pytest.raises(DamagedError, match=r"record\.json: is damaged"):
        checkpoint.read_record(copy, 5)


def test_a_damaged_one_is_renamed_and_takes_no_others_name(copy):
    assert checkpoint.set_aside(copy, 5) == f"{copy}/damaged-5"
    save(copy, make_saved(5))
    assert checkpoint.set_aside(copy, 5) == f"{copy}/damaged-5-1"
    assert saved_steps(copy) == [4]


def test_where_it_cannot_be_written_that_is_said_and_those_before_stay(copy, monkeypatch):
    """TensorStore raises ValueError for a full disk, the operating system OSError."""
    from orbax.checkpoint import v1 as ocp

    (copy / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="a checkpoint cannot be written"):
        save(copy / "file" / "checkpoints", make_saved(1))
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
