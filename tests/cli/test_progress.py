"""What a person sees while runs go on, on a real (pseudo-)terminal and in a log file."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from types import SimpleNamespace

import pytest
from rich.default_styles import DEFAULT_STYLES

from jaxresnet.cli import progress as progress_module
from jaxresnet.cli.exits import stop_on_signal
from jaxresnet.cli.progress import PlannedRun, Progress, duration
from jaxresnet.training.fit import Interrupted


def planned(arm="Adam", seed=0, images=800, num_epochs=2, macs=1000, done=False, comparison=""):
    return PlannedRun(arm, seed, images, num_epochs, macs, done, comparison)


RUNS = [planned("Adam + Lookahead"), planned("Adam [b]")]  # a name that rich would take for markup
LAST = [planned("Adam + Lookahead", done=True), RUNS[1]]
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
    progress.on_run(RUNS[0])
    progress.on_epoch(RUNS[0], [row()])
    progress.on_epoch(RUNS[0], [row(), row()])  # 1,600 of 3,200 images
    progress.on_end(RUNS[0])
    progress.on_run(RUNS[1])
    clock[0] = 30.0
    progress.on_progress(RUNS[1], 0, 100)  # compiled for half a minute, which is no part of the speed
    clock[0] = 30.75
    progress.on_progress(RUNS[1], 0, 400)  # 2,000 of 3,200


def test_the_bar_shows_run_speed_and_time_left(terminal, clock):
    screen = terminal()
    with Progress(RUNS) as progress:
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
        run = planned(num_epochs=4)
        with Progress([run]) as progress:
            progress.on_run(run)
            for epoch in range(epochs):
                progress.on_epoch(run, [row()] * (epoch + 1))
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
    run = planned("a rather long name of an arm", 12345, num_epochs=500)
    with Progress([run]) as progress:
        progress.on_run(run)
        progress.on_epoch(run, [row(0.01)])
    pictures = [frame for frame in frames(screen.text()) if "━" in frame]
    assert max(map(len, pictures)) <= columns
    assert re.match(r"0:00:\d\d [━╸╺]{16} 80,000 images/s, 5 s left", pictures[-1])
    assert ("a rather long name of an arm, seed 12345" in pictures[-1]) == (columns >= 100)


def test_without_steps_as_on_accelerators_the_bar_moves_every_epoch(terminal, clock):
    screen = terminal()
    with Progress(RUNS) as progress:
        progress.on_run(RUNS[0])
        progress.on_epoch(RUNS[0], [row(seconds=4.0)])
    assert "200 images/s, 12 s left" in frames(screen.text())[-1]


def test_epoch_lines_on_a_terminal_are_whole_and_plain(terminal, clock):
    screen = terminal(60)
    with Progress(LAST) as progress:
        progress.on_run(RUNS[1])
        progress.on_epoch(RUNS[1], [row()])
        progress.print(":+1: [red]as it is[/red]")
    text = screen.text()
    assert f"{EPOCH_LINE}\r\n" in text  # no colour and no line break within
    assert ":+1: [red]as it is[/red]\r\n" in text


def test_a_log_gets_one_plain_line_an_epoch_and_nothing_else(capsys, clock):
    with Progress(LAST) as progress:
        progress.on_run(RUNS[1])
        progress.on_progress(RUNS[1], 0, 100)
        progress.on_progress(RUNS[1], 0, 800)
        progress.on_epoch(RUNS[1], [row()])
    captured = capsys.readouterr()
    assert captured.out == EPOCH_LINE + "\n" and captured.err == ""


def test_validation_and_test_scores_are_shown_where_there_are_any(capsys, clock):
    with Progress(RUNS) as progress:
        progress.on_run(RUNS[1])
        progress.on_epoch(RUNS[1], [row(val_loss=None, val_accuracy=None, test_loss=1.5, test_accuracy=0.0)])
    assert "acc 10.00 %  test loss 1.500 acc 0.00 %  lr" in capsys.readouterr().out


def times_left(capsys):
    return re.findall(r"about (.*) left", capsys.readouterr().out)


def test_the_time_left_leaves_out_what_an_earlier_call_finished(capsys, clock):
    """Runs that are done already are passed over by `compare`; an epoch half done begins at its middle."""
    runs = [planned("a", 0, done=True), planned("b", 0, done=True), planned("a", 1), planned("b", 1)]
    with Progress(runs) as progress:
        progress.on_run(runs[2])
        progress.on_epoch(runs[2], [row(), row()])  # the second epoch; the first was of an earlier process
        progress.on_end(runs[2])
        progress.on_run(runs[3])
        progress.on_epoch(runs[3], [row()])
    assert times_left(capsys) == ["4 s", "2 s"]


def test_what_is_finished_fills_the_bar_from_the_start(terminal, clock):
    terminal()
    runs = [planned(done=True), planned(seed=1)]
    with Progress(runs) as progress:
        progress.on_run(runs[1])
        assert progress._bar.tasks[0].completed == progress._bar.tasks[0].total / 2


def test_long_runs_and_large_networks_count_for_what_they_cost(capsys, clock):
    """The same images take a network of ten times the multiply-adds ten times as long."""
    small, long, large = planned("small"), planned("long", num_epochs=6), planned("large", macs=10_000)
    with Progress([small, long, large]) as progress:
        progress.on_run(small)
        progress.on_epoch(small, [row(1.0)])  # 800 images a second of the small network
        progress.on_epoch(small, [row(1.0), row(1.0)])
        progress.on_end(small)
        progress.on_run(long)
        progress.on_epoch(long, [row(1.0)])
        progress.on_run(large)
        progress.on_epoch(large, [row(10.0)])
    # 1 + 6 + 20 s; then 6 + 20; then 5 + 20; then what two runs left at once, which share the time
    assert times_left(capsys) == ["27 s", "26 s", "25 s", "8 s"]


def test_the_speed_shown_is_that_of_the_network_that_runs(terminal, clock):
    screen = terminal()
    small, large = planned("small"), planned("large", macs=10_000)
    with Progress([small, large]) as progress:
        progress.on_run(small)
        for history in ([row()], [row(), row()]):
            progress.on_epoch(small, history)
        progress.on_end(small)
        progress.on_run(large)
        progress.on_progress(large, 0, 100)
        clock[0] = 2.5
        progress.on_progress(large, 0, 200)  # 100 images of 10 x the work in 2.5 s, as fast as before
    assert "400 images/s" in "".join(frames(screen.text())[:-1])
    assert re.search(r" 40 images/s, 35 s left +large, seed 0", frames(screen.text())[-1])


def test_two_runs_at_once_take_half_the_time(capsys, clock):
    runs = [planned(seed=seed) for seed in range(4)]
    with Progress(runs) as progress:
        progress.on_run(runs[0])
        progress.on_run(runs[1])
        progress.on_epoch(runs[0], [row()])  # 7 epochs are left, of 2 s each
        progress.on_epoch(runs[1], [row()])
        progress.on_epoch(runs[0], [row(), row()])
        progress.on_end(runs[0])
        progress.on_epoch(runs[1], [row(), row()])
        progress.on_end(runs[1])  # one at a time from here on
        progress.on_run(runs[2])
        progress.on_epoch(runs[2], [row()])
    assert times_left(capsys) == ["7 s", "6 s", "5 s", "8 s", "6 s"]


def test_runs_of_the_same_name_in_two_comparisons_are_two(capsys, clock):
    runs = [planned(comparison="out/intended"), planned(comparison="out/published")]
    with Progress(runs) as progress:
        for run in runs:
            progress.on_run(run)
            progress.on_epoch(run, [row()])
            progress.on_epoch(run, [row(), row()])
            progress.on_end(run)
    assert times_left(capsys) == ["6 s", "4 s", "2 s", "0 s"]


def test_several_threads_may_tell_of_their_runs_at_once(terminal):
    """On a terminal, where the bar has locks of its own."""
    screen = terminal(200)
    runs = [planned(seed=seed, num_epochs=20) for seed in range(4)]
    with Progress(runs) as progress:

        def train(run):
            progress.on_run(run)
            for epoch in range(run.num_epochs):
                for images in (400, 800):
                    progress.on_progress(run, epoch, images)
                progress.on_epoch(run, [row()] * (epoch + 1))

        threads = [threading.Thread(target=train, args=(run,)) for run in runs]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert progress._bar.tasks[0].completed == progress._bar.tasks[0].total
    lines = re.findall(r"Adam, seed (\d): epoch (\d+)/20 .* left", without_escapes(screen.text()))
    assert sorted(lines) == sorted((str(seed), str(epoch)) for seed in range(4) for epoch in range(1, 21))
    assert lines[-1][1] == "20" and re.findall(r"about (\d+ \w+) left", without_escapes(screen.text()))[-1] == "0 s"


def test_ctrl_c_asks_to_stop_in_a_line_of_its_own_and_leaves_the_terminal_as_it_was(terminal, clock):
    screen = terminal()
    before = signal.getsignal(signal.SIGINT)
    with stop_on_signal() as should_stop, Progress(RUNS) as progress:
        half_of_it(progress, clock)
        assert not should_stop()
        os.kill(os.getpid(), signal.SIGINT)
        deadline = time.monotonic() + 10
        while not should_stop() and time.monotonic() < deadline:
            time.sleep(0.01)
        assert should_stop()
    assert signal.getsignal(signal.SIGINT) is before
    text = screen.text()
    said = (
        "stopping after the steps under way (on accelerators, this epoch; while compiling, after that) and saving; "
        "press again not to save"
    )
    assert said in frames(text)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")


def test_output_that_nobody_reads_is_a_reason_to_stop_and_not_to_fail(monkeypatch):
    """In `compare` any other error would be one of the run that is under way, and the others would go on."""
    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=broken_pipe, flush=broken_pipe, isatty=lambda: False))
    with Progress(RUNS) as progress, pytest.raises(Interrupted, match="nobody reads"):
        progress.print("a line")


def broken_pipe(*_):
    raise BrokenPipeError


def test_a_command_whose_output_nobody_reads_says_so_and_how_it_continues():
    code = "from jaxresnet.cli.exits import exit_status\nwith exit_status():\n    while True: print(1, flush=True)"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read()
    assert process.wait() == 75
    assert "Stopped, nobody reads the output any more. The same command continues:" in said
    assert "Traceback" not in said and "Exception ignored" not in said


def test_the_handler_of_ctrl_c_waits_for_no_lock_of_the_bar(terminal, clock):
    """Another thread, as the one that draws the bar, holds its locks while the signal comes."""
    terminal()
    with stop_on_signal() as should_stop, Progress(RUNS) as progress:
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


def test_a_run_whose_epochs_were_all_in_a_checkpoint_counts_as_done_when_it_ends(clock, capsys):
    """Killed after its last checkpoint and before its scores were written: no epoch is trained any more."""
    runs = [planned(seed=0), planned(seed=1)]
    with Progress(runs) as progress:
        progress.on_run(runs[0])
        progress.on_end(runs[0])
        progress.on_run(runs[1])
        progress.on_epoch(runs[1], [row(4.0)])  # 800 images in 4 s; 800 are left, and one run goes on
    assert capsys.readouterr().out.rstrip().endswith("about 4 s left")


def test_a_run_is_named_by_its_comparison_where_there_are_several():
    assert planned(comparison="schedulers-512").name == "schedulers-512: Adam, seed 0"
