"""Where CIFAR-10 is looked for, every layout that is read, and the cache."""

import json
import os
import re

import numpy as np
import pytest
from support.fake_cifar10 import (
    bin_members,
    check,
    fake_data,
    isolated_fakes,
    py_members,
    write_bin,
    write_npz,
    write_py,
    write_tar,
)

from jaxresnet.data import cifar10, tfds
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def data(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as data:
        yield data


def count_reads(monkeypatch):
    reads, read = [], cifar10._read
    monkeypatch.setattr(cifar10, "_read", lambda source: reads.append(source) or read(source))
    return reads


LAYOUTS = {
    "bin": lambda where, data: write_bin(where, data).parent,
    "bin, the folder itself": write_bin,
    "py": lambda where, data: write_py(where, data).parent,
    "py, the folder itself": write_py,
    **{f"py, protocol {n} by Python 3": lambda where, data, n=n: write_py(where, data, protocol=n) for n in (0, 2, 4)},
    "npz": lambda where, data: write_npz(where / "any.npz", data).parent,
    "npz, the file itself": lambda where, data: write_npz(where / "any.npz", data),
    "npz, Keras' names": lambda where, data: write_npz(where / "any.npz", data, keras=True),
    "bin.tar.gz": lambda where, data: write_tar(where / "cifar-10-binary.tar.gz", bin_members(data)).parent,
    "py.tar.gz": lambda where, data: write_tar(where / "cifar-10-python.tar.gz", py_members(data)).parent,
    "bin.tar.gz of another name": lambda where, data: write_tar(where / "c.tgz", bin_members(data)),
    "py.tar.gz of another name": lambda where, data: write_tar(where / "c.tar.gz", py_members(data)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_reads_and_caches(layout, tmp_path, data, monkeypatch):
    where = LAYOUTS[layout](tmp_path / "data", data)
    before = list(tmp_path.rglob("*"))
    reads = count_reads(monkeypatch)
    dataset = load_cifar10(where)
    check(dataset, data)
    assert not any(array.flags.writeable for array in (*dataset.train, *dataset.test))
    assert dataset.name == "cifar10" and not dataset.synthetic and dataset.class_names[9] == "truck"
    check(load_cifar10(str(where)), data)
    assert len(reads) == 1
    assert [path for path in tmp_path.rglob("*") if path not in before and path.is_file()] == [cache_of(tmp_path)]


# --- where it looks ---


def prepared_tfds(monkeypatch, folder, data, file_format="array_record"):
    """A directory that TFDS seems to have prepared, read by a stand-in."""
    prepared = folder / "cifar10" / "3.0.2"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text(json.dumps({"name": "cifar10", "fileFormat": file_format}))
    monkeypatch.setattr(tfds, "read_prepared", lambda path: data if path == prepared else pytest.fail())
    return prepared


def test_argument_comes_before_the_variable_and_that_before_tfds(tmp_path, data, monkeypatch):
    prepared_tfds(monkeypatch, tmp_path / "tensorflow_datasets", data)
    check(load_cifar10(), data)

    other = fake_data()
    other.train.images[0] = 7
    write_bin(tmp_path / "variable", other)
    monkeypatch.setenv("JAXRESNET_DATA", str(tmp_path / "variable"))
    check(load_cifar10(), other)
    check(load_cifar10(write_bin(tmp_path / "argument", data)), data)

    monkeypatch.setenv("JAXRESNET_DATA", "")  # set to nothing: as if it were not set
    check(load_cifar10(), data)


@pytest.mark.parametrize("beside_tfrecord", [False, True])
def test_downloads_when_nothing_is_there_that_it_can_read(beside_tfrecord, tmp_path, data, monkeypatch):
    expected = root = tmp_path / "tensorflow_datasets"
    if beside_tfrecord:  # another program's, that must stay as it is
        prepared_tfds(monkeypatch, root, data, "tfrecord")
        expected = tmp_path / "cache" / "jaxresnet" / "tensorflow_datasets"
    roots = []

    def download(root):
        roots.append(root)
        return prepared_tfds(monkeypatch, root, data)

    monkeypatch.setattr(tfds, "download_and_prepare", download)
    check(load_cifar10(), data)
    check(load_cifar10(), data)
    assert roots == [expected]


@pytest.mark.parametrize("given_by", ["data_dir", "$JAXRESNET_DATA"])
def test_folder_without_cifar10_is_an_error_not_a_download(given_by, tmp_path, monkeypatch, data):
    prepared_tfds(monkeypatch, tmp_path / "tensorflow_datasets", data)  # it must not be fallen back to
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    if given_by != "data_dir":
        monkeypatch.setenv("JAXRESNET_DATA", str(folder))
    with pytest.raises(DataError) as error:
        load_cifar10(folder if given_by == "data_dir" else None)
    for part in (str(folder), given_by, "cifar-10-python.tar.gz", ".npz", "notes.txt"):
        assert part in str(error.value)


def test_paths_that_hold_nothing_or_too_much(tmp_path, data, monkeypatch):
    (tmp_path / "cifar.zip").write_bytes(b"PK")
    for name, message in {"nowhere": "there is no such path", "cifar.zip": "holds no CIFAR-10"}.items():
        with pytest.raises(DataError, match=rf"{name} \(data_dir\): .*{message}"):
            load_cifar10(tmp_path / name)
    prepared_tfds(monkeypatch, tmp_path / "tfrecord", data, "tfrecord")
    with pytest.raises(DataError, match="as array_record"):
        load_cifar10(tmp_path / "tfrecord")
    one = [write_npz(tmp_path / "data" / name, data) for name in ("a.npz", "b.npz")][1]
    with pytest.raises(DataError, match=r"several .npz files \(a.npz, b.npz\)"):
        load_cifar10(tmp_path / "data")
    check(load_cifar10(one), data)


def test_tfds_in_another_order_is_an_error(tmp_path, data, monkeypatch):
    other = data._replace(train=Split(data.train.images[::-1].copy(), data.train.labels[::-1]))
    prepared_tfds(monkeypatch, tmp_path / "data", other)
    with pytest.raises(DataError, match=r"3\.0\.2: its labels are not CIFAR-10's in the official order"):
        load_cifar10(tmp_path / "data")


# --- the cache ---


def cache_of(tmp_path):
    (file,) = (tmp_path / "cache" / "jaxresnet").glob("*")
    return file


@pytest.fixture
def source(tmp_path, data):
    """A folder that has been read once."""
    folder = write_bin(tmp_path / "data", data)
    load_cifar10(folder)
    return folder


def test_cache_is_mapped_not_read(source):
    images = load_cifar10(source).train.images
    while not isinstance(images, np.memmap):
        images = images.base
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def flip(position):
    return lambda raw: raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]


DAMAGES = {
    "a flipped bit in a pixel": flip(1000),
    "a flipped bit in the version": flip(-10),
    "a flipped bit in the checksum": flip(-2),
    "truncated": lambda raw: raw[:-1],
    "emptied": lambda raw: b"",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_cache_is_rebuilt(damage, source, data, tmp_path, monkeypatch):
    file = cache_of(tmp_path)
    whole = file.read_bytes()
    file.write_bytes(DAMAGES[damage](whole))
    reads = count_reads(monkeypatch)
    check(load_cifar10(source), data)
    assert len(reads) == 1
    assert cache_of(tmp_path).read_bytes() == whole


@pytest.mark.parametrize("keep_time", [False, True])
def test_changed_source_is_read_again(keep_time, source, data, tmp_path):
    before = [(file, file.stat()) for file in source.iterdir()]
    data.test.images[5] = 99
    write_bin(source.parent, data)
    if keep_time:
        for file, stat in before:
            os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    check(load_cifar10(source), data)
    assert cache_of(tmp_path)  # one, in place of the old


def test_source_damaged_after_caching_is_an_error(source):
    (source / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"test_batch\.bin"):
        load_cifar10(source)
    (source / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"missing test_batch\.bin"):
        load_cifar10(source)


def test_two_sources_have_two_caches_where_the_argument_says(tmp_path, data):
    other = fake_data()
    other.train.images[0] = 7
    one, two = write_bin(tmp_path / "one", data), write_bin(tmp_path / "two", other)
    for _ in range(2):
        check(load_cifar10(one, cache_dir=tmp_path / "elsewhere"), data)
        check(load_cifar10(two, cache_dir=str(tmp_path / "elsewhere")), other)
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_warns_and_loads(tmp_path, data):
    source = write_bin(tmp_path / "data", data)
    (tmp_path / "file").write_text("in the way")  # holds for root too, whom permissions do not stop
    with pytest.warns(UserWarning, match=rf"cache_dir.*{re.escape(str(source))} is read again each time") as caught:
        check(load_cifar10(source, cache_dir=tmp_path / "file"), data)
    assert len(caught) == 1 and caught[0].filename == __file__
