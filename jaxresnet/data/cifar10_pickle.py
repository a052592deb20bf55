"""Read one batch of CIFAR-10's "python" archive, a pickle, without trusting it.

A pickle is a program that may call any function it names. The one here can name five things, and none of them is the
real one: each is replaced by a stand-in that only records what NumPy would be told, so no file can run code.
"""

import io
import pickle
from typing import Any

import numpy as np

from jaxresnet.errors import DataError, short

INTEGER_CODES = ("u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8")


class _Dtype:
    """Stands for numpy.dtype: integers only, so that no array of Python objects can be built."""

    def __init__(self, code: bytes | str, *_flags: Any) -> None:
        code = code.decode("ascii") if isinstance(code, bytes) else code
        if code not in INTEGER_CODES:
            raise pickle.UnpicklingError(f"an array of dtype {code!r:.20}, expected integers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]
        self.dtype = self.dtype.newbyteorder(order)  # type: ignore[arg-type]


class _Array:
    """Stands for numpy.ndarray: NumPy pickles one as an empty array and then this state."""

    def __setstate__(self, state: tuple) -> None:
        _version, shape, dtype, fortran_order, raw = state
        self.values = np.frombuffer(raw, dtype.dtype).reshape(shape, order="F" if fortran_order else "C")


def _reconstruct(kind: type, _shape: tuple, _code: bytes) -> _Array:
    if kind is not _Array:
        raise pickle.UnpicklingError("an array of an unknown class")
    return _Array()


def _encode(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, with which Python 3 writes byte strings into old pickles."""
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"a byte string in the encoding {encoding!r:.20}")
    return text.encode("latin1")


ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # the name before NumPy 2
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _encode,
}


# The unpickler written in Python, not the one in C: a few bytes make the latter allocate a memo of many gigabytes.
class _Unpickler(pickle._Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {module:.60}.{name:.60}, which CIFAR-10 does not need") from None


def parse_pickle(raw: bytes, name: str, num_images: int) -> tuple[np.ndarray, np.ndarray]:
    """Split one pickled batch into pixels (N, 3072) uint8, red then green then blue plane, and labels (N,) uint8.

    `name` is the file as messages call it. Raises DataError when the content is not such a batch of `num_images`.
    """
    try:
        batch = _Unpickler(io.BytesIO(raw), encoding="bytes").load()
    # What a damaged or hostile pickle raises cannot be listed: from EOFError to RecursionError and MemoryError.
    except Exception as error:
        raise DataError(f"{name}: not a batch of CIFAR-10 ({short(error)}). Download the archive again") from error
    if not isinstance(batch, dict):
        raise DataError(f"{name}: expected a dictionary, found {type(batch).__name__}. Download the archive again")
    planes, labels = (batch.get(key.encode(), batch.get(key)) for key in ("data", "labels"))
    if not (
        isinstance(planes, _Array) and planes.values.dtype == np.uint8 and planes.values.shape == (num_images, 3072)
    ):
        raise DataError(f"{name}: expected 'data' as a ({num_images}, 3072) array of uint8. Download the archive again")
    if isinstance(labels, _Array):
        labels = labels.values.tolist()
    if not (isinstance(labels, list) and len(labels) == num_images):
        raise DataError(f"{name}: expected 'labels' as a list of {num_images} integers. Download the archive again")
    for index, label in enumerate(labels):
        if not (isinstance(label, int) and 0 <= label <= 9):
            found = label if isinstance(label, int) and -1000 < label < 1000 else f"a {type(label).__name__}"
            raise DataError(f"{name}: label {found} of image {index} is not in 0..9. Download the archive again")
    return planes.values, np.array(labels, np.uint8)
