"""CIFAR-10 through TFDS: a small fake archive, served by a local server, is downloaded, prepared and read."""

import hashlib
import json
import re
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.fake_cifar10 import bin_members, check, fake_data, isolated_fakes, write_files, write_tar
from support.fake_server import archive_server, send

from jaxresnet.data import tfds
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.data.tfds import default_tfds_dir, download_and_prepare, find_prepared, read_prepared
from jaxresnet.errors import DataError

DATA = fake_data()


@pytest.fixture(scope="module")
def prepared_once(tmp_path_factory):
    root = tmp_path_factory.mktemp("prepared")
    tfds._prepare(DATA, root)
    return root


@pytest.fixture(autouse=True)
def fakes(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path):
        yield


@pytest.fixture
def prepared(prepared_once, tmp_path):
    """A directory of CIFAR-10 in TFDS' folder."""
    return Path(shutil.copytree(prepared_once, tmp_path / "tensorflow_datasets")) / "cifar10" / "3.0.2"


@pytest.fixture
def archive(tmp_path, monkeypatch):
    """Bytes that pass for the official archive."""
    content = write_tar(tmp_path / "source.tar.gz", bin_members(DATA)).read_bytes()
    monkeypatch.setattr(tfds, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    return content


@pytest.fixture
def serve(monkeypatch):
    with archive_server(monkeypatch) as serve:
        yield serve


def edit_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def files_below(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


# --- where ---


@pytest.mark.parametrize("variable", ["/elsewhere/tfds", "~/sets"])
def test_default_tfds_dir_is_that_of_tfds(variable, monkeypatch):
    from tensorflow_datasets.core import constants

    monkeypatch.setenv("TFDS_DATA_DIR", variable)
    assert default_tfds_dir() == Path(constants.get_default_data_dir()).expanduser()
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_tfds_dir() == Path(constants.get_default_data_dir())
    for not_on_this_machine in ("", "gs://bucket/tfds"):
        monkeypatch.setenv("TFDS_DATA_DIR", not_on_this_machine)
        assert default_tfds_dir() == Path("~/tensorflow_datasets").expanduser()


def test_find_prepared_at_and_below_the_folder(prepared):
    root = prepared.parent.parent
    assert [find_prepared(folder) for folder in (root, root / "cifar10", prepared)] == [prepared] * 3
    assert find_prepared(root.parent) is None
    edit_json(prepared / "dataset_info.json", fileFormat="tfrecord")
    assert find_prepared(root) is None
    edit_json(prepared / "dataset_info.json", alternativeFileFormats=["array_record"])
    assert find_prepared(root) == prepared
    for content in ("", "{", "[]", '{"name": "mnist", "fileFormat": "array_record"}'):
        (prepared / "dataset_info.json").write_text(content)
        assert find_prepared(root) is None


# --- reading ---


def test_we_and_tfds_itself_read_what_was_prepared(prepared):
    import tensorflow_datasets

    builder = tensorflow_datasets.builder("cifar10", data_dir=prepared.parent.parent)
    assert builder.info.full_name == "cifar10/3.0.2" and builder.info.features["label"].int2str(0) == "airplane"
    stored = [example["id"].decode() for example in builder.as_data_source("train")]
    assert stored != sorted(stored) == [f"train_{i:05d}" for i in range(500)]  # TFDS did shuffle
    check(load_cifar10(), DATA)


@pytest.mark.parametrize("name", [b"test_00004", b"test_00100", b"train_00003"])
def test_wrong_ids_are_refused(name):
    image = np.zeros((32, 32, 3), np.uint8)
    stored = [{"id": f"test_{i:05d}".encode(), "image": image, "label": i % 10} for i in range(100)][::-1]
    assert tfds._read_split(stored, "test").labels.tolist() == [*range(10)] * 10
    stored[3]["id"] = name
    with pytest.raises(ValueError, match="the 100 test examples are not test_00000 to test_00099"):
        tfds._read_split(stored, "test")


def part_of_the_examples(path):
    shutil.rmtree(path)
    test = Split(DATA.test.images[1:], DATA.test.labels[1:])
    tfds._prepare(DATA._replace(test=test), path.parent.parent)


def flipped(path):
    (shard,) = path.glob("cifar10-train.array_record*")
    raw = bytearray(shard.read_bytes())
    raw[len(raw) // 4] ^= 1
    shard.write_bytes(raw)


DAMAGES = {
    "a flipped bit": flipped,
    "a missing shard": lambda path: next(path.glob("cifar10-test.array_record*")).unlink(),
    "no features": lambda path: (path / "features.json").unlink(),
    "a part of the examples": part_of_the_examples,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_an_error_that_names_the_folder(damage, prepared):
    DAMAGES[damage](prepared)
    with pytest.raises(DataError, match=f"^{re.escape(str(prepared))}: .*Delete this folder"):
        load_cifar10()


# --- downloading and preparing ---


def test_the_archive_is_the_one_that_tfds_knows(monkeypatch):
    import tensorflow_datasets

    monkeypatch.undo()
    known = Path(tensorflow_datasets.__file__).parent / "url_checksums" / "cifar10.txt"
    url, _, sha256, *_ = known.read_text().split()
    assert url == tfds.ARCHIVE_FOLDER + tfds.ARCHIVE_NAME and sha256 == tfds.ARCHIVE_SHA256
    assert 0 < tfds.NETWORK_TIMEOUT * (1 + tfds.RETRIES) < 30  # it promises to fail within half a minute


def test_download_prepare_and_read(archive, serve, tmp_path, capfd):
    requests = serve(lambda handler: send(handler, archive))
    check(load_cifar10(), DATA)
    path = tmp_path / "tensorflow_datasets" / "cifar10" / "3.0.2"
    assert {file.parent for file in files_below(tmp_path / "tensorflow_datasets")} == {path}  # no archive is left
    assert requests == ["/cifar-10-binary.tar.gz"]
    check(load_cifar10(), DATA)
    assert len(requests) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["Downloading", "Preparing", "Reading"]


def test_neither_tensorflow_nor_the_network_is_touched_after_the_download(archive, tmp_path, monkeypatch):
    def fail(*args, **kwargs):
        raise AssertionError("the network was touched")

    write_files(tmp_path / "downloads" / "jaxresnet", {tfds.ARCHIVE_NAME: archive})
    monkeypatch.setattr(socket, "getaddrinfo", fail)
    monkeypatch.setattr(socket.socket, "connect", fail)
    check(read_prepared(download_and_prepare(tmp_path)), DATA)
    assert "tensorflow" not in sys.modules


def stall(handler, archive):
    send(handler, archive[:1000], length=len(archive))
    time.sleep(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "refused"),
        (lambda handler, archive: send(handler, b"no such page", status=404), "404"),
        (lambda handler, archive: send(handler, b"<html>please log in</html>"), "hash of downloaded file"),
        (lambda handler, archive: send(handler, archive[:-1000], length=len(archive)), "1000 more expected"),
        (stall, "timed out"),
    ],
)
def test_a_failed_download_leaves_nothing(answer, message, archive, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "NETWORK_TIMEOUT", 0.3)
    if answer:
        serve(lambda handler: answer(handler, archive))
    with pytest.raises(DataError, match=rf"^{tfds.ARCHIVE_FOLDER}cifar-10-binary.tar.gz: .*{message}") as raised:
        load_cifar10()
    assert "get it on another machine" in str(raised.value) and "--data-dir" in str(raised.value)
    assert files_below(tmp_path / "tensorflow_datasets") == []


def test_a_failed_download_is_tried_again(archive, serve, tmp_path, monkeypatch):
    monkeypatch.setattr(tfds, "RETRIES", 1)
    requests = serve(lambda handler: send(handler, archive[: -1000 if len(requests) == 1 else None], len(archive)))
    check(read_prepared(download_and_prepare(tmp_path)), DATA)
    assert len(requests) == 2


def test_a_whole_archive_is_used_again_and_a_half_written_one_is_not(archive, serve, tmp_path, monkeypatch):
    """After a process that was stopped or killed, whose other files are removed in the end."""
    requests = serve(lambda handler: send(handler, archive))
    prepare = tfds._prepare

    def fail(data, root):
        raise KeyboardInterrupt

    monkeypatch.setattr(tfds, "_prepare", fail)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            download_and_prepare(tmp_path)
    assert len(requests) == 1
    (kept,) = tmp_path.rglob(tfds.ARCHIVE_NAME)
    kept.write_bytes(archive[: len(archive) // 2])
    kept.with_name("tmp123").write_bytes(b"part of a download")
    monkeypatch.setattr(tfds, "_prepare", prepare)
    path = download_and_prepare(tmp_path)
    check(read_prepared(path), DATA)
    assert len(requests) == 2
    assert {file.parent for file in files_below(tmp_path)} == {tmp_path, path}  # tmp_path: the archive that is served


def test_a_folder_that_cannot_be_written_is_named(archive, serve, tmp_path):
    requests = serve(lambda handler: send(handler, archive))
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "tfds"
    with pytest.raises(DataError, match=rf"^{root}: cannot write .*\$TFDS_DATA_DIR.*--data-dir.*\$JAXRESNET_DATA"):
        download_and_prepare(root)
    assert not requests


@pytest.mark.parametrize("downloaded", [False, True])
def test_a_disk_that_fills_up_leaves_nothing_unfinished(downloaded, archive, serve, tmp_path):
    """A limit on the size of a file fails a write half-way, as a full disk does."""
    resource = pytest.importorskip("resource")
    serve(lambda handler: send(handler, archive))
    root = tmp_path / "tfds"
    if downloaded:
        write_files(root / "downloads" / "jaxresnet", {tfds.ARCHIVE_NAME: archive})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError, match=r"cannot write CIFAR-10 here .*too large"):
            download_and_prepare(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert find_prepared(root) is None
    assert [path.name for path in files_below(root)] == [tfds.ARCHIVE_NAME] * downloaded
    check(read_prepared(download_and_prepare(root)), DATA)


def test_another_process_may_prepare_it_at_the_same_time(archive, serve, tmp_path, prepared_once, monkeypatch):
    serve(lambda handler: send(handler, archive))
    root = tmp_path / "tfds"

    def lose_the_race(data, own):
        shutil.rmtree(root / "downloads" / "jaxresnet")  # as the other does in the end
        shutil.copytree(prepared_once, root, dirs_exist_ok=True)

    monkeypatch.setattr(tfds, "_prepare", lose_the_race)
    check(read_prepared(download_and_prepare(root)), DATA)
