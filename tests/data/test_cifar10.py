"""Where CIFAR-10 is looked for, and every layout that is read."""

import json

import pytest
from support.fake_cifar10 import (
    BATCH,
    bin_members,
    check,
    fake_splits,
    isolated_fakes,
    py_members,
    write_bin,
    write_npz,
    write_py,
    write_tar,
)

from jaxresnet.data import cifar10, cifar10_archive
from jaxresnet.data import readers as cifar10_files
from jaxresnet.data import tfds as cifar10_tfds
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.data.dataset import Split
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def splits(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as splits:
        yield splits


def official(monkeypatch, path):
    """Pretend that the archive at `path` is the official one of its name."""
    md5 = cifar10_archive.hashlib.md5(path.read_bytes()).hexdigest()
    monkeypatch.setitem(cifar10_archive.OFFICIAL_MD5, path.name, md5)
    return path


def prepared_tfds(monkeypatch, folder, splits):
    """A directory that stands for one prepared by TFDS, found and read by stand-ins."""
    prepared = folder / "cifar10" / "3.0.2"
    prepared.mkdir(parents=True)
    (prepared / "cifar10-train.array_record-00000-of-00001").write_bytes(b"records")
    monkeypatch.setattr(
        cifar10_tfds,
        "find_prepared",
        lambda where: next((p for p in (where, where / "cifar10" / "3.0.2") if p == prepared), None),
    )
    monkeypatch.setattr(cifar10_tfds, "needs_tensorflow", lambda path: False)
    monkeypatch.setattr(cifar10_tfds, "read_prepared", lambda path: splits if path == prepared else pytest.fail())
    return prepared


def test_facts_about_the_real_data(monkeypatch):
    monkeypatch.undo()
    assert cifar10_files.num_images("train") == 50_000 and cifar10_files.num_images("test") == 10_000
    assert cifar10_files.batch_size_limit("bin") == 30_730_000  # the size of the official data_batch_1.bin
    assert cifar10_files.batch_size_limit("py") > 31_035_704  # the size of the official data_batch_1
    assert len(set(cifar10_files.LABEL_CRC32)) == 6


LAYOUTS = {
    "bin": lambda where, splits: write_bin(where, splits).parent,
    "bin, the folder itself": lambda where, splits: write_bin(where, splits),
    "py": lambda where, splits: write_py(where, splits).parent,
    "py, the folder itself": lambda where, splits: write_py(where, splits),
    "py, protocol 2 by Python 3": lambda where, splits: write_py(where, splits, protocol=2),
    "py, protocol 4": lambda where, splits: write_py(where, splits, protocol=4),
    "npz": lambda where, splits: write_npz(where / "any.npz", splits).parent,
    "npz, the file itself": lambda where, splits: write_npz(where / "any.npz", splits),
    "npz, Keras' names": lambda where, splits: write_npz(where / "any.npz", splits, keras_names=True),
    "binary archive under another name": lambda where, splits: write_tar(where / "c.tgz", bin_members(splits)),
    "python archive under another name": lambda where, splits: write_tar(where / "c.tar.gz", py_members(splits)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout_reads_and_caches(layout, tmp_path, splits, monkeypatch):
    where = LAYOUTS[layout](tmp_path / "data", splits)
    check(load_cifar10(where), splits)
    monkeypatch.setattr(cifar10, "read_source", lambda source: pytest.fail("read the source again"))
    check(load_cifar10(str(where)), splits)


@pytest.mark.parametrize(
    ("name", "members"), [("cifar-10-binary.tar.gz", bin_members), ("cifar-10-python.tar.gz", py_members)]
)
def test_official_archive_in_a_folder(name, members, tmp_path, splits, monkeypatch):
    official(monkeypatch, write_tar(tmp_path / "data" / name, members(splits)))
    check(load_cifar10(tmp_path / "data"), splits)
    assert [file.name for file in (tmp_path / "data").iterdir()] == [name]  # nothing was unpacked


def test_prepared_tfds_directory(tmp_path, splits, monkeypatch):
    prepared_tfds(monkeypatch, tmp_path / "data", splits)
    check(load_cifar10(tmp_path / "data"), splits)


def test_class_counts_and_names(tmp_path, splits):
    dataset = load_cifar10(write_bin(tmp_path, splits))
    assert dataset.name == "cifar10" and not dataset.synthetic and dataset.class_names[9] == "truck"
    assert dataset.train.num_examples == 5 * BATCH and dataset.test.num_examples == BATCH


# --- where it looks ---


def test_argument_comes_before_the_variable_and_that_before_tfds(tmp_path, splits, monkeypatch):
    prepared_tfds(monkeypatch, tmp_path / "tensorflow_datasets", splits)
    check(load_cifar10(), splits)

    other = fake_splits(seed=0)
    other["train"].images[0] = 7
    write_bin(tmp_path / "variable", other)
    monkeypatch.setenv("JAXRESNET_DATA", str(tmp_path / "variable"))
    assert (load_cifar10().train.images[0] == 7).all()

    check(load_cifar10(write_bin(tmp_path / "argument", splits)), splits)

    monkeypatch.setenv("JAXRESNET_DATA", "")  # set to nothing: as if it were not set
    check(load_cifar10(), splits)


def test_downloads_when_nothing_is_there(tmp_path, splits, monkeypatch):
    root = tmp_path / "tensorflow_datasets"

    def download(where):
        assert where == root
        return prepared_tfds(monkeypatch, root, splits)

    monkeypatch.setattr(cifar10_tfds, "download_and_prepare", download)
    check(load_cifar10(), splits)


def test_prepares_a_copy_of_its_own_beside_one_that_needs_tensorflow(tmp_path, splits, monkeypatch):
    theirs = tmp_path / "tensorflow_datasets" / "cifar10" / "3.0.2"
    theirs.mkdir(parents=True)
    info = {"name": "cifar10", "version": "3.0.2", "fileFormat": "tfrecord"}
    (theirs / "dataset_info.json").write_text(json.dumps(info))
    assert cifar10_tfds.needs_tensorflow(theirs)

    def download(where):
        assert where == tmp_path / "cache" / "jaxresnet" / "tensorflow_datasets"
        return prepared_tfds(monkeypatch, where, splits)

    monkeypatch.setattr(cifar10_tfds, "download_and_prepare", download)
    check(load_cifar10(), splits)


@pytest.mark.parametrize("given_by", ["data_dir", "$JAXRESNET_DATA"])
def test_folder_without_cifar10_is_an_error_not_a_download(given_by, tmp_path, monkeypatch, splits):
    prepared_tfds(monkeypatch, tmp_path / "tensorflow_datasets", splits)  # it must not be fallen back to
    folder = tmp_path / "data"
    folder.mkdir()
    (folder / "notes.txt").write_text("hello")
    if given_by != "data_dir":
        monkeypatch.setenv("JAXRESNET_DATA", str(folder))
    with pytest.raises(DataError) as error:
        load_cifar10(folder if given_by == "data_dir" else None)
    for part in (str(folder), given_by, "cifar-10-batches-bin/", "cifar-10-python.tar.gz", "*.npz", "notes.txt"):
        assert part in str(error.value)


def test_path_that_does_not_exist(tmp_path):
    with pytest.raises(DataError, match=r"nowhere \(data_dir\): there is no such file"):
        load_cifar10(tmp_path / "nowhere")


def test_file_of_an_unknown_kind(tmp_path):
    (tmp_path / "cifar.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"cifar.zip.*holds no CIFAR-10"):
        load_cifar10(tmp_path / "cifar.zip")


def test_several_npz_files_are_ambiguous(tmp_path, splits):
    write_npz(tmp_path / "data" / "a.npz", splits)
    write_npz(tmp_path / "data" / "b.npz", splits)
    with pytest.raises(DataError, match=r"several .npz files \(a.npz, b.npz\)"):
        load_cifar10(tmp_path / "data")
    check(load_cifar10(tmp_path / "data" / "b.npz"), splits)


def test_tfds_in_another_order_is_an_error(tmp_path, splits, monkeypatch):
    other = splits | {"train": Split(splits["train"].images[::-1], splits["train"].labels[::-1])}
    prepared_tfds(monkeypatch, tmp_path / "data", other)
    with pytest.raises(DataError, match=r"3\.0\.2: its labels are not CIFAR-10's in the official order"):
        load_cifar10(tmp_path / "data")
