"""The errors a user can cause. Scripts print their message and exit with status 2, without a traceback."""

import sys
from contextlib import suppress
from typing import Any


def short(value: Any) -> str:
    """`repr` in some 200 characters, for a message: what a damaged file holds may have millions. Of an exception its
    text, without control characters."""
    text = printable(str(value)) if isinstance(value, Exception) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, 200 characters at most; its type where it has no text."""
    return (str(error).strip('"').splitlines() or [type(error).__name__])[0][:200]


def printable(text: str) -> str:
    """`text` without control characters, which a terminal would obey: "?" in their place. Line breaks stay."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def say(text: str) -> None:
    """Print a line on stderr. A stream that cannot show it is no reason to fail."""
    with suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    say(f"warning: {text}")


class Interrupted(Exception):
    """`should_stop` asked to stop. With a folder to keep it in everything is saved, and the same call continues."""


class UserError(Exception):
    """Something the user can mend: the message says what is wrong, where, and what to do."""


class DataError(UserError):
    """A data set that is missing, damaged, or not what it claims to be."""


class ConfigError(UserError, ValueError):
    """A configuration value out of its range, or a combination that cannot work."""


class ResultsError(UserError):
    """A results folder that belongs to something else, or is damaged."""


class StorageError(ResultsError):
    """A disk that is full, or a folder that cannot be written to. What was written before it is intact."""


class NonFiniteError(UserError):
    """The loss became infinite or NaN: the message names the epoch and the step."""


class WeightsError(UserError):
    """Weights that do not fit the network, or a file of them that cannot be read."""
