"""Where CIFAR-10 is looked for, every layout that is read, and the cache."""

import json
import os
import re

import numpy as np
import pytest
from support import fake_cifar10 as fake

from jaxresnet.data import cifar10, tfds
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.errors import DataError


def count_reads(monkeypatch):
    reads, read = [], cifar10._read
    monkeypatch.setattr(cifar10, "_read", lambda source: reads.append(source) or read(source))
    return reads


LAYOUTS = {
    "bin": fake.write_bin,
    "py": fake.write_py,
    "py, protocol 2 by Python 3": lambda where, data: fake.write_py(where, data, protocol=2),
    "py, protocol 4 by Python 3": lambda where, data: fake.write_py(where, data, protocol=4),
    "npz": lambda where, data: fake.write_npz(where / "any.npz", data),
    "npz, Keras' names": lambda where, data: fake.write_npz(where / "any.npz", data, keras=True),
    "bin.tar.gz": lambda where, data: fake.write_tar(where / "cifar-10-binary.tar.gz", fake.members(data, "bin")),
    "py.tar.gz": lambda where, data: fake.write_tar(where / "cifar-10-python.tar.gz", fake.members(data, "py")),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_layout_is_read_once_from_its_path_or_the_folder_that_holds_it(layout, tmp_path, data, monkeypatch):
    where = LAYOUTS[layout](tmp_path / "data", data)
    before = list(tmp_path.rglob("*"))
    reads = count_reads(monkeypatch)
    for given in (where, str(where.parent)):
        dataset = load_cifar10(given)
        fake.check(dataset, data)
        assert not any(array.flags.writeable for array in (*dataset.train, *dataset.test))
        assert dataset.name == "cifar10" and not dataset.synthetic and dataset.class_names[9] == "truck"
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
    other = data._replace(test=Split(data.test.images + 1, data.test.labels))
    fake.write_bin(tmp_path / "variable", other)
    for variable, expected in ((tmp_path / "variable", other), ("", data)):  # nothing: as if it were not set
        monkeypatch.setenv("JAXRESNET_DATA", str(variable))
        fake.check(load_cifar10(), expected)
    monkeypatch.setenv("JAXRESNET_DATA", str(tmp_path / "variable"))
    fake.check(load_cifar10(fake.write_bin(tmp_path / "argument", data)), data)


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
    fake.check(load_cifar10(), data)
    fake.check(load_cifar10(), data)
    assert roots == [expected]


@pytest.mark.parametrize("given_by", ["data_dir", "$JAXRESNET_DATA"])
def test_folder_without_cifar10_is_an_error_not_a_download(given_by, tmp_path, monkeypatch, data):
    prepared_tfds(monkeypatch, tmp_path / "tensorflow_datasets", data)  # it must not be fallen back to
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "notes.txt").write_text("hello")
    monkeypatch.setenv("JAXRESNET_DATA", str(tmp_path / "data"))
    told = f"{tmp_path}/data ({given_by}): holds no CIFAR-10: notes.txt is there. Put cifar-10-binary.tar.gz or "
    with pytest.raises(DataError, match=re.escape(told)):
        load_cifar10(tmp_path / "data" if given_by == "data_dir" else None)


def test_paths_that_hold_nothing_or_too_much(tmp_path, data, monkeypatch):
    with pytest.raises(DataError, match=r"nowhere \(data_dir\): .*there is no such path"):
        load_cifar10(tmp_path / "nowhere")
    prepared_tfds(monkeypatch, tmp_path / "tfrecord", data, "tfrecord")
    with pytest.raises(DataError, match="as array_record"):
        load_cifar10(tmp_path / "tfrecord")
    one = [fake.write_npz(tmp_path / "data" / name, data) for name in ("a.npz", "b.npz")][1]
    with pytest.raises(DataError, match=r"several .npz files \(a.npz, b.npz\)"):
        load_cifar10(tmp_path / "data")
    fake.check(load_cifar10(one), data)


def test_tfds_in_another_order_is_an_error(tmp_path, data, monkeypatch):
    prepared_tfds(monkeypatch, tmp_path / "data", fake.fake_data(1))
    with pytest.raises(DataError, match=r"3\.0\.2: its labels are not CIFAR-10's in the official order"):
        load_cifar10(tmp_path / "data")


# --- the cache ---


def cache_of(tmp_path):
    (file,) = (tmp_path / "cache" / "jaxresnet").glob("*")
    return file


def test_cache_is_mapped_not_read_and_rebuilt_where_it_is_damaged(tmp_path, data, monkeypatch):
    source = fake.write_bin(tmp_path / "data", data)
    load_cifar10(source)
    images = load_cifar10(source).train.images
    while not isinstance(images, np.memmap):
        images = images.base
    reads, file = count_reads(monkeypatch), cache_of(tmp_path)
    whole = file.read_bytes()
    flipped = [fake.flip(whole, position) for position in (1000, -10, -2)]  # pixels, version, checksum
    for number, damaged in enumerate((*flipped, whole[:-1], b""), 1):
        file.write_bytes(damaged)
        fake.check(load_cifar10(source), data)
        assert len(reads) == number and file.read_bytes() == whole


def test_changed_source_is_read_again(tmp_path, data):
    source = fake.write_bin(tmp_path / "data", data)
    load_cifar10(source)
    before = [(file, file.stat()) for file in source.iterdir()]
    data.test.images[5] = 99
    fake.write_bin(source.parent, data)
    for file, stat in before:  # as `cp -p` does
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    fake.check(load_cifar10(source), data)
    assert cache_of(tmp_path)  # one, in place of the old
    (source / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"missing test_batch\.bin"):
        load_cifar10(source)


def test_two_sources_have_two_caches_where_the_argument_says(tmp_path, data):
    other = fake.fake_data(1)
    one, two = fake.write_bin(tmp_path / "one", data), fake.write_npz(tmp_path / "two.npz", other)
    for _ in range(2):
        fake.check(load_cifar10(one, cache_dir=tmp_path / "elsewhere"), data)
        with pytest.warns(UserWarning, match="not in the official order") as caught:  # each time
            fake.check(load_cifar10(two, cache_dir=str(tmp_path / "elsewhere")), other)
        assert caught[0].filename == __file__  # it points at the caller of load_cifar10
    assert len(list((tmp_path / "elsewhere").iterdir())) == 2
    assert not (tmp_path / "cache").exists()


def test_unwritable_cache_warns_and_loads(tmp_path, data):
    source = fake.write_bin(tmp_path / "data", data)
    (tmp_path / "file").write_text("in the way")  # holds for root too, whom permissions do not stop
    with pytest.warns(UserWarning, match=rf"cache_dir.*{re.escape(str(source))} is read again each time") as caught:
        fake.check(load_cifar10(source, cache_dir=tmp_path / "file"), data)
    assert len(caught) == 1 and caught[0].filename == __file__
