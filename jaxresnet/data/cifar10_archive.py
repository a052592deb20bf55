"""Read CIFAR-10 out of an official .tar.gz archive, in memory: nothing is unpacked to disk."""

import gzip
import hashlib
import io
import tarfile
import warnings
from pathlib import Path
from typing import BinaryIO, cast

from jaxresnet.data.readers import BATCH_FOLDERS, BATCH_SUFFIX, BATCHES, Splits, batch_size_limit, parse_batches
from jaxresnet.errors import DataError, short

OFFICIAL_MD5 = {
    "cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530",
    "cifar-10-python.tar.gz": "c58f30108f718f92721af3b95e74349a",
}
# The official archives have 170 MB and unpack to 184 (binary) and 186 MB (python).
MAX_ARCHIVE_BYTES = 400_000_000
MAX_UNPACKED_BYTES = 600_000_000
AGAIN = "Download the archive again"


class _BoundedStream:
    """A readable stream that refuses to give more than `limit` bytes: a small gzip file can unpack to terabytes.

    And to be read at its end again and again: `tarfile` would, for a member that says it has exabytes, until it has
    passed over all of them.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self.stream, self.left, self.reads_at_end = stream, limit, 0

    def read(self, size: int) -> bytes:
        chunk = self.stream.read(min(size, self.left + 1))
        self.left -= len(chunk)
        if self.left < 0:
            raise tarfile.ReadError("it unpacks to more than CIFAR-10 could need")
        self.reads_at_end += not chunk
        if self.reads_at_end > 100:
            raise tarfile.ReadError("it ends before the files in it do")
        return chunk


def read_archive(path: Path) -> Splits:
    """Read cifar-10-binary.tar.gz or cifar-10-python.tar.gz, whatever the file is called now.

    A file with an official name and another checksum is damaged when it does not read as complete CIFAR-10 (DataError);
    when it does, somebody packed it again: that is warned of, not refused.
    """
    size = path.stat().st_size
    if size > MAX_ARCHIVE_BYTES:
        raise DataError(f"{path}: has {size:,} bytes, the official archives 170 million. {AGAIN}")
    packed = path.read_bytes()
    official = OFFICIAL_MD5.get(path.name)
    md5 = hashlib.md5(packed, usedforsecurity=False).hexdigest()
    altered = f"its MD5 checksum is {md5}, the official one {official}" if official not in (None, md5) else ""
    try:
        members = _read_members(packed, path)
        del packed
        layout = next((layout for layout in BATCH_FOLDERS if _member_name(layout, BATCHES[0]) in members), "bin")
        names = [_member_name(layout, batch) for batch in BATCHES]
        missing = [name for name in names if name not in members]
        if missing:
            raise DataError(f"{path}: missing {', '.join(missing)}. {AGAIN}")
        splits = parse_batches(layout, ((f"{path}: {name}", members.pop(name)) for name in names))
    except DataError as error:
        raise DataError(f"{error} ({altered})" if altered else str(error)) from error
    if altered:
        warnings.warn(
            f"{path}: {altered}. It reads as complete CIFAR-10, so it is used", stacklevel=5
        )  # load_cifar10's caller
    return splits


def _member_name(layout: str, batch: str) -> str:
    return f"{BATCH_FOLDERS[layout]}/{batch}{BATCH_SUFFIX[layout]}"


def _read_members(packed: bytes, path: Path) -> dict[str, bytes]:
    """The batch files in the archive, {member name: content}; every other member is passed over."""
    limits = {_member_name(layout, batch): batch_size_limit(layout) for layout in BATCH_FOLDERS for batch in BATCHES}
    members: dict[str, bytes] = {}
    try:
        unpacked = _BoundedStream(cast(BinaryIO, gzip.GzipFile(fileobj=io.BytesIO(packed))), MAX_UNPACKED_BYTES)
        with tarfile.open(fileobj=unpacked, mode="r|", bufsize=1 << 20) as archive:  # type: ignore[call-overload]
            for member in archive:
                name = member.name.removeprefix("./")
                if name not in limits:
                    continue
                if not member.isreg() or member.issparse():
                    raise DataError(f"{path}: {name} is a link or another special entry, not a file. {AGAIN}")
                if name in members:
                    raise DataError(f"{path}: holds {name} twice. {AGAIN}")
                if member.size > limits[name]:
                    raise DataError(
                        f"{path}: {name} has {member.size:,} bytes, expected at most {limits[name]:,}. {AGAIN}"
                    )
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                members[name] = content.read()
        while unpacked.read(1 << 20):  # gzip checks the length and the CRC-32 only at its end
            pass
    except DataError:
        raise
    # A damaged archive raises almost anything: TarError, BadGzipFile, EOFError, zlib.error, RecursionError, ...
    except Exception as error:
        raise DataError(f"{path}: truncated or damaged ({short(error)}). {AGAIN}") from error
    return members
