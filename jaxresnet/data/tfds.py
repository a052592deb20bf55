"""CIFAR-10 through TensorFlow Datasets (TFDS), without TensorFlow: found, read, downloaded and prepared.

TFDS' builder of CIFAR-10 needs TensorFlow to unpack the archive and to encode the images. So pooch downloads the
archive, and a builder derived from it writes the same directory, `<root>/cifar10/3.0.2`, as array_record.
"""

import contextlib
import io
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxresnet.data.dataset import CLASS_NAMES, Dataset, Split
from jaxresnet.data.readers import num_images, read_archive
from jaxresnet.errors import DataError, say, short
from jaxresnet.files import cache_folder, local_path

DIRECTORY = Path("cifar10", "3.0.2")  # TFDS' version of the data set
FILE_FORMAT = "array_record"
# The official archive (170 MB) as TFDS knows it.
ARCHIVE_FOLDER = "https://www.cs.toronto.edu/~kriz/"
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
NETWORK_TIMEOUT = 10.0  # s to connect, and s without a byte
RETRIES = 1

OWN_COPY = "with --data-dir (data_dir=... in Python) or $JAXRESNET_DATA"


def default_tfds_dir() -> Path:
    """The folder where TFDS keeps its data sets: $TFDS_DATA_DIR where that is on this machine, else
    ~/tensorflow_datasets; without a home a folder for temporary files."""
    configured = os.environ.get("TFDS_DATA_DIR", "")
    if configured and "://" not in configured:
        return local_path(configured)
    try:
        return Path.home() / "tensorflow_datasets"
    except RuntimeError:
        return cache_folder() / "tensorflow_datasets"


def find_prepared(folder: Path) -> Path | None:
    """The directory of CIFAR-10 that TFDS prepared as array_record, or None. One in tfrecord needs TensorFlow.

    folder: TFDS' root, its `cifar10`, or the directory itself.
    """
    candidates = (folder, folder / DIRECTORY.name, folder / DIRECTORY)
    return next((path for path in candidates if _is_prepared(path)), None)


def _is_prepared(path: Path) -> bool:
    try:
        info = json.loads((path / "dataset_info.json").read_text("utf-8"))
        formats = [info.get("fileFormat"), *info.get("alternativeFileFormats", ())]
        return info["name"] == "cifar10" and FILE_FORMAT in formats
    except (OSError, ValueError, AttributeError, KeyError):
        return False


def read_prepared(path: Path) -> Dataset:
    """Read a directory that `find_prepared` found, in the official order.

    Raises DataError when it is incomplete or damaged.
    """
    try:
        import tensorflow_datasets as tfds

        with _quiet(f"Reading {path}"):
            builder = tfds.builder_from_directory(os.fspath(path))
            train, test = (builder.as_data_source(split, file_format=FILE_FORMAT) for split in ("train", "test"))
            return Dataset(_read_split(train, "train"), _read_split(test, "test"))
    except Exception as error:  # TFDS, array_record and Pillow each have their own errors
        raise DataError(
            f"{path}: damaged or incomplete ({type(error).__name__}: {short(error)}). Delete this folder, then run "
            "again without --data-dir to have it prepared anew"
        ) from error


def _read_split(source: Any, split: str) -> Split:
    """TFDS shuffles the examples when it writes them; their ids (`train_16399`) hold the official position."""
    examples = {example["id"].decode(): example for example in source}
    ids = [f"{split}_{position:05d}" for position in range(num_images(split))]
    if examples.keys() != set(ids):
        raise ValueError(f"the {len(source)} {split} examples are not {ids[0]} to {ids[-1]}")
    images = np.stack([examples[name]["image"] for name in ids])
    return Split(images, np.array([examples[name]["label"] for name in ids], np.int32))


def download_and_prepare(root: Path) -> Path:
    """Download CIFAR-10 and prepare it in `<root>/cifar10/3.0.2` (140 MB); return that directory.

    It appears whole or not at all. Raises DataError: no network (within half a minute), another checksum, a folder that
    cannot be written, a full disk.
    """
    target = root / DIRECTORY
    unfinished = root / "downloads" / "jaxresnet"  # holds whatever a process that is killed leaves
    try:
        data = read_archive(_download(unfinished))
        own = Path(tempfile.mkdtemp(dir=unfinished))
        _prepare(data, own)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.rename(own / DIRECTORY, target)
        shutil.rmtree(unfinished, ignore_errors=True)
    except (DataError, OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        if _is_prepared(target):
            return target  # another process prepared it at the same time
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{root}: cannot write CIFAR-10 here ({error}). Mend that, set $TFDS_DATA_DIR to another folder, or pass a "
            f"folder that holds a copy {OWN_COPY}"
        ) from error
    return target


def _download(folder: Path) -> Path:
    """The archive in `folder`, from the network unless it is there. pooch compares the checksum in both cases, and
    gives the file its name only then."""
    import pooch
    import requests  # with which pooch downloads

    known = {ARCHIVE_NAME: f"sha256:{ARCHIVE_SHA256}"}
    archives = pooch.create(folder, ARCHIVE_FOLDER, registry=known, retry_if_failed=RETRIES)
    http = pooch.HTTPDownloader(
        progressbar=bool(sys.stderr and sys.stderr.isatty()), chunk_size=1 << 18, timeout=NETWORK_TIMEOUT
    )
    try:
        return Path(archives.fetch(ARCHIVE_NAME, downloader=http))
    except (requests.RequestException, ValueError) as error:  # ValueError: another checksum
        raise DataError(
            f"{ARCHIVE_FOLDER}{ARCHIVE_NAME}: cannot be downloaded ({error}). Try again, or get it on another machine "
            f"and pass the folder that holds it {OWN_COPY}"
        ) from error


def _prepare(data: Dataset, root: Path) -> None:
    """Write `<root>/cifar10/3.0.2` as TFDS' own builder does."""
    import tensorflow_datasets as tfds
    from PIL import Image

    class Cifar10(tfds.builder_cls("cifar10"), skip_registration=True):  # type: ignore[misc, call-arg]
        def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
            self.info.features["label"].names = list(CLASS_NAMES)
            return {name: self._generate_examples(name, getattr(data, name)) for name in ("train", "test")}

        def _generate_examples(self, name: str, split: Split) -> Iterator[tuple[int, dict[str, Any]]]:
            for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, format="PNG")
                yield index, {"id": f"{name}_{index:05d}", "image": png.getvalue(), "label": int(label)}

    with _quiet("Preparing CIFAR-10"):
        # TFDS looks in its cloud storage for a prepared copy first, unless told not to.
        config = tfds.download.DownloadConfig(try_download_gcs=False)
        Cifar10(data_dir=os.fspath(root), file_format=FILE_FORMAT).download_and_prepare(download_config=config)


@contextlib.contextmanager
def _quiet(what: str) -> Iterator[None]:
    """Say on stderr that this is done, and hold back what TFDS prints and logs meanwhile."""
    say(f"{what}: once, for up to a minute ...")
    absl = logging.getLogger("absl")
    level = absl.level
    absl.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        absl.setLevel(level)
