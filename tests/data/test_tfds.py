"""CIFAR-10 through TFDS: a small fake archive, served by a local server, is downloaded, prepared and read."""

import hashlib
import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from support.fake_server import archive_server, send, unused_port

from jaxresnet.data import cifar10_download
from jaxresnet.data import readers as cifar10_files
from jaxresnet.data import tfds as cifar10_tfds
from jaxresnet.data.dataset import Split
from jaxresnet.data.tfds import default_tfds_dir, download_and_prepare, find_prepared, read_prepared
from jaxresnet.errors import DataError

# The reader of the archive warns of an archive with an official name and another checksum.
pytestmark = pytest.mark.filterwarnings("ignore:.*MD5 checksum")

IMAGES_PER_BATCH = 6


def fake_cifar10(folder, patch):
    """Write an archive laid out as the official one into `folder`, and make it the official one with `patch`.

    Returns its splits. Images are noise, except a ramp that tells the order of channels, rows and columns.
    """
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (6, IMAGES_PER_BATCH)).astype(np.uint8)
    images = rng.integers(0, 256, (6, IMAGES_PER_BATCH, 32, 32, 3)).astype(np.uint8)
    images[0, 0] = np.arange(3072).reshape(32, 32, 3) % 251
    path = folder / "cifar-10-binary.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for batch, name in enumerate(cifar10_files.BATCHES):
            planes = images[batch].transpose(0, 3, 1, 2).reshape(IMAGES_PER_BATCH, 3072)
            content = np.concatenate([labels[batch][:, None], planes], axis=1).tobytes()
            member = tarfile.TarInfo(f"cifar-10-batches-bin/{name}.bin")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    patch(cifar10_files, "IMAGES_PER_BATCH", IMAGES_PER_BATCH)
    patch(cifar10_files, "LABEL_CRC32", tuple(cifar10_files.label_crc32(batch) for batch in labels))
    patch(cifar10_download, "ARCHIVE_BYTES", path.stat().st_size)
    patch(cifar10_download, "ARCHIVE_SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    return {
        "train": Split(images[:5].reshape(-1, 32, 32, 3), labels[:5].reshape(-1).astype(np.int32)),
        "test": Split(images[5], labels[5].astype(np.int32)),
    }


@pytest.fixture
def source(tmp_path, monkeypatch):
    """(folder with the fake archive, its splits); without a server, so that nothing can be downloaded."""
    folder = tmp_path / "source"
    folder.mkdir()
    splits = fake_cifar10(folder, monkeypatch.setattr)
    monkeypatch.setattr(cifar10_download, "ARCHIVE_URL", f"http://127.0.0.1:{unused_port()}/cifar-10-binary.tar.gz")
    return folder, splits


@pytest.fixture
def archive(source):
    return (source[0] / "cifar-10-binary.tar.gz").read_bytes()


@pytest.fixture
def serve(monkeypatch):
    with archive_server(monkeypatch) as start:
        yield start


@pytest.fixture
def prepared(source, tmp_path):
    """(prepared directory, its splits)."""
    root = tmp_path / "tfds"
    cifar10_tfds._prepare(source[1], root)
    return root / "cifar10" / "3.0.2", source[1]


def assert_same(splits, expected):
    assert set(splits) == {"train", "test"}
    for name, split in splits.items():
        assert split.images.dtype == np.uint8 and split.labels.dtype == np.int32
        np.testing.assert_array_equal(split.images, expected[name].images)
        np.testing.assert_array_equal(split.labels, expected[name].labels)


def edit_json(path, **changes):
    content = json.loads(path.read_text())
    content.update(changes)
    path.write_text(json.dumps(content))


def files_below(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variable", [None, "/elsewhere/tfds"])
def test_default_tfds_dir_is_that_of_tfds(variable, monkeypatch):
    from tensorflow_datasets.core import constants

    if variable is None:
        monkeypatch.delenv("TFDS_DATA_DIR", raising=False)
    else:
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
    assert default_tfds_dir() == Path(constants.get_default_data_dir())


def test_default_tfds_dir_passes_over_what_is_no_local_folder(monkeypatch):
    for variable in ["", "gs://bucket/tfds"]:
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
        assert default_tfds_dir() == Path.home() / "tensorflow_datasets"
    monkeypatch.setenv("TFDS_DATA_DIR", "~/sets")
    assert default_tfds_dir() == Path.home() / "sets"


def test_find_prepared_at_and_below_the_folder(prepared):
    path, _ = prepared
    root = path.parent.parent
    assert [find_prepared(folder) for folder in (root, root / "cifar10", path)] == [path] * 3
    assert find_prepared(root.parent / "nothing") is None
    assert find_prepared(root / "downloads") is None


def test_find_prepared_in_another_version(prepared):
    path, expected = prepared
    edit_json(path / "dataset_info.json", version="3.0.10")
    other = path.rename(path.with_name("3.0.10"))
    assert [find_prepared(folder) for folder in (other.parent.parent, other.parent, other)] == [other] * 3
    assert_same(read_prepared(other), expected)
    edit_json(other / "dataset_info.json", version="2.0.0")
    assert find_prepared(other) is None


def test_find_prepared_prefers_what_can_be_read_then_3_0_2(tmp_path):
    def put(version, file_format):
        folder = tmp_path / "cifar10" / version
        folder.mkdir(parents=True, exist_ok=True)
        info = {"name": "cifar10", "version": version, "fileFormat": file_format}
        (folder / "dataset_info.json").write_text(json.dumps(info))
        return folder

    tfrecord = put("3.0.2", "tfrecord")
    assert find_prepared(tmp_path) == tfrecord
    older = put("3.0.0", "array_record")
    assert find_prepared(tmp_path) == older
    newer = put("3.0.10", "array_record")
    assert find_prepared(tmp_path) == newer
    assert put("3.0.2", "array_record") == find_prepared(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", '"cifar10"', '{"name": "cifar10"}', '{"name": 1, "version": 3}'])
def test_find_prepared_passes_over_what_is_not_cifar10(content, prepared):
    path, _ = prepared
    (path / "dataset_info.json").write_text(content)
    assert find_prepared(path.parent.parent) is None
    with pytest.raises(DataError, match="not a CIFAR-10 directory"):
        read_prepared(path)
    with pytest.raises(DataError, match=r"3\.0\.2: exists, but is not"):  # never quietly overwritten
        download_and_prepare(path.parent.parent)


# --- reading ----------------------------------------------------------------------------------------------------------


def test_read_prepared_is_in_the_official_order(prepared):
    import tensorflow_datasets as tfds

    path, expected = prepared
    stored = [example["id"].decode() for example in tfds.builder_from_directory(path).as_data_source("train")]
    assert stored != sorted(stored) == [f"train_{i:05d}" for i in range(5 * IMAGES_PER_BATCH)]  # TFDS did shuffle
    assert_same(read_prepared(path), expected)


def test_another_file_format_says_what_to_do(prepared):
    path, expected = prepared
    edit_json(path / "dataset_info.json", fileFormat="tfrecord")
    with pytest.raises(DataError, match=r"tfrecord needs TensorFlow.*\$TFDS_DATA_DIR.*--data-dir") as raised:
        read_prepared(find_prepared(path.parent.parent))
    assert str(path) in str(raised.value)
    edit_json(path / "dataset_info.json", alternativeFileFormats=["array_record"])
    assert_same(read_prepared(path), expected)


def examples(split, count):
    image = np.zeros((32, 32, 3), np.uint8)
    return [{"id": f"{split}_{i:05d}".encode(), "image": image, "label": i % 10} for i in range(count)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"id": b"train_00004"}, "'train_00004'.*twice"),
        ({"id": b"train_00030"}, "'train_00030'.*out of range"),
        ({"id": b"test_00003"}, "'test_00003'"),
        ({"id": b"train_-0003"}, "'train_-0003'"),
        ({"id": b""}, "''"),
        ({"label": 10}, r"'train_00003' has the label 10.*0\.\.9"),
        ({"label": -1}, "label -1"),
    ],
)
def test_wrong_ids_and_labels_are_refused(change, message, source):
    stored = examples("train", 5 * IMAGES_PER_BATCH)
    assert cifar10_tfds._read_split(stored, "train", lambda _: None).labels.tolist() == [*range(10)] * 3
    stored[3].update(change)
    with pytest.raises(DataError, match=message):
        cifar10_tfds._read_split(stored, "train", lambda _: None)


def test_a_part_of_the_examples_is_refused(prepared, monkeypatch):
    path, _ = prepared
    monkeypatch.setattr(cifar10_files, "IMAGES_PER_BATCH", 10_000)
    with pytest.raises(DataError, match=r"train split holds 30 examples instead of 50000.*Delete this folder"):
        read_prepared(path)


def damage_flipped(path):
    shard = next(path.glob("cifar10-train.array_record*"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 4] ^= 0xFF  # past the headers, before the padding
    shard.write_bytes(content)


def damage_truncated(path):
    shard = next(path.glob("cifar10-test.array_record*"))
    shard.write_bytes(shard.read_bytes()[:-5000])


def damage_missing_shard(path):
    next(path.glob("cifar10-test.array_record*")).unlink()


def damage_missing_features(path):
    (path / "features.json").unlink()


def damage_no_ids(path):
    features = json.loads((path / "features.json").read_text())
    del features["featuresDict"]["features"]["id"]
    (path / "features.json").write_text(json.dumps(features))


def damage_no_test_split(path):
    info = json.loads((path / "dataset_info.json").read_text())
    edit_json(path / "dataset_info.json", splits=[split for split in info["splits"] if split["name"] != "test"])


@pytest.mark.parametrize("damage", [v for k, v in sorted(globals().items()) if k.startswith("damage_")])
def test_damage_is_an_error_that_names_the_folder(damage, prepared):
    path, _ = prepared
    damage(path)
    with pytest.raises(DataError, match=f"^{re.escape(str(path))}: .*Delete this folder"):
        read_prepared(path)


# --- downloading and preparing ----------------------------------------------------------------------------------------


def test_download_prepare_and_read(source, archive, serve, tmp_path, capfd):
    requests = serve(lambda handler: send(handler, archive))
    root = tmp_path / "new" / "tfds"
    path = download_and_prepare(root)
    assert path == root / "cifar10" / "3.0.2" == find_prepared(root)
    assert_same(read_prepared(path), source[1])
    assert {file.parent for file in files_below(root)} == {path}  # no archive, nothing unfinished is left
    assert download_and_prepare(root) == path
    assert len(requests) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert err.splitlines() == ["Downloading CIFAR-10 (0 MB) ...", "Preparing CIFAR-10 ...", f"Reading {path} ..."]


def test_tfds_itself_reads_what_was_prepared(prepared):
    import tensorflow_datasets as tfds

    path, expected = prepared
    builder = tfds.builder("cifar10", data_dir=path.parent.parent)
    assert builder.info.full_name == "cifar10/3.0.2"
    assert builder.info.features["label"].int2str(0) == "airplane"
    example = builder.as_data_source("test")[0]
    position = int(example["id"].decode().removeprefix("test_"))
    np.testing.assert_array_equal(example["image"], expected["test"].images[position])


def test_neither_tensorflow_nor_the_network_is_touched_after_the_download(tmp_path):
    code = f"""
        import sys
        sys.path.insert(0, {os.path.dirname(__file__)!r})
        import pathlib, warnings
        import test_cifar10_tfds as t
        warnings.simplefilter("ignore")
        attempts = []
        def watch(event, args):
            if event == "import" and args[0].split(".")[0] == "tensorflow" or event.startswith("socket."):
                attempts.append((event, args))
        root = pathlib.Path({str(tmp_path)!r})
        (root / "downloads").mkdir()
        expected = t.fake_cifar10(root / "downloads", setattr)
        sys.addaudithook(watch)
        assert "tensorflow_datasets" not in sys.modules  # importing jaxresnet's modules is light
        t.assert_same(t.read_prepared(t.download_and_prepare(root)), expected)
        assert "tensorflow_datasets" in sys.modules and "tensorflow" not in sys.modules
        assert not attempts, attempts
    """
    code = "\n".join(line.removeprefix(" " * 8) for line in code.splitlines())
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_after_a_failed_download_nothing_is_left_and_the_next_attempt_starts_afresh(source, archive, serve, tmp_path):
    root = tmp_path / "tfds"
    serve(lambda handler: send(handler, archive[:-1000], length=len(archive)))
    with pytest.raises(DataError, match="closed 1000 bytes before the end"):
        download_and_prepare(root)
    assert files_below(root) == []
    serve(lambda handler: send(handler, archive))
    assert_same(read_prepared(download_and_prepare(root)), source[1])


def test_what_killed_processes_left_is_removed_and_what_others_write_is_not(source, archive, serve, tmp_path):
    serve(lambda handler: send(handler, archive))
    for age in [10, 2 * cifar10_download.ABANDONED_AFTER]:
        partial = tmp_path / "downloads" / f"cifar-10-binary.tar.gz.{age:.0f}.incomplete"
        unfinished = tmp_path / "cifar10" / f"incomplete.{age:.0f}_3.0.2"
        partial.parent.mkdir(exist_ok=True)
        partial.write_bytes(b"part")
        unfinished.mkdir(parents=True)
        (unfinished / "shard").write_bytes(b"part")
        for path in (partial, unfinished):
            os.utime(path, (time.time() - age,) * 2)
    download_and_prepare(tmp_path)
    assert [path.name for path in (tmp_path / "cifar10").iterdir() if "incomplete" in path.name] == [
        "incomplete.10_3.0.2"
    ]
    assert [path.name for path in files_below(tmp_path / "downloads")] == ["cifar-10-binary.tar.gz.10.incomplete"]


def test_a_whole_archive_is_used_again_and_a_damaged_one_is_not(source, archive, serve, tmp_path, monkeypatch):
    requests = serve(lambda handler: send(handler, archive))
    prepare = cifar10_tfds._prepare

    def fail(splits, root):
        raise KeyboardInterrupt

    monkeypatch.setattr(cifar10_tfds, "_prepare", fail)
    with pytest.raises(KeyboardInterrupt):
        download_and_prepare(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        download_and_prepare(tmp_path)
    assert len(requests) == 1
    kept = tmp_path / "downloads" / "cifar-10-binary.tar.gz"
    kept.write_bytes(archive[:-1] + bytes([archive[-1] ^ 1]))
    monkeypatch.setattr(cifar10_tfds, "_prepare", prepare)
    assert_same(read_prepared(download_and_prepare(tmp_path)), source[1])
    assert len(requests) == 2


def test_a_folder_that_cannot_be_written_is_named(source, archive, serve, tmp_path):
    requests = serve(lambda handler: send(handler, archive))
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "tfds"
    with pytest.raises(
        DataError, match=r"cannot write CIFAR-10 here.*\$TFDS_DATA_DIR.*--data-dir.*\$JAXRESNET_DATA"
    ) as e:
        download_and_prepare(root)
    assert str(e.value).startswith(f"{root}: ")
    assert not requests


def test_too_little_disk_space_is_noticed_before_the_download(source, archive, serve, tmp_path, monkeypatch):
    requests = serve(lambda handler: send(handler, archive))
    monkeypatch.setattr(cifar10_tfds.shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000_000))
    with pytest.raises(DataError, match=r"needs 450 MB of disk space, 100 MB are free\. Make room"):
        download_and_prepare(tmp_path)
    assert not requests


@pytest.mark.parametrize("stage", ["download", "prepare"])
def test_a_disk_that_fills_up_leaves_nothing_unfinished(stage, source, archive, serve, tmp_path):
    """A limit on the size of a file fails a write half-way, as a full disk does."""
    resource = pytest.importorskip("resource")
    serve(lambda handler: send(handler, archive))
    root = tmp_path / "tfds"
    if stage == "prepare":
        (root / "downloads").mkdir(parents=True)
        (root / "downloads" / "cifar-10-binary.tar.gz").write_bytes(archive)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match="cannot write CIFAR-10 here") as raised:
            download_and_prepare(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "too large" in str(raised.value)
    assert find_prepared(root) is None
    assert [path.name for path in files_below(root)] == (["cifar-10-binary.tar.gz"] if stage == "prepare" else [])
    assert_same(read_prepared(download_and_prepare(root)), source[1])


def test_another_process_may_prepare_it_at_the_same_time(source, archive, serve, tmp_path, monkeypatch):
    serve(lambda handler: send(handler, archive))
    prepare = cifar10_tfds._prepare

    def lose_the_race(splits, root):
        prepare(splits, root)
        (root / "downloads" / "cifar-10-binary.tar.gz").unlink()
        raise OSError("Directory not empty")  # what renaming onto the other's directory gives

    monkeypatch.setattr(cifar10_tfds, "_prepare", lose_the_race)
    assert_same(read_prepared(download_and_prepare(tmp_path)), source[1])


# --- what the user sees -----------------------------------------------------------------------------------------------


def test_quiet_restores_the_streams_and_the_log_level():
    import logging

    before = sys.stdout, sys.stderr, logging.getLogger("absl").level
    with pytest.raises(ValueError), cifar10_tfds._quiet_tfds():
        raise ValueError
    assert (sys.stdout, sys.stderr, logging.getLogger("absl").level) == before
