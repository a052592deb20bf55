"""The cache of CIFAR-10: quick when whole, rebuilt when not, and never a source of wrong data."""

import json
import os
import shutil
import threading
import time
import zlib

import numpy as np
import pytest
from support.fake_cifar10 import check, fake_splits, isolated_fakes, write_bin

from jaxresnet.data import cifar10, cifar10_cache
from jaxresnet.data.cifar10 import load_cifar10
from jaxresnet.errors import DataError


@pytest.fixture(autouse=True)
def splits(monkeypatch, tmp_path):
    with isolated_fakes(monkeypatch, tmp_path) as splits:
        yield splits


@pytest.fixture
def cached(tmp_path, splits):
    """A source that has been read once: (its folder, the folder of its cache)."""
    source = write_bin(tmp_path / "data", splits)
    load_cifar10(source)
    (folder,) = (tmp_path / "cache" / "jaxresnet").iterdir()
    return source, folder


def count_reads(monkeypatch):
    reads = []
    original = cifar10.read_source
    monkeypatch.setattr(cifar10, "read_source", lambda source: reads.append(source) or original(source))
    return reads


def test_cache_is_mapped_not_read(cached):
    images = load_cifar10(cached[0]).train.images
    assert isinstance(images.base, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        images[0] = 0


def flip(position):
    def damage(path):
        raw = bytearray(path.read_bytes())
        raw[position] ^= 1
        path.write_bytes(raw)

    return damage


DAMAGES = {
    "a flipped bit": flip(-10),
    "a flipped bit in the header": flip(20),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "emptied": lambda path: path.write_bytes(b""),
    "padded": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "removed": lambda path: path.unlink(),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", ["train_images.npy", "train_labels.npy", "test_images.npy", "test_labels.npy"])
def test_damaged_cache_is_rebuilt(damage, file, cached, splits, monkeypatch):
    source, folder = cached
    DAMAGES[damage](folder / file)
    reads = count_reads(monkeypatch)
    check(load_cifar10(source), splits)
    check(load_cifar10(source), splits)
    assert len(reads) == 1
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"format": 1}', '{"format": 1, "source": {}, "crc32": {}}', "\ud800"]
)
def test_damaged_cache_description_is_rebuilt(content, cached, splits, monkeypatch):
    (cached[1] / "cache.json").write_bytes(content.encode(errors="surrogatepass"))
    reads = count_reads(monkeypatch)
    check(load_cifar10(cached[0]), splits)
    check(load_cifar10(cached[0]), splits)
    assert len(reads) == 1


def test_cache_of_an_older_format_is_rebuilt(cached, splits, monkeypatch):
    monkeypatch.setattr(cifar10_cache, "FORMAT", cifar10_cache.FORMAT + 1)
    reads = count_reads(monkeypatch)
    check(load_cifar10(cached[0]), splits)
    check(load_cifar10(cached[0]), splits)
    assert len(reads) == 1


def test_changed_source_is_read_again(cached, splits):
    splits["test"].images[5] = 99
    write_bin(cached[0].parent, splits)
    check(load_cifar10(cached[0]), splits)


def test_source_changed_behind_its_modification_time_is_read_again(cached, splits):
    file = cached[0] / "test_batch.bin"
    before = file.stat()
    splits["test"].images[5] = 99
    write_bin(cached[0].parent, splits)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    check(load_cifar10(cached[0]), splits)


def test_source_damaged_after_caching_is_an_error(cached):
    (cached[0] / "test_batch.bin").write_bytes(b"short")
    with pytest.raises(DataError, match=r"test_batch\.bin"):
        load_cifar10(cached[0])
    (cached[0] / "test_batch.bin").unlink()
    with pytest.raises(DataError, match=r"missing test_batch\.bin"):
        load_cifar10(cached[0])


def test_source_that_changes_while_it_is_read(tmp_path, splits, monkeypatch):
    source = write_bin(tmp_path / "data", splits)
    original = cifar10.read_source

    def slow_read(found):
        result = original(found)
        (source / "test_batch.bin").write_bytes(b"being written")
        return result

    monkeypatch.setattr(cifar10, "read_source", slow_read)
    with pytest.raises(DataError, match="changed while it was read"):
        load_cifar10(source)
    assert not (tmp_path / "cache").exists()


def test_two_sources_have_two_caches(tmp_path, splits):
    other = fake_splits()
    other["train"].images[0] = 7
    one, two = write_bin(tmp_path / "one", splits), write_bin(tmp_path / "two", other)
    for _ in range(2):
        check(load_cifar10(one), splits)
        check(load_cifar10(two), other)
    assert len(list((tmp_path / "cache" / "jaxresnet").iterdir())) == 2


def test_cache_dir_argument(tmp_path, splits):
    source = write_bin(tmp_path / "data", splits)
    load_cifar10(source, cache_dir=tmp_path / "elsewhere")
    assert len(list((tmp_path / "elsewhere").iterdir())) == 1
    assert not (tmp_path / "cache").exists()


def test_default_cache_is_in_the_home_folder(tmp_path, splits, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for value in ("", "relative/path"):  # which the XDG specification says to ignore
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        load_cifar10(write_bin(tmp_path / "data", splits))
        shutil.rmtree(tmp_path / "home" / ".cache" / "jaxresnet")


def test_unwritable_cache_warns_and_loads(tmp_path, splits):
    source = write_bin(tmp_path / "data", splits)
    (tmp_path / "file").write_text("in the way")  # holds for root too, whom permissions do not stop
    with pytest.warns(UserWarning, match=r"the cache cannot be written .*set cache_dir or \$XDG_CACHE_HOME") as caught:
        check(load_cifar10(source, cache_dir=tmp_path / "file"), splits)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_full_disk_warns_and_leaves_nothing(tmp_path, splits, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    source = write_bin(tmp_path / "data", splits)
    monkeypatch.setattr(cifar10_cache.np, "save", full)
    with pytest.warns(UserWarning, match="No space left on device"):
        check(load_cifar10(source), splits)
    assert list((tmp_path / "cache" / "jaxresnet").iterdir()) == []


def test_leftovers_of_a_killed_process(cached, splits):
    source, folder = cached
    shutil.rmtree(folder)
    old, young = folder.parent / ".tmp-old", folder.parent / ".tmp-young"
    for leftover in (old, young):
        leftover.mkdir()
        (leftover / "train_images.npy").write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    check(load_cifar10(source), splits)
    assert not old.exists() and young.exists()  # the young one may belong to a living process
    assert (folder / "cache.json").exists()


def test_half_written_cache_folder_is_replaced(cached, splits, monkeypatch):
    source, folder = cached
    shutil.rmtree(folder)
    folder.mkdir()
    np.save(folder / "train_images.npy", splits["train"].images)
    check(load_cifar10(source), splits)
    monkeypatch.setattr(cifar10, "read_source", lambda source: pytest.fail("read the source again"))
    check(load_cifar10(source), splits)


def test_concurrent_writers_and_readers(tmp_path, splits):
    folder, version = tmp_path / "cache" / "one", {"layout": "bin", "files": []}
    problems = []

    def work():
        try:
            for _ in range(15):
                cifar10_cache.write_cache(folder, version, splits)
                found = cifar10_cache.read_cache(folder, version)  # None while another one is being put in place
                if found is not None:
                    np.testing.assert_array_equal(found["train"].images, splits["train"].images)
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    assert cifar10_cache.read_cache(folder, version) is not None
    assert [path.name for path in folder.parent.iterdir()] == ["one"]


def test_mapped_arrays_survive_the_replacement_of_the_cache(cached, splits):
    dataset = load_cifar10(cached[0])
    shutil.rmtree(cached[1])
    check(dataset, splits)


def test_crc32_covers_the_whole_file(tmp_path):
    content = os.urandom(3_000_001)  # more than two chunks
    (tmp_path / "file").write_bytes(content)
    assert cifar10_cache.file_crc32(tmp_path / "file") == zlib.crc32(content)


def test_cache_holds_plain_files(cached, splits):
    np.testing.assert_array_equal(np.load(cached[1] / "train_images.npy"), splits["train"].images)
    meta = json.loads((cached[1] / "cache.json").read_text())
    assert meta["source"]["path"] == str(cached[0].resolve()) and len(meta["source"]["files"]) == 6
