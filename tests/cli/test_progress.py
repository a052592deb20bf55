"""What a person sees while runs train, on a (pseudo-)terminal and in a log file."""

import re
import sys
from types import SimpleNamespace

import pytest
from support.terminal import frames

from jaxresnet.cli import progress as progress_module
from jaxresnet.cli.progress import Job, Progress, duration
from jaxresnet.training.fit import Interrupted


def job(arm="Adam", seed=0, images=800, num_epochs=2, macs=1000, done=False):
    return Job(arm, seed, images, num_epochs, macs, done)


JOB = job("Adam [b]")  # a name that rich would take for markup


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


@pytest.fixture
def train(clock):
    """train(progress, job, *(seconds by the clock, of them in training)): a whole run, an epoch each."""

    def train(progress, job, *epochs):
        progress.on_run(job)
        for i, (seconds, training) in enumerate(epochs):
            clock[0] += seconds
            progress.on_epoch(job, [row(training)] * (i + 1))
        progress.on_end(job)

    return train


def times_left(capsys):
    return re.findall(r"about (.*) left", capsys.readouterr().out)


# ------------------------------------------------------------------------------------------------------ the time left


def test_there_is_none_before_the_first_epoch(terminal, clock):
    screen = terminal()
    with Progress([JOB]) as progress:
        progress.on_run(JOB)
        assert progress._bar.tasks[0].fields["at"] == "compiling"
        clock[0] = 30.0
        progress.on_progress(JOB, 0, 100)
    assert "left" not in screen.text() and " epoch 1/2 " in frames(screen.text())[-1]


def test_it_is_by_the_clock_with_evaluation_and_with_compiling_once_an_arm(train, capsys):
    """Epochs of 3 s, 2 of them training. The first one of each arm takes 30 s more."""
    jobs = [job(arm, seed) for seed in (0, 1) for arm in "ab"]
    with Progress(jobs) as progress:
        for each in jobs:
            train(progress, each, (3.0 + 30 * (each.seed == 0), 2.0), (3.0, 2.0))
    first, second, *others = times_left(capsys)
    assert first == f"{7 * 2 + 31} s", "what the first epoch took beyond training is taken for compiling"
    assert second == f"{6 * 2.5 + 31:.0f} s"
    assert others == ["12 s", "10 s", "8 s", "5 s", "3 s", "0 s"], "the pace is the mean of 2 2 3, of 2 2 3 3, ..."


def test_what_an_earlier_call_finished_is_left_out(train, clock, capsys):
    jobs = [job("a", 0, done=True), job("b", 0, done=True), job("a", 1), job("b", 1)]
    with Progress(jobs) as progress:
        progress.on_run(jobs[2])
        clock[0] = 2.0
        progress.on_epoch(jobs[2], [row(), row()])  # its first epoch is in a checkpoint
        progress.on_end(jobs[2])
        progress.on_run(jobs[3])  # killed after its last checkpoint: nothing is left to train
        progress.on_end(jobs[3])
        assert sum(progress._done.values()) == progress._total
    assert times_left(capsys) == ["4 s"]


def test_long_runs_and_large_networks_count_for_what_they_cost(train, capsys):
    """The same images take a network of ten times the multiply-adds ten times as long."""
    small, long, large = job("small"), job("long", num_epochs=6), job("large", macs=10_000)
    with Progress([small, long, large]) as progress:
        train(progress, small, (1.0, 1.0), (1.0, 1.0))
        train(progress, long, *[(1.0, 1.0)] * 6)
    assert times_left(capsys) == ["27 s", "26 s", "25 s", "24 s", "23 s", "22 s", "21 s", "20 s"]


def test_runs_that_train_at_once_divide_it(capsys, clock):
    jobs = [job(seed=seed) for seed in range(4)]
    with Progress(jobs) as progress:
        for each in jobs[:2]:
            progress.on_run(each)
        for epochs in (1, 2):
            clock[0] += 2.0
            for each in jobs[:2]:
                progress.on_epoch(each, [row()] * epochs)
        progress.on_end(jobs[0])
        progress.on_end(jobs[1])
        progress.on_run(jobs[2])  # one at a time from here on
        clock[0] += 2.0
        progress.on_epoch(jobs[2], [row()])
    assert times_left(capsys) == ["7 s", "6 s", "5 s", "4 s", "6 s"]


def test_duration():
    assert [duration(s) for s in (89, 90, 5399, 5400, 36000)] == ["89 s", "2 min", "90 min", "1.5 h", "10.0 h"]


# --------------------------------------------------------------------------------------------- the log and the terminal

EPOCH_LINE = (
    "Adam [b], seed 0: epoch 1/2  train loss 2.303 acc 10.00 %  val loss 2.250 acc 12.50 %  lr 1.00e-02  "
    "400 images/s  about 2 s left"
)


def test_a_log_gets_one_plain_line_an_epoch_and_nothing_else(capsys, clock):
    with Progress([job(done=True), JOB]) as progress:
        progress.on_run(JOB)
        progress.on_progress(JOB, 0, 100)
        progress.on_progress(JOB, 0, 800)
        progress.on_epoch(JOB, [row()])
        captured = capsys.readouterr()
        assert captured.out == EPOCH_LINE + "\n" and captured.err == ""
        progress.on_epoch(JOB, [row(), row(val_loss=None, val_accuracy=None, test_loss=1.5, test_accuracy=0.0)])
    assert "acc 10.00 %  test loss 1.500 acc 0.00 %  lr" in capsys.readouterr().out


def test_epoch_lines_on_a_terminal_are_whole_and_plain(terminal, clock):
    screen = terminal(60)
    with Progress([job(done=True), JOB]) as progress:
        progress.on_run(JOB)
        progress.on_epoch(JOB, [row()])
        progress.print(":+1: [red]as it is[/red]")
    text = screen.text()
    assert f"{EPOCH_LINE}\r\n" in text  # no colour and no line break within
    assert ":+1: [red]as it is[/red]\r\n" in text
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"
    assert text.endswith("\x1b[1A\x1b[2K"), "and the live line is wiped away"


@pytest.mark.parametrize("columns", [60, 100])
def test_the_live_line_is_one_line_and_keeps_its_numbers(columns, terminal, clock):
    screen = terminal(columns)
    long = job("a rather long name of an arm", 12345, num_epochs=4)
    with Progress([long]) as progress:
        progress.on_run(long)
        progress.on_epoch(long, [row(0.01)])
        progress.on_epoch(long, [row(0.01), row(0.01)])
        assert progress._bar.tasks[0].completed == progress._bar.tasks[0].total / 2
    pictures = [frame for frame in frames(screen.text()) if "━" in frame]
    assert max(map(len, pictures)) <= columns
    assert re.match(r"0:00:\d\d [━╸╺]{16} epoch 2/4, 0 s left", pictures[-1])
    assert ("a rather long name of an arm, seed 12345" in pictures[-1]) == (columns >= 100)


def test_output_that_nobody_reads_is_a_reason_to_stop_and_not_to_fail(monkeypatch):
    """Any other error would be taken for one of the run that trains, and the others would go on."""

    def broken_pipe(*_):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=broken_pipe, flush=broken_pipe, isatty=lambda: False))
    with Progress([JOB]) as progress, pytest.raises(Interrupted, match="nobody reads"):
        progress.print("a line")
