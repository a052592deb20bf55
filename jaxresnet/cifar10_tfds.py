"""CIFAR-10 through TensorFlow Datasets (TFDS), without TensorFlow: find, read, download and prepare it.

TFDS' own CIFAR-10 builder needs TensorFlow to unpack the archive and to encode the images, and its downloader retries
for minutes when there is no network. So the download is done here, and a TFDS builder of ours, which yields PNG bytes,
writes the standard directory `<root>/cifar10/3.0.2` in the file format array_record, which TFDS reads with NumPy.
"""

import contextlib
import hashlib
import http.client
import io
import json
import logging
import os
import queue
import re
import shutil
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jaxresnet.cifar10_archive import read_archive
from jaxresnet.cifar10_files import Splits, num_images
from jaxresnet.dataset import CLASS_NAMES, Split
from jaxresnet.errors import DataError

# The official archive, as TFDS knows it (tensorflow_datasets/url_checksums/cifar10.txt).
ARCHIVE_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
ARCHIVE_NAME = "cifar-10-binary.tar.gz"
ARCHIVE_BYTES = 170_052_171
ARCHIVE_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"

TFDS_VERSION = "3.0.2"  # TFDS' version of the data set
FILE_FORMAT = "array_record"
SPLITS = ("train", "test")

NETWORK_TIMEOUT = 12.0  # s until the first byte, and s without a byte after that
PROGRESS_INTERVAL = 10.0  # s between progress lines when stderr is not a terminal
DISK_BYTES = 450_000_000  # the archive and the prepared directory, while both are there
ABANDONED_AFTER = 3600.0  # s without a change after which a temporary file belongs to nobody

OWN_COPY = "with --data-dir (data_dir=... in Python) or $JAXRESNET_DATA"
ELSEWHERE = f"set $TFDS_DATA_DIR to a folder where it can be prepared, or pass a folder that holds a copy {OWN_COPY}"
GET_IT = f"Try again, or get {ARCHIVE_NAME} on another machine, put it in a folder, and pass that folder {OWN_COPY}."
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
    try:
        with _progress(f"Reading {path}", sum(map(num_images, SPLITS))) as advance, _quiet_tfds():
            import tensorflow_datasets as tfds

            builder = tfds.builder_from_directory(os.fspath(path))
            sources = {split: builder.as_data_source(split, file_format=FILE_FORMAT) for split in SPLITS}
            return {split: _read_split(source, split, advance) for split, source in sources.items()}
    except DataError as error:
        raise DataError(f"{path}: {error}. {PREPARE_ANEW}") from None
    except ImportError:
        raise  # an incomplete installation, not a damaged file
    except Exception as error:  # TFDS, array_record and Pillow each have their own errors for a damaged file
        raise DataError(f"{path}: damaged or incomplete ({type(error).__name__}: {error}). {PREPARE_ANEW}") from error


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
        _remove_abandoned(root)
        if not _is_verified(archive):
            if (free := shutil.disk_usage(root).free) < DISK_BYTES:
                needed = f"needs {DISK_BYTES / 1e6:.0f} MB of disk space, {free / 1e6:.0f} MB are free"
                raise DataError(f"{root}: CIFAR-10 {needed}. Make room, or {ELSEWHERE}.")
            _download(ARCHIVE_URL, archive)
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
        info = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))
        is_cifar10 = info["name"] == "cifar10" and re.fullmatch(r"3\.\d+\.\d+", info["version"])
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return info if is_cifar10 else None


def _file_formats(info: dict[str, Any]) -> set[str]:
    # TFDS before 4.1 did not write the format down: there was only tfrecord.
    return {info.get("fileFormat", "tfrecord"), *info.get("alternativeFileFormats", [])}


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


# --- downloading ------------------------------------------------------------------------------------------------------


def _is_verified(archive: Path) -> bool:
    """Whether an earlier call, which did not finish preparing, left the whole archive."""
    if not archive.is_file() or archive.stat().st_size != ARCHIVE_BYTES:
        return False
    with archive.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == ARCHIVE_SHA256


def _download(url: str, target: Path) -> None:
    """Fetch `url` into `target`, which appears whole and verified or not at all."""
    descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".incomplete", dir=target.parent)
    digest, received = hashlib.sha256(), 0
    try:
        what = f"Downloading CIFAR-10 ({ARCHIVE_BYTES / 1e6:.0f} MB)"
        with open(descriptor, "wb") as file, _progress(what, ARCHIVE_BYTES) as advance:
            for chunk in _fetch(url):
                file.write(chunk)
                digest.update(chunk)
                received += len(chunk)
                advance(len(chunk))
                if received > ARCHIVE_BYTES:
                    break  # something else, perhaps endless
        if digest.hexdigest() != ARCHIVE_SHA256:
            raise DataError(
                f"{url}: what came is not the CIFAR-10 archive: expected {ARCHIVE_BYTES} bytes with SHA-256 "
                f"{ARCHIVE_SHA256}, got {received} bytes with {digest.hexdigest()}. {GET_IT}"
            )
        os.replace(name, target)
    finally:
        Path(name).unlink(missing_ok=True)


def _fetch(url: str) -> Iterator[bytes]:
    """The bytes at `url` in chunks; every failure of the network is a DataError."""
    try:
        response, chunk = _open(url)
        with response:
            while chunk:
                yield chunk
                chunk = response.read1(1 << 18)
            if response.length:  # what is left of Content-Length
                raise ConnectionError(f"the connection closed {response.length} bytes before the end")
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if type(error) is urllib.error.URLError else error  # without "<urlopen error ...>"
        raise DataError(f"cannot download {url} ({reason or type(error).__name__}). {GET_IT}") from error


def _open(url: str) -> tuple[http.client.HTTPResponse, bytes]:
    """The response and its first bytes, or an OSError after NETWORK_TIMEOUT.

    urllib's own timeout holds for one socket operation and not for resolving a name, so that several addresses, a
    proxy and redirects could add up to minutes: the thread makes it a limit on the whole.
    """
    outcome: queue.Queue = queue.Queue()

    def connect() -> None:
        try:
            request = urllib.request.Request(url, headers={"User-Agent": "jaxresnet"})
            response = urllib.request.urlopen(request, timeout=NETWORK_TIMEOUT)
            outcome.put((response, response.read1(1 << 18)))
        except Exception as error:
            outcome.put(error)

    threading.Thread(target=connect, daemon=True).start()
    try:
        result = outcome.get(timeout=NETWORK_TIMEOUT)
    except queue.Empty:
        raise TimeoutError(f"no answer within {NETWORK_TIMEOUT:g} seconds") from None
    if isinstance(result, Exception):
        raise result
    return result


def _remove_abandoned(root: Path) -> None:
    """Delete what processes that were killed left unfinished: by TFDS and by `_download`."""
    downloads = root.glob(f"downloads/{ARCHIVE_NAME}.*.incomplete")
    for path in [*downloads, *root.glob(f"cifar10/incomplete.*_{TFDS_VERSION}")]:
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_AFTER:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


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

    with _progress("Preparing CIFAR-10", total) as advance, _quiet_tfds():
        builder = Cifar10(data_dir=os.fspath(root), file_format=FILE_FORMAT)
        # TFDS looks in its cloud storage for a prepared copy first, unless told not to.
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(try_download_gcs=False))


# --- what the user sees -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _progress(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yields `advance(amount)`: a bar on a terminal, otherwise a plain line now and then, on stderr."""
    stream = sys.stderr  # as it is now: `_quiet_tfds` replaces it
    if stream.isatty():
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(file=stream)) as bar:
            task = bar.add_task(what, total=total)
            yield lambda amount: bar.advance(task, amount)
        return
    done, last_line = 0, time.monotonic()
    print(f"{what} ...", file=stream, flush=True)

    def advance(amount: int) -> None:
        nonlocal done, last_line
        done += amount
        if time.monotonic() - last_line >= PROGRESS_INTERVAL:
            last_line = time.monotonic()
            print(f"{what}: {100 * done // total} %", file=stream, flush=True)

    yield advance


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
