"""A verified copy of a data set as plain .npy files, which opens by memory-mapping in a fraction of a second.

One folder per source: {train,test}_{images,labels}.npy and cache.json with the fingerprint of the source and the CRC-32
of every file. A folder is complete or absent: it is written under a temporary name and renamed. Whatever is wrong with
one (another source version, a flipped bit, a missing file), it is as if it were not there, and it is written anew.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from platformdirs import user_cache_path

from jaxresnet.data.dataset import Split
from jaxresnet.data.readers import num_images

FORMAT = 1  # raise it when the layout of the cache or the checks before writing change: old caches are then rebuilt
TEMPORARY = ".tmp-"
STALE_SECONDS = 3600


def cache_folder(source: Path, cache_dir: str | os.PathLike | None) -> Path:
    """Where the cache of `source` lies: below `cache_dir`, or $XDG_CACHE_HOME/jaxresnet, or ~/.cache/jaxresnet."""
    root = user_cache_path("jaxresnet") if cache_dir is None else Path(os.path.expanduser(cache_dir))
    return root / hashlib.blake2b(os.fsencode(source.resolve()), digest_size=10).hexdigest()


def fingerprint(layout: str, path: Path, files: tuple[Path, ...]) -> dict[str, Any]:
    """What identifies a version of a source: the names, sizes and times of its files. The contents are not read."""

    def describe(file: Path) -> list:
        try:
            stat = file.stat()
        except OSError:
            return [file.name, "missing"]  # the reader will say so better
        # The change time as well: unlike the modification time it cannot be set, by `cp -p` or `rsync -t`.
        return [file.name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]

    return {"layout": layout, "path": str(path.resolve()), "files": [describe(file) for file in files]}


def read_cache(folder: Path, source: dict[str, Any]) -> dict[str, Split] | None:
    """Open the cache of the source with this fingerprint; None when there is none that is whole.

    Returns {"train": Split, "test": Split}; the images are read-only and mapped from disk.
    """
    try:
        meta = json.loads((folder / "cache.json").read_text())
        if meta["format"] != FORMAT or meta["source"] != source:
            return None
        arrays = {}
        for name in ("train_images", "train_labels", "test_images", "test_labels"):
            if file_crc32(folder / f"{name}.npy") != meta["crc32"][name]:
                return None
            arrays[name] = np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))
            if not _is_as_written(name, arrays[name]):
                return None
    except Exception:  # a damaged header raises almost anything: ValueError, TokenError, OverflowError, IndexError, ...
        return None
    return {split: Split(arrays[f"{split}_images"], arrays[f"{split}_labels"]) for split in ("train", "test")}


def _is_as_written(name: str, array: np.ndarray) -> bool:
    """Whether it has the type and the shape of what was verified before it was written. A checksum does not
    tell: anyone can compute one."""
    count = num_images(name.partition("_")[0])
    if name.endswith("labels"):
        return array.dtype == np.int32 and array.shape == (count,) and array.min() >= 0 and array.max() <= 9
    return array.dtype == np.uint8 and array.shape == (count, 32, 32, 3)


def write_cache(folder: Path, source: dict[str, Any], splits: dict[str, Split]) -> None:
    """Write the cache, replacing what is there. Raises OSError when the place is not writable or full."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    remove_stale(folder.parent)
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent))
    try:
        crc32 = {}
        for split, arrays in splits.items():
            for field, array in arrays._asdict().items():
                name = f"{split}_{field}"
                np.save(temporary / f"{name}.npy", array, allow_pickle=False)
                crc32[name] = file_crc32(temporary / f"{name}.npy")
        meta = {"format": FORMAT, "source": source, "crc32": crc32}
        # No fsync: should the power fail now, the checksums will tell.
        (temporary / "cache.json").write_text(json.dumps(meta, indent=1) + "\n")
        publish(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish(temporary: Path, folder: Path) -> None:
    """Rename `temporary` to `folder`, moving out of the way what an earlier or a concurrent process put there."""
    for _ in range(20):
        try:
            os.rename(temporary, folder)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        # Files that another process has mapped stay readable to it after they are removed.
        aside = tempfile.mkdtemp(prefix=TEMPORARY, dir=folder.parent)
        try:
            os.rename(folder, aside)
        except FileNotFoundError:
            pass  # another process was faster
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{folder}: other processes keep replacing it")


def remove_stale(root: Path) -> None:
    """Remove the temporary folders of processes that died while writing; a young one may belong to a living process."""
    for folder in root.glob(f"{TEMPORARY}*"):
        try:
            if time.time() - folder.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(folder, ignore_errors=True)
        except FileNotFoundError:
            pass  # its owner removed it meanwhile


def file_crc32(path: Path) -> int:
    crc = 0
    with open(path, "rb") as stream:
        while chunk := stream.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc
