"""Reading text and JSON that someone may have cut, damaged or made up: what is wrong, in which file, and what to do.

What is read is data and nothing else. Python's own reader takes more than JSON allows and than this library could use
or write again: numbers that are not finite, numbers and texts without an end, nesting that no function gets through.
"""

import json
import math
import re
from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError, short

LARGEST_FILE = 1 << 28  # bytes; ten thousand epochs have three million
LONGEST_NAME = 500  # characters of what stands in a figure
LONGEST_TEXT = 100_000  # characters of one text, say of the message of a compiler
DEEPEST = 50  # objects and lists inside of each other; results have seven
# Not \t, \n and \r. A terminal obeys the others, and half a surrogate pair cannot be written as UTF-8.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")


def read_text(path: Path) -> str:
    """The whole file. Raises ResultsError for one that cannot be read, is not UTF-8, or has more than 256 MiB."""
    try:
        if (size := path.stat().st_size) > LARGEST_FILE:
            raise ResultsError(f"{path}: has {size:,} bytes, too many for results; restore it from a copy or delete it")
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not a text file ({error}); restore it from a copy or delete it") from error
    except OSError as error:
        raise ResultsError(f"{path}: cannot be read ({error.strerror or error}); restore it from a copy") from error


def read_json(path: Path, remedy: str) -> Any:
    """The whole file as JSON, of which every number is finite, whole ones have 63 bits, and every text can be printed.

    remedy: what to do where that is not so, the end of the ResultsError that is then raised."""
    return parse_json(path, read_text(path), remedy)


def parse_json(path: Path, text: str, remedy: str, line: int | None = None) -> Any:
    """`text`, which is the file `path` or one `line` of it (from 1), as JSON. Raises as `read_json` does."""
    where = str(path) if line is None else f"{path}, line {line}"
    try:
        value = json.loads(text, object_pairs_hook=_object)
    except json.JSONDecodeError as error:
        cut = "cut off or damaged" if text.strip() else "empty"
        raise ResultsError(f"{path}, line {line or error.lineno}: {cut} ({error.msg}); {remedy}") from error
    except RecursionError as error:
        raise ResultsError(f"{where}: nested more than {DEEPEST} deep; {remedy}") from error
    except ValueError as error:  # a key twice, or a number of more digits than Python converts
        raise ResultsError(f"{where}: {short(error)}; {remedy}") from error
    if problem := _problem(value):
        raise ResultsError(f"{where}: {problem}; {remedy}")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Python would keep the last value of a key that is there twice, and other programs the first."""
    made = dict(pairs)
    if len(made) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in made if keys.count(key) > 1)
        raise ValueError(f"the key {short(twice)} is there twice")
    return made


def _problem(root: Any) -> str | None:
    """What in parsed JSON this library could not use, print or write again; None where there is nothing."""
    left: list[tuple[str, Any, int]] = [("", root, 0)]  # not recursive: the input decides how deep it goes
    while left:
        name, value, depth = left.pop()
        if isinstance(value, str) and (problem := _text_problem(value)):
            return f"{name or 'the text'} {problem}"
        if isinstance(value, float) and not math.isfinite(value):
            return f"{name or 'the number'} is {value!r}, not a finite number"
        if isinstance(value, int) and abs(value) >= 2**63:
            return f"{name or 'the number'} is a whole number of more than 63 bits"
        if isinstance(value, dict | list):
            if depth == DEEPEST:
                return f"nested more than {DEEPEST} deep"
            if isinstance(value, dict):
                for key, inner in value.items():
                    if problem := _text_problem(key):
                        return f"the key {short(key)} {problem}"
                    left.append((repr(key), inner, depth + 1))
            else:
                left += [(name, inner, depth + 1) for inner in value]
    return None


def _text_problem(text: str) -> str | None:
    if len(text) > LONGEST_TEXT:
        return f"has {len(text):,} characters, more than {LONGEST_TEXT:,}"
    if found := _UNPRINTABLE.search(text):
        return f"holds the character {found[0]!r}, which cannot be printed"
    return None


def is_name(value: Any) -> bool:
    """A text that fits into a figure."""
    return isinstance(value, str) and len(value) <= LONGEST_NAME


def is_whole(value: Any, highest: int) -> bool:
    """0..highest, and neither True nor 1.0."""
    return type(value) is int and 0 <= value <= highest


def is_number(value: Any, highest: float) -> bool:
    """0..highest, whole or not. NaN is not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= highest
