"""What a person sees while runs go on, on a real (pseudo-)terminal and in a log file."""

import os
import re
import signal
import threading
import time
from collections import Counter

import pytest
from rich.default_styles import DEFAULT_STYLES

from jaxresnet import progress as progress_module
from jaxresnet.cli import _stop_on_signal
from jaxresnet.progress import Progress, duration

RUNS = [("Adam + Lookahead", 0), ("Adam [b]", 0)]  # a name that rich would take for markup
EPOCH_LINE = (
    "Adam [b], seed 0: epoch 1/2  train loss 2.303 acc 10.00 %  val loss 2.250 acc 12.50 %  lr 1.00e-02  "
    "400 images/s  about 2 s left"
)


def row(seconds=2.0, **scores):
    scores = {"train_loss": 2.303, "train_accuracy": 10.0, "val_loss": 2.25, "val_accuracy": 12.5, **scores}
    scores = {"test_loss": None, "test_accuracy": None, **scores}
    return {**scores, "learning_rate": 0.01, "seconds": seconds, "images_per_second": 800 / seconds}


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still until it is set: clock[0] = seconds."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])
    return now


class Terminal:
    """A pseudo-terminal: what is written into `file` is gathered, as the bytes that a terminal would get."""

    def __init__(self):
        self._master, slave = os.openpty()
        self.file = os.fdopen(slave, "w", encoding="utf-8")
        self._received = b""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self):
        while True:
            try:
                data = os.read(self._master, 1 << 16)
            except OSError:  # how Linux says that the other end is closed
                return
            if not data:
                return
            self._received += data

    def text(self):
        """Everything so far, once the terminal is closed."""
        if not self.file.closed:
            self.file.close()
            self._reader.join()
            os.close(self._master)
        return self._received.decode()


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


def without_escapes(text):
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def frames(text):
    """Each picture of the bar, and each other line, in the order of drawing."""
    return [frame.strip() for frame in re.split(r"[\r\n]+", without_escapes(text)) if frame.strip()]


def half_of_it(progress, clock):
    """The first run and half an epoch of the second, at 400 images/s."""
    progress.on_run(*RUNS[0])
    progress.on_epoch([row()])
    progress.on_epoch([row(), row()])  # 1,600 of 3,200 images
    progress.on_run(*RUNS[1])
    clock[0] = 30.0
    progress.on_progress(0, 100)  # compiled for half a minute, which is no part of the speed
    clock[0] = 30.75
    progress.on_progress(0, 400)  # 2,000 of 3,200


def test_the_bar_shows_run_speed_and_time_left(terminal, clock):
    screen = terminal()
    with Progress(RUNS, images_per_epoch=800, num_epochs=2) as progress:
        half_of_it(progress, clock)
    text = screen.text()
    last = frames(text)[-1]  # drawn when the block ends
    assert re.fullmatch(r"0:00:\d\d [━╸╺]{16} 400 images/s, 3 s left +Adam \[b\], seed 0", last), last
    assert "starting" in frames(text)[0]
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is visible again
    assert text.endswith("\x1b[1A\x1b[2K")  # and the bar is wiped away


def test_the_bar_fills(terminal, clock, monkeypatch):
    for style in DEFAULT_STYLES.values():  # rich keeps the codes a style had first in this process
        monkeypatch.setattr(style, "_ansi", None)

    def colours(epochs):  # {colour: how many columns of the bar have it}, in the last picture
        screen = terminal()
        with Progress([("Adam", 0)], images_per_epoch=800, num_epochs=4) as progress:
            progress.on_run("Adam", 0)
            for epoch in range(epochs):
                progress.on_epoch([row()] * (epoch + 1))
        picture = [part for part in screen.text().split("\x1b[2K") if "━" in part][-1]
        widths = Counter()
        for colour, piece in re.findall("\x1b\\[(?:38;5;)?(\\d+)m([━╸╺]+)", picture):
            widths[colour] += len(piece)
        return widths

    none, half, whole = colours(0), colours(2), colours(4)
    assert list(none.values()) == list(whole.values()) == [16] and none != whole
    assert list(half.values()) == [8, 8]


@pytest.mark.parametrize("columns", [60, 80, 100, 200])
def test_the_bar_keeps_to_one_line_and_keeps_its_numbers(columns, terminal, clock):
    screen = terminal(columns)
    name = "a rather long name of an arm", 12345
    with Progress([name], 800, 500) as progress:
        progress.on_run(*name)
        progress.on_epoch([row(0.01)])
    pictures = [frame for frame in frames(screen.text()) if "━" in frame]
    assert max(map(len, pictures)) <= columns
    assert re.match(r"0:00:\d\d [━╸╺]{16} 80,000 images/s, 5 s left", pictures[-1])
    assert ("a rather long name of an arm, seed 12345" in pictures[-1]) == (columns >= 100)


def test_without_steps_as_on_accelerators_the_bar_moves_every_epoch(terminal, clock):
    screen = terminal()
    with Progress(RUNS, 800, 2) as progress:
        progress.on_run(*RUNS[0])
        progress.on_epoch([row(seconds=4.0)])
    assert "200 images/s, 12 s left" in frames(screen.text())[-1]


def test_epoch_lines_on_a_terminal_are_whole_and_plain(terminal, clock):
    screen = terminal(60)
    with Progress(RUNS, 800, 2) as progress:
        progress.on_run(*RUNS[1])
        progress.on_epoch([row()])
        progress.print(":+1: [red]as it is[/red]")
    text = screen.text()
    assert f"{EPOCH_LINE}\r\n" in text  # no colour and no line break within
    assert ":+1: [red]as it is[/red]\r\n" in text


def test_a_log_gets_one_plain_line_an_epoch_and_nothing_else(capsys, clock):
    with Progress(RUNS, 800, 2) as progress:
        progress.on_run(*RUNS[1])
        progress.on_progress(0, 100)
        progress.on_progress(0, 800)
        progress.on_epoch([row()])
    captured = capsys.readouterr()
    assert captured.out == EPOCH_LINE + "\n" and captured.err == ""


def test_validation_and_test_scores_are_shown_where_there_are_any(capsys, clock):
    with Progress(RUNS, 800, 2) as progress:
        progress.on_run(*RUNS[1])
        progress.on_epoch([row(val_loss=None, val_accuracy=None, test_loss=1.5, test_accuracy=0.0)])
    assert "acc 10.00 %  test loss 1.500 acc 0.00 %  lr" in capsys.readouterr().out


def test_the_time_left_leaves_out_what_an_earlier_call_finished(capsys, clock):
    """Runs that are done already are passed over by `compare`; an epoch half done begins at its middle."""
    with Progress([("a", 0), ("b", 0), ("a", 1), ("b", 1)], 800, 2) as progress:
        progress.on_run("a", 1)
        progress.on_epoch([row(), row()])  # the second epoch; the first was of an earlier process
        progress.on_run("b", 1)
        progress.on_epoch([row()])
    assert re.findall(r"about (.*) left", capsys.readouterr().out) == ["4 s", "2 s"]


def test_ctrl_c_asks_to_stop_in_a_line_of_its_own_and_leaves_the_terminal_as_it_was(terminal, clock):
    screen = terminal()
    before = signal.getsignal(signal.SIGINT)
    with _stop_on_signal() as should_stop, Progress(RUNS, 800, 2) as progress:
        half_of_it(progress, clock)
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert should_stop()
    assert signal.getsignal(signal.SIGINT) is before
    text = screen.text()
    assert "stopping after this step (on accelerators, this epoch) and saving; press again to end at once" in frames(
        text
    )
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_the_handler_of_ctrl_c_waits_for_no_lock_of_the_bar(terminal, clock):
    """Another thread, as the one that draws the bar, holds its locks while the signal comes."""
    terminal()
    with _stop_on_signal() as should_stop, Progress(RUNS, 800, 2) as progress:
        held, release = threading.Event(), threading.Event()

        def hold():
            with progress._bar._lock, progress._bar.live._lock:
                held.set()
                release.wait(20)

        holder = threading.Thread(target=hold)
        holder.start()
        assert held.wait(10)
        start = time.monotonic()
        signal.raise_signal(signal.SIGINT)
        waited = time.monotonic() - start
        release.set()
        holder.join()
        assert should_stop() and waited < 10


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (90, "2 min"), (5399, "90 min"), (5400, "1.5 h"), (36000, "10.0 h")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
