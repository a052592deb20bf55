"""Reading text and JSON that someone may have cut or damaged: what is wrong, in which file and line, and what to do."""

import json
from pathlib import Path
from typing import Any

from jaxresnet.errors import ResultsError


def read_text(path: Path) -> str:
    """The whole file. Raises ResultsError for a file that is not UTF-8."""
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ResultsError(f"{path}: not a text file ({error}); restore it from a copy or delete it") from error


def read_json(path: Path, remedy: str) -> Any:
    """The whole file as JSON. remedy: what to do where it is not, the end of the ResultsError that is then raised."""
    return parse_json(path, read_text(path), remedy)


def parse_json(path: Path, text: str, remedy: str, line: int | None = None) -> Any:
    """`text`, which is the file `path` or one `line` of it (from 1), as JSON. Raises as `read_json` does."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        cut = "cut off or damaged" if text.strip() else "empty"
        raise ResultsError(f"{path}, line {line or error.lineno}: {cut} ({error.msg}); {remedy}") from error
