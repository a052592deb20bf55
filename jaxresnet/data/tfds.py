"""CIFAR-10 through TensorFlow Datasets (TFDS), without TensorFlow: find, read, download and prepare it.

TFDS' own CIFAR-10 builder needs TensorFlow to unpack the archive and to encode the images, and its downloader retries
for minutes when there is no network. So `cifar10_download` gets it, and a TFDS builder of ours, which yields PNG bytes,
writes the standard directory `<root>/cifar10/3.0.2` in the file format array_record, which TFDS reads with NumPy.
"""

import contextlib
import io
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxresnet.data.cifar10_archive import read_archive
from jaxresnet.data.cifar10_download import (
    ARCHIVE_NAME,
    OWN_COPY,
    UNFINISHED,
    download_archive,
    is_verified,
    remove_abandoned,
    show_progress,
)
from jaxresnet.data.dataset import CLASS_NAMES, Split
from jaxresnet.data.readers import Splits, num_images
from jaxresnet.errors import DataError, ResultsError, short
from jaxresnet.files import read_json

TFDS_VERSION = "3.0.2"  # TFDS' version of the data set
FILE_FORMAT = "array_record"
SPLITS = ("train", "test")

FEATURE_CLASSES = {  # that CIFAR-10 is made of
    f"tensorflow_datasets.core.features.{name}"
    for name in ("features_dict.FeaturesDict", "text_feature.Text", "image_feature.Image")
} | {"tensorflow_datasets.core.features.class_label_feature.ClassLabel"}

DISK_BYTES = 450_000_000  # the archive and the prepared directory, while both are there

ELSEWHERE = f"set $TFDS_DATA_DIR to a folder where it can be prepared, or pass a folder that holds a copy {OWN_COPY}"
PREPARE_ANEW = "Delete this folder, then run again without --data-dir to have it prepared anew."


def default_tfds_dir() -> Path:
    """The folder where TFDS keeps its data sets: $TFDS_DATA_DIR, else ~/tensorflow_datasets.

    A cloud address (gs://...) in $TFDS_DATA_DIR is passed over: it is no folder on this machine.
    """
    configured = os.environ.get("TFDS_DATA_DIR", "")
    return Path(configured if configured and "://" not in configured else "~/tensorflow_datasets").expanduser()


def find_prepared(folder: Path) -> Path | None:
    """The CIFAR-10 directory that TFDS prepared at or below `folder`, or None.

    `folder` may be TFDS' root, its `cifar10`, or the version's directory itself (3.0.2 or another 3.x). Where there are
    several, array_record and then 3.0.2 are preferred. One in another file format is returned when there is no other:
    `read_prepared` then raises a DataError that says what to do.
    """
    candidates = [folder, *folder.glob("3.*"), *folder.glob("cifar10/3.*")]
    prepared = [(path, info) for path in candidates if (info := _dataset_info(path))]

    def preference(found: tuple[Path, dict[str, Any]]) -> tuple[bool, bool, list[int]]:
        info = found[1]
        numbers = [int(number) for number in info["version"].split(".")]
        return FILE_FORMAT in _file_formats(info), info["version"] == TFDS_VERSION, numbers

    return max(prepared, key=preference)[0] if prepared else None


def needs_tensorflow(path: Path) -> bool:
    """Whether the directory that `find_prepared` found is only in a file format (tfrecord) that TensorFlow reads."""
    return FILE_FORMAT not in _file_formats(_dataset_info(path) or {})


def read_prepared(path: Path) -> Splits:
    """Read the directory that `find_prepared` found, in the official order.

    Returns {"train": Split, "test": Split}: images (N, 32, 32, 3) uint8, labels (N,) int32, N = 50,000 and 10,000.
    TFDS shuffles the examples when it writes them; their ids (`train_16399`) hold the official position.
    Raises DataError when the file format needs TensorFlow, or when the directory is incomplete or damaged.
    """
    info = _dataset_info(path)
    if info is None:
        raise DataError(f"{path}: not a CIFAR-10 directory prepared by TensorFlow Datasets (version 3.x)")
    if FILE_FORMAT not in (formats := _file_formats(info)):
        raise DataError(
            f"{path}: CIFAR-10 was prepared here in the file format {'/'.join(sorted(formats))}, but jaxresnet reads "
            f"only {FILE_FORMAT}: tfrecord needs TensorFlow. Move this folder away and run again, {ELSEWHERE}."
        )
    with _quiet_tfds():
        import tensorflow_datasets as tfds
    try:
        _check_names(path)  # before TFDS reads them
        with show_progress(f"Reading {path}", sum(map(num_images, SPLITS))) as advance, _quiet_tfds():
            builder = tfds.builder_from_directory(os.fspath(path))
            sources = {split: builder.as_data_source(split, file_format=FILE_FORMAT) for split in SPLITS}
            return {split: _read_split(source, split, advance) for split, source in sources.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}. {PREPARE_ANEW}") from None
    except Exception as error:  # TFDS, array_record and Pillow each have their own errors, and some want TensorFlow
        raise DataError(
            f"{path}: damaged or incomplete ({type(error).__name__}: {short(error)}). {PREPARE_ANEW}"
        ) from error


def download_and_prepare(root: Path) -> Path:
    """Download CIFAR-10 (170 MB) and prepare `<root>/cifar10/3.0.2`; return that directory.

    The archive's checksum is verified; archive and directory each appear whole or not at all; the archive is deleted
    once the directory is there. A directory that is there already is returned as it is. Without a network it fails
    within 15 seconds. Raises DataError (no network, wrong checksum, folder not writable, disk full).
    """
    target = root / "cifar10" / TFDS_VERSION
    archive = root / "downloads" / ARCHIVE_NAME
    if _dataset_info(target):
        return target
    try:
        if target.exists():
            raise DataError(f"{target}: exists, but is not a CIFAR-10 directory of TFDS. Delete it, or {ELSEWHERE}.")
        archive.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned([*archive.parent.glob(UNFINISHED), *root.glob(f"cifar10/incomplete.*_{TFDS_VERSION}")])
        if not is_verified(archive):
            if (free := shutil.disk_usage(root).free) < DISK_BYTES:
                needed = f"needs {DISK_BYTES / 1e6:.0f} MB of disk space, {free / 1e6:.0f} MB are free"
                raise DataError(f"{root}: CIFAR-10 {needed}. Make room, or {ELSEWHERE}.")
            download_archive(archive)
        _prepare(read_archive(archive), root)
        archive.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # array_record reports a full disk as a RuntimeError
        if not _dataset_info(target):  # else another process prepared it at the same time
            raise DataError(f"{root}: cannot write CIFAR-10 here ({error}). Mend that, or {ELSEWHERE}.") from error
    return target


# --- reading ----------------------------------------------------------------------------------------------------------


def _dataset_info(path: Path) -> dict[str, Any] | None:
    """TFDS' description of the directory, when it is one of CIFAR-10 in a version 3.x."""
    try:
        info = read_json(path / "dataset_info.json", PREPARE_ANEW)
        is_cifar10 = info["name"] == "cifar10" and re.fullmatch(r"3\.[0-9]{1,9}\.[0-9]{1,9}", info["version"])
    except (ResultsError, TypeError, KeyError):
        return None
    return info if is_cifar10 else None


def _file_formats(info: dict[str, Any]) -> set[str]:
    # TFDS before 4.1 did not write the format down: there was only tfrecord.
    others = info.get("alternativeFileFormats")
    formats = [info.get("fileFormat", "tfrecord"), *(others if isinstance(others, list) else [])]
    return {name for name in formats if isinstance(name, str)}


def _check_names(path: Path) -> None:
    """Raise DataError where the directory names a class that CIFAR-10 does not have, or a file beyond its folder.

    TFDS imports the modules of the classes in features.json, whatever they are called, and opens the files that
    dataset_info.json calls shards, wherever they are.
    """
    try:
        features, info = (read_json(path / name, "") for name in ("features.json", "dataset_info.json"))
    except ResultsError as error:
        raise DataError(str(error).rstrip("; ")) from error
    for name in _texts(features):
        if "." in name and name not in FEATURE_CLASSES:
            raise DataError(f"features.json asks for {short(name)}, which CIFAR-10 does not need")
    for name in _texts(info.get("splits")):
        if not re.fullmatch(r"[\w{}.-]*", name) or ".." in name:
            raise DataError(f"dataset_info.json asks for the file {short(name)}, which is not one of this folder")


def _texts(value: Any) -> Iterator[str]:
    """Every text in parsed JSON but the keys."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _read_split(source: Any, split: str, advance: Callable[[int], None]) -> Split:
    """All examples of a TFDS data source, sorted by the number in their id."""
    count = num_images(split)
    if len(source) != count:
        raise DataError(f"the {split} split holds {len(source)} examples instead of {count}")
    images = np.empty((count, 32, 32, 3), np.uint8)
    labels = np.full(count, -1, np.int32)
    for example in source:
        name = example["id"].decode()
        position = int(name.removeprefix(f"{split}_")) if re.fullmatch(rf"{split}_\d+", name) else -1
        if not 0 <= position < count or labels[position] != -1:
            raise DataError(f"the id {name!r} of a {split} example is out of range or used twice")
        if not 0 <= example["label"] < len(CLASS_NAMES):
            raise DataError(f"the example {name!r} has the label {example['label']}, which is not in 0..9")
        images[position], labels[position] = example["image"], example["label"]
        advance(1)
    return Split(images, labels)


# --- preparing --------------------------------------------------------------------------------------------------------


def _prepare(splits: Splits, root: Path) -> None:
    """Write `<root>/cifar10/3.0.2` as TFDS' own builder does; TFDS renames a temporary directory at the end."""
    import tensorflow_datasets as tfds
    from PIL import Image

    total = sum(split.num_examples for split in splits.values())

    # TFDS has a builder of this name already, which stays the registered one.
    class Cifar10(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
        VERSION = tfds.core.Version(TFDS_VERSION)

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description="60,000 colour images of 32x32 pixels in 10 classes: 50,000 to train, 10,000 to test.",
                features=tfds.features.FeaturesDict(
                    {
                        "id": tfds.features.Text(),
                        "image": tfds.features.Image(shape=(32, 32, 3)),
                        "label": tfds.features.ClassLabel(names=list(CLASS_NAMES)),
                    }
                ),
                supervised_keys=("image", "label"),
                homepage="https://www.cs.toronto.edu/~kriz/cifar.html",
                citation="Krizhevsky, A. (2009): Learning multiple layers of features from tiny images.",
            )

        def _split_generators(self, dl_manager):
            return {name: self._generate_examples(name, split) for name, split in splits.items()}

        def _generate_examples(self, name, split):
            for index, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
                png = io.BytesIO()
                Image.fromarray(image).save(png, format="PNG")
                yield index, {"id": f"{name}_{index:05d}", "image": png.getvalue(), "label": int(label)}
                advance(1)

    with show_progress("Preparing CIFAR-10", total) as advance, _quiet_tfds():
        builder = Cifar10(data_dir=os.fspath(root), file_format=FILE_FORMAT)
        # TFDS looks in its cloud storage for a prepared copy first, unless told not to.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


# --- what the user sees -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Hold back what TFDS prints and logs (its own bars, hints on OpenCV), for as long as it runs."""
    absl_logger = logging.getLogger("absl")
    level = absl_logger.level
    absl_logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        absl_logger.setLevel(level)
