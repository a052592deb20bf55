"""A pseudo-terminal for the tests of what a person sees."""

import os

import pytest
from support.terminal import Terminal


@pytest.fixture
def terminal(monkeypatch):
    """terminal(columns) -> a Terminal in the place of stdout and stderr."""
    if not hasattr(os, "openpty"):
        pytest.skip("this system has no pseudo-terminals")
    opened = []

    def start(columns=100):
        monkeypatch.setenv("COLUMNS", str(columns))
        opened.append(Terminal())
        monkeypatch.setattr("sys.stdout", opened[-1].file)
        monkeypatch.setattr("sys.stderr", opened[-1].file)
        return opened[-1]

    for name in ("LINES", "COLORTERM", "NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    yield start
    for each in opened:
        each.text()
