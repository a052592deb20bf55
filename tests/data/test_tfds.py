"""CIFAR-10 through TFDS: a small fake archive, served by a local server, is downloaded, prepared and read."""

import hashlib
import json
import shutil
import socket
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.fake_cifar10 import check, flip, members, write_files, write_tar
from support.fake_server import archive_server, send

from jaxresnet.data import tfds
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.tfds import default_tfds_dir, download_and_prepare, find_prepared, read_prepared
from jaxresnet.errors import DataError


@pytest.fixture
def root(data, tmp_path):
    """TFDS' folder, which is not there."""
    return tmp_path / "tensorflow_datasets"


@pytest.fixture
def server(data, tmp_path, monkeypatch):
    """It has an archive that passes for the official one."""
    content = write_tar(tmp_path / "source.tar.gz", members(data, "bin")).read_bytes()
    monkeypatch.setattr(tfds, "ARCHIVE_SHA256", hashlib.sha256(content).hexdigest())
    with archive_server(monkeypatch, content) as server:
        yield server


def files_below(root):
    return sorted(path for path in root.rglob("*") if path.is_file())


# --- where, and reading ---


def test_default_tfds_dir_is_that_of_tfds(monkeypatch):
    from tensorflow_datasets.core import constants

    for variable in ("/elsewhere/tfds", "~/sets"):
        monkeypatch.setenv("TFDS_DATA_DIR", variable)
        assert default_tfds_dir() == Path(constants.get_default_data_dir()).expanduser()
    monkeypatch.setenv("TFDS_DATA_DIR", "gs://bucket/tfds")  # not on this machine
    assert default_tfds_dir() == Path("~/tensorflow_datasets").expanduser()
    monkeypatch.delenv("TFDS_DATA_DIR")
    assert default_tfds_dir() == Path(constants.get_default_data_dir())


@pytest.mark.parametrize("above", [Path("cifar10", "3.0.2"), Path("3.0.2"), Path()], ids=str)
def test_what_tfds_prepared_is_found_at_and_below_a_folder(above, tmp_path):
    prepared = tmp_path / above
    prepared.mkdir(parents=True, exist_ok=True)
    assert find_prepared(tmp_path) is None
    of = {"name": "cifar10", "fileFormat": "tfrecord"}
    for info, found in ((of, None), ({**of, "alternativeFileFormats": ["array_record"]}, prepared), ({}, None)):
        (prepared / "dataset_info.json").write_text(json.dumps(info))
        assert find_prepared(tmp_path) == found


def test_damage_is_an_error_that_names_the_folder(data, root):
    tfds._prepare(data, root)
    (shard,) = root.rglob("cifar10-train.array_record*")
    raw = shard.read_bytes()
    for damage in (lambda: shard.write_bytes(flip(raw, len(raw) // 4)), shard.unlink):
        damage()
        with pytest.raises(DataError, match=f"^{root}/cifar10/3.0.2: .*Delete this folder"):
            load_cifar10()


def test_examples_that_are_not_the_official_ones_are_refused(data):
    stored = [{"id": f"test_{i:05d}".encode(), "image": np.zeros((32, 32, 3)), "label": 0} for i in range(1, 101)]
    with pytest.raises(ValueError, match="the 100 test examples are not test_00000 to test_00099"):
        tfds._read_split(stored, "test")


# --- downloading and preparing ---


def test_the_archive_is_the_one_that_tfds_knows():
    import tensorflow_datasets

    known = Path(tensorflow_datasets.__file__).parent / "url_checksums" / "cifar10.txt"
    url, _, sha256, *_ = known.read_text().split()
    assert url == tfds.ARCHIVE_FOLDER + tfds.ARCHIVE_NAME and sha256 == tfds.ARCHIVE_SHA256
    assert 0 < tfds.NETWORK_TIMEOUT * (1 + tfds.RETRIES) < 30  # it promises to fail within half a minute


def test_it_is_downloaded_prepared_and_read_without_tensorflow_or_any_other_address(
    server, data, root, monkeypatch, capfd
):
    look_up = socket.getaddrinfo

    def only_the_server(host, *more, **named):
        return look_up(host, *more, **named) if host == "127.0.0.1" else pytest.fail(f"it asked for {host}")

    monkeypatch.setattr(socket, "getaddrinfo", only_the_server)
    for _ in range(2):
        check(load_cifar10(), data)
    assert server.requests == ["/cifar-10-binary.tar.gz"] and "tensorflow" not in sys.modules
    assert {file.parent for file in files_below(root)} == {root / "cifar10" / "3.0.2"}  # no archive is left
    out, err = capfd.readouterr()
    assert out == ""
    assert [line.split()[0] for line in err.splitlines()] == ["Downloading", "Preparing", "Reading"]

    import tensorflow_datasets

    builder = tensorflow_datasets.builder("cifar10", data_dir=root)  # TFDS reads it as well
    assert builder.info.full_name == "cifar10/3.0.2" and builder.info.features["label"].int2str(0) == "airplane"
    stored = [example["id"].decode() for example in builder.as_data_source("train")]
    assert stored != sorted(stored) == [f"train_{i:05d}" for i in range(500)]  # it did shuffle


def stall(handler, archive):
    send(handler, archive[:1000], len(archive))
    time.sleep(1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda handler, archive: send(handler, b"no such page", status=404), "404"),
        (lambda handler, archive: send(handler, b"<html>please log in</html>"), "hash of downloaded file"),
        (lambda handler, archive: send(handler, archive[:-1000], len(archive)), "1000 more expected"),
        (stall, "timed out"),
    ],
    ids=["no such page", "page to log in", "cut off", "stalled"],
)
def test_a_failed_download_leaves_nothing(answer, message, server, root, monkeypatch):
    monkeypatch.setattr(tfds, "NETWORK_TIMEOUT", 0.3)
    server.answer = answer
    told = rf"^{tfds.ARCHIVE_FOLDER}cifar-10-binary.tar.gz: .*{message}.*get it on another machine .*--data-dir"
    with pytest.raises(DataError, match=told):
        load_cifar10()
    assert files_below(root) == []


def test_without_a_network_the_error_says_how_to_get_it(data):
    with pytest.raises(DataError, match=r"refused.*get it on another machine .*--data-dir"):
        load_cifar10()


def test_a_whole_archive_is_used_again_and_a_half_written_one_is_not(server, data, root, monkeypatch):
    resource = pytest.importorskip("resource")
    folder = root / "downloads" / "jaxresnet"
    write_files(folder, {tfds.ARCHIVE_NAME: server.content})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # fails a write half-way, as a full disk does
    try:
        with pytest.raises(DataError, match=r"cannot write CIFAR-10 here .*too large"):
            download_and_prepare(root)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not server.requests and files_below(root) == [folder / tfds.ARCHIVE_NAME]

    half = server.content[: len(server.content) // 2]
    write_files(folder, {tfds.ARCHIVE_NAME: half, "tmp123": b"what a process left that was killed"})
    monkeypatch.setattr(tfds, "RETRIES", 1)  # and the first download fails
    server.answer = lambda handler, archive: send(handler, archive if server.requests[1:] else half, len(archive))
    path = download_and_prepare(root)
    check(read_prepared(path), data)
    assert len(server.requests) == 2 and {file.parent for file in files_below(root)} == {path}


def test_a_folder_that_cannot_be_written_is_named(server, tmp_path):
    (tmp_path / "file").write_text("")
    root = tmp_path / "file" / "tfds"
    with pytest.raises(DataError, match=rf"^{root}: cannot write .*\$TFDS_DATA_DIR.*--data-dir.*\$JAXRESNET_DATA"):
        download_and_prepare(root)
    assert not server.requests


def test_another_process_may_prepare_it_at_the_same_time(server, data, root, monkeypatch):
    prepare = tfds._prepare

    def lose_the_race(data, own):
        shutil.rmtree(root / "downloads" / "jaxresnet")  # as the other does in the end
        prepare(data, root)

    monkeypatch.setattr(tfds, "_prepare", lose_the_race)
    check(read_prepared(download_and_prepare(root)), data)
