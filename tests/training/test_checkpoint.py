"""What is saved comes back bit for bit, last and best stay, and a damaged or half-written checkpoint is named."""

import json
import random
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.tiny import assert_same_bits, collect_garbage

from jaxresnet.errors import ResultsError, StorageError
from jaxresnet.training.checkpoint import Checkpoints, DamagedError
from jaxresnet.training.engine import replicate
from jaxresnet.training.metrics import zero_totals
from jaxresnet.training.state import TrainState

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


@pytest.mark.devices(8)
def test_a_checkpoint_does_not_know_how_many_devices_wrote_it(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(3, num_devices=8), zero_totals(), RECORD, None)
        saved = checkpoints.restore(3, make_state(0), zero_totals())
    assert_same_bits(saved.state, make_state(3))
    assert all(leaf.devices() == {jax.devices()[0]} for leaf in jax.tree.leaves(saved.state))


def test_the_last_two_and_what_was_best_at_each_stay_and_nothing_else(tmp_path):
    best_steps = {1: 1, 2: 1, 3: 1, 4: 4, 5: 4, 6: 4, 7: 7}
    kept = {1: [1], 2: [1, 2], 3: [1, 2, 3], 4: [1, 3, 4], 5: [4, 5], 6: [4, 5, 6], 7: [4, 6, 7]}
    with Checkpoints(tmp_path) as checkpoints:
        for step, best in best_steps.items():
            checkpoints.save(make_state(step), zero_totals(), RECORD | {"best_step": best}, best)
            assert steps_on_disk(tmp_path) == kept[step]
        assert_same_bits(checkpoints.restore(4, make_state(0), zero_totals()).state, make_state(4))
    with Checkpoints(tmp_path) as checkpoints:  # a new process knows what to keep as well
        checkpoints.save(make_state(8), zero_totals(), RECORD, 4)
        assert checkpoints.steps() == [8, 7, 4]
    assert steps_on_disk(tmp_path) == [4, 7, 8]


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
        assert checkpoints.last_step() == 5 and checkpoints.half_written == [half]
        assert_same_bits(checkpoints.restore(5, make_state(0), zero_totals()).state, make_state(5))
        checkpoints.save(make_state(9), zero_totals(), RECORD, None)
        assert_same_bits(checkpoints.restore(9, make_state(0), zero_totals()).state, make_state(9))


# ------------------------------------------------------------------------------------------------------- damage


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A folder with checkpoints at steps 4 and 5, never written to again."""
    folder = tmp_path_factory.mktemp("whole")
    with Checkpoints(folder) as checkpoints:
        for step in (4, 5):
            checkpoints.save(make_state(step), zero_totals(), RECORD, None)
    return folder


def flip(data, seed):
    rng = random.Random(seed)
    flipped = bytearray(data)
    flipped[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(flipped)


DAMAGES = {
    "cut": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    **{f"flip {seed}": lambda data, seed=seed: flip(data, seed) for seed in range(2)},
    "deleted": None,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_noticed_or_does_not_matter(whole, tmp_path, damage):
    """Each file of a checkpoint in turn. What is restored is what was saved, bit for bit, or nothing is."""
    noticed = set()
    for path in sorted(p.relative_to(whole) for p in (whole / "5").rglob("*") if p.is_file()):
        folder = tmp_path / str(path).replace("/", "-")
        shutil.copytree(whole, folder)
        if DAMAGES[damage]:
            (folder / path).write_bytes(DAMAGES[damage]((folder / path).read_bytes()))
        else:
            (folder / path).unlink()
        with Checkpoints(folder) as checkpoints:
            try:
                assert checkpoints.steps()[0] in (4, 5)
                saved = checkpoints.restore(checkpoints.steps()[0], make_state(0), zero_totals())
            except DamagedError as e:
                assert str(e).startswith(f"{folder}/5: ")
                noticed.add(path.name)
                continue
            if checkpoints.steps() == [4]:
                assert [f"{folder}/5: its record is damaged; kept as damaged-5"] == checkpoints.damaged
                assert (folder / "damaged-5").is_dir()
                noticed.add(path.name)
            assert saved.record == RECORD
            assert_same_bits(saved.state, make_state(checkpoints.steps()[0]))
            assert_same_bits(saved.totals, zero_totals())
    assert "manifest.ocdbt" in noticed, "the root of the arrays"
    if "flip" not in damage:  # a bit may hit the time of writing, which is Orbax's own
        assert "_CHECKPOINT_METADATA" in noticed, "the record"


@pytest.mark.parametrize("damage", ["cut", "zeros", "flip 0", "deleted"])
def test_damaged_arrays_are_named(whole, tmp_path, damage):
    """All files that hold the numbers at once: copies of one another, some of them."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    arrays = [p for p in (tmp_path / "5").rglob("*") if p.is_file() and "/d/" in p.as_posix()]
    assert arrays, "Orbax keeps the numbers of the arrays in folders d"
    for path in arrays:
        if DAMAGES[damage]:
            path.write_bytes(DAMAGES[damage](path.read_bytes()))
        else:
            path.unlink()
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(DamagedError, match=f"{tmp_path}/5: the checkpoint cannot be read"):
            checkpoints.restore(5, make_state(0), zero_totals())
        checkpoints.set_aside(5, "it is damaged")
        assert checkpoints.steps() == [4]
        assert_same_bits(checkpoints.restore(4, make_state(0), zero_totals()).state, make_state(4))
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
        assert_same_bits(checkpoints.restore(5, make_state(0), zero_totals()).state, make_state(5))
        checkpoints.set_aside(5, "once more")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["4", "damaged-5", "damaged-5-2"]
    assert checkpoints.damaged[0] == f"{tmp_path}/5: it is damaged; kept as damaged-5"


@pytest.mark.parametrize("path, value", [("seconds", 0.2), ("history", []), ("crc32", 1), ("config", {"optim": {}})])
def test_a_record_that_was_changed_is_noticed(whole, tmp_path, path, value):
    """Valid JSON all the same."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "5" / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    metadata["custom_metadata"][path] = value
    file.write_text(json.dumps(metadata))
    with Checkpoints(tmp_path, read_only=True) as checkpoints, pytest.raises(DamagedError, match="record is damaged"):
        checkpoints.record(5)
    assert (tmp_path / "5").is_dir(), "read only"
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [4] and len(checkpoints.damaged) == 1


def test_a_record_of_an_older_version_has_no_checksum(whole, tmp_path):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    file = tmp_path / "5" / "_CHECKPOINT_METADATA"
    metadata = json.loads(file.read_text())
    del metadata["custom_metadata"]["crc32"]
    file.write_text(json.dumps(metadata))
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.record(5) == RECORD


def test_a_disk_that_is_full_leaves_the_checkpoints_before(whole, tmp_path, monkeypatch):
    """TensorStore raises ValueError, the operating system OSError."""
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    for error in (ValueError("RESOURCE_EXHAUSTED: No space left on device\nat length"), OSError(28, "No space left")):
        with Checkpoints(tmp_path) as checkpoints:

            def full(*args, error=error, **kwargs):
                raise error

            monkeypatch.setattr(checkpoints._orbax, "save", full)
            with pytest.raises(StorageError, match=r"cannot be written \(.*No space left.*make room"):
                checkpoints.save(make_state(6), zero_totals(), RECORD, None)
    assert steps_on_disk(tmp_path) == [4, 5]


def test_arrays_of_another_shape_are_refused(tmp_path):
    other = make_state(0)._replace(params={"stages": {"0": {"kernel": jnp.zeros((3, 3, 2, 5))}}})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(make_state(5), zero_totals(), RECORD, None)
        what = r"other arrays .*: state\.params\.stages\.0\.kernel is float32 \(3, 3, 2, 4\), not float32 \(3, 3"
        with pytest.raises(ResultsError, match=what) as error:
            checkpoints.restore(5, other, zero_totals())
        assert not isinstance(error.value, DamagedError), "nothing is wrong with it"


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    from orbax.checkpoint import v1 as ocp

    with ocp.training.Checkpointer(tmp_path) as foreign:
        foreign.save(3, {"weights": jnp.zeros(2)})
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ResultsError, match="not a checkpoint of jaxresnet"):
        checkpoints.record(3)


def test_an_empty_folder_in_place_of_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "12").mkdir()
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(DamagedError, match="/12: its record is missing"):
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
    with pytest.raises(StorageError, match="cannot keep checkpoints there"):
        Checkpoints(tmp_path / "file" / "checkpoints")
