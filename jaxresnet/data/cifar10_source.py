"""The forms in which CIFAR-10 lies on disk, how each is recognised, and which reader it goes to.

| layout    | what it is                                                                                     |
|-----------|------------------------------------------------------------------------------------------------|
| `bin`     | `cifar-10-batches-bin/`: six files of records, each one label byte and 3072 pixel bytes         |
| `py`      | `cifar-10-batches-py/`: six pickles with the same pixels and labels                             |
| `archive` | `cifar-10-binary.tar.gz` or `cifar-10-python.tar.gz`, read in memory, never unpacked to disk    |
| `tfds`    | `cifar10/3.0.2/` as TensorFlow Datasets prepares it, in the file format array_record            |
| `npz`     | one NumPy file: train_images, train_labels, test_images, test_labels (or Keras' x_train, ...)   |
"""

from pathlib import Path

from jaxresnet.data import tfds as cifar10_tfds
from jaxresnet.data.cifar10_archive import read_archive
from jaxresnet.data.readers import BATCH_FOLDERS, BATCH_SUFFIX, BATCHES, Source, Splits, read_batch_files, read_npz
from jaxresnet.errors import DataError

ARCHIVE_NAMES = ("cifar-10-binary.tar.gz", "cifar-10-python.tar.gz")
LOOKED_FOR = ", ".join([*(f"{name}/" for name in BATCH_FOLDERS.values()), *ARCHIVE_NAMES, "cifar10/3.0.2/", "*.npz"])


def find_source(where: Path) -> Source | None:
    """The copy of CIFAR-10 in the folder (or the file) `where`, by names alone; None when nothing is recognised.

    When there are several, the one that is quickest to read.
    """
    if where.is_file():
        layout = "npz" if where.suffix == ".npz" else "archive" if where.name.endswith((".tar.gz", ".tgz")) else None
        return Source(layout, where, (where,)) if layout else None
    for layout, folder_name in BATCH_FOLDERS.items():
        for folder in (where, where / folder_name):
            files = tuple(folder / f"{batch}{BATCH_SUFFIX[layout]}" for batch in BATCHES)
            if any(file.exists() for file in files):
                return Source(layout, folder, files)
    for name in ARCHIVE_NAMES:
        if (where / name).is_file():
            return Source("archive", where / name, (where / name,))
    if (prepared := cifar10_tfds.find_prepared(where)) is not None:
        return Source("tfds", prepared, tuple(sorted(file for file in prepared.iterdir() if file.is_file())))
    found = sorted(where.glob("*.npz"))
    if len(found) > 1:
        raise DataError(f"{where}: holds several .npz files ({', '.join(f.name for f in found)}). Give the path of one")
    return Source("npz", found[0], (found[0],)) if found else None


def read_source(source: Source) -> Splits:
    """Read the whole source into memory. Raises DataError, naming the file, when it is damaged or not CIFAR-10."""
    match source.layout:
        case "archive":
            return read_archive(source.path)
        case "tfds":
            return cifar10_tfds.read_prepared(source.path)
        case "npz":
            return read_npz(source.path)
    return read_batch_files(source)
