"""The .tar.gz archives: repacked, truncated, corrupt and hostile ones."""

import gzip
import os
import pickle
import tarfile

import pytest
from support.fake_cifar10 import Runs, bin_members, check, isolated_fakes, py_members, write_tar

from jaxresnet.data import cifar10_archive
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def splits(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as splits:
        yield splits


NAME = "cifar-10-binary.tar.gz"


def test_repacked_archive_is_used_with_a_warning(tmp_path, splits):
    path = write_tar(tmp_path / NAME, bin_members(splits))
    with pytest.warns(
        UserWarning, match=r"cifar-10-binary.tar.gz: its MD5 checksum is .* the official one c32a1d4a"
    ) as w:
        check(load_cifar10(path), splits)
    assert w[0].filename == __file__  # it points at the caller of load_cifar10


@pytest.mark.parametrize("keep", [0.0, 0.001, 0.5, 0.9999])
def test_truncated_archive(keep, tmp_path, splits):
    path = write_tar(tmp_path / NAME, bin_members(splits))
    raw = path.read_bytes()
    path.write_bytes(raw[: int(len(raw) * keep)])
    with pytest.raises(DataError, match=r"cifar-10-binary.tar.gz: .*Download the archive again.*MD5 checksum"):
        load_cifar10(path)


@pytest.mark.parametrize("position", [0.0, 0.3, 0.7])
def test_corrupt_archive(position, tmp_path, splits):
    path = write_tar(tmp_path / "any.tar.gz", bin_members(splits))
    raw = bytearray(path.read_bytes())
    at = int(len(raw) * position)
    raw[at : at + 20] = bytes(20)
    path.write_bytes(raw)
    with pytest.raises(DataError, match=r"any.tar.gz: truncated or damaged"):
        load_cifar10(path)


def test_corrupt_gzip_checksum(tmp_path, splits):
    path = write_tar(tmp_path / "any.tar.gz", bin_members(splits))
    raw = bytearray(path.read_bytes())
    raw[-6] ^= 1  # in the CRC-32 at the end
    path.write_bytes(raw)
    with pytest.raises(DataError, match="CRC check failed"):
        load_cifar10(path)


def test_archive_that_is_no_tar(tmp_path):
    path = tmp_path / "any.tar.gz"
    path.write_bytes(gzip.compress(b"<html>not found</html>" * 100))
    with pytest.raises(DataError, match="truncated or damaged"):
        load_cifar10(path)


def entry(name, kind, target=""):
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE])
def test_batch_file_that_is_no_file_is_refused(kind, tmp_path, splits):
    members = bin_members(splits)
    members[0] = entry("cifar-10-batches-bin/data_batch_1.bin", kind, "/etc/passwd")
    with pytest.raises(DataError, match=r"data_batch_1.bin is a link or another special entry"):
        load_cifar10(write_tar(tmp_path / "any.tar.gz", members))


def test_strange_members_are_passed_over(tmp_path, splits):
    data = tmp_path / "data"
    strange = [
        ("../outside.bin", b"traversal"),
        ("/tmp/jaxresnet-absolute.bin", b"absolute"),
        ("cifar-10-batches-bin/../../data_batch_1.bin", b"traversal"),
        ("other/data_batch_1.bin", b"another folder"),
        entry("cifar-10-batches-bin/link", tarfile.SYMTYPE, "/etc/passwd"),
        ("cifar-10-batches-bin/batches.meta.txt", b"airplane\n"),
    ]
    check(load_cifar10(write_tar(data / "any.tar.gz", strange + bin_members(splits))), splits)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "data"]
    assert not os.path.exists("/tmp/jaxresnet-absolute.bin")


def test_archive_without_cifar10_or_with_a_part_of_it(tmp_path, splits):
    with pytest.raises(DataError, match=r"missing cifar-10-batches-bin/data_batch_1.bin, "):
        load_cifar10(write_tar(tmp_path / "a.tar.gz", [("cifar-100-binary/train.bin", b"x")]))
    with pytest.raises(DataError, match=r"missing cifar-10-batches-py/test_batch\."):
        load_cifar10(write_tar(tmp_path / "b.tar.gz", py_members(splits)[:-1]))


def test_archive_with_a_member_twice_or_of_a_wrong_size(tmp_path, splits):
    members = bin_members(splits)
    with pytest.raises(DataError, match=r"holds cifar-10-batches-bin/data_batch_1.bin twice"):
        load_cifar10(write_tar(tmp_path / "a.tar.gz", [members[0], *members]))
    name, content = members[1]
    with pytest.raises(DataError, match=r"data_batch_2.bin has 307,301 bytes, expected at most 307,300"):
        load_cifar10(write_tar(tmp_path / "b.tar.gz", [members[0], (name, content + b"\0"), *members[2:]]))
    with pytest.raises(DataError, match=r"data_batch_2.bin: expected 307,300 bytes, found 307,299"):
        load_cifar10(write_tar(tmp_path / "c.tar.gz", [members[0], (name, content[:-1]), *members[2:]]))


def test_archive_bombs(tmp_path, splits, monkeypatch):
    path = write_tar(tmp_path / "any.tar.gz", [("zeros", bytes(5_000_000)), *bin_members(splits)])
    monkeypatch.setattr(cifar10_archive, "MAX_UNPACKED_BYTES", 4_000_000)
    with pytest.raises(DataError, match="unpacks to more than CIFAR-10 could need"):
        load_cifar10(path)
    monkeypatch.setattr(cifar10_archive, "MAX_ARCHIVE_BYTES", 1000)
    with pytest.raises(DataError, match="the official archives 170 million"):
        load_cifar10(path)


def test_malicious_pickle_in_an_archive(tmp_path, splits):
    proof = tmp_path / "executed"
    members = py_members(splits)
    members[0] = (members[0][0], pickle.dumps(Runs(os.system, f"touch {proof}")))
    with pytest.raises(DataError, match=r"any.tar.gz: cifar-10-batches-py/data_batch_1: .*system"):
        load_cifar10(write_tar(tmp_path / "any.tar.gz", members))
    assert not proof.exists()
