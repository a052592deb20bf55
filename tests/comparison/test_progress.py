"""What a person sees while runs train, on a (pseudo-)terminal and in a log file."""

import re
import sys
from types import SimpleNamespace

import pytest
from support.terminal import frames

from jaxresnet.comparison import progress as progress_module
from jaxresnet.comparison.progress import Job, Progress, duration
from jaxresnet.errors import Interrupted


def job(arm="Adam", seed=0, images=800, num_epochs=2, macs=1000, done=False):
    return Job(arm, seed, images, num_epochs, macs, done)


JOB = job("Adam [b]")  # a name that rich would take for markup


def row(seconds=2.0, **scores):
    usual = {"train_loss": 2.303, "train_accuracy": 10.0, "val_loss": 2.25, "val_accuracy": 12.5, "test_accuracy": None}
    return {**usual, "learning_rate": 0.01, "seconds": seconds, "images_per_second": 800 / seconds, **scores}


@pytest.fixture
def times_left(monkeypatch, capsys):
    """times_left(jobs, *calls) -> what stands in the lines of their epochs. A call is (jobs that train side by side,
    *their epochs), an epoch the seconds that it takes by the clock, 2 of them in training."""
    now = [0.0]
    monkeypatch.setattr(progress_module.time, "perf_counter", lambda: now[0])

    def told(jobs, *calls, finished=0):
        with Progress(jobs) as progress:
            for together, *epochs in calls:
                for each in together:
                    progress.on_run(each)
                for i, seconds in enumerate(epochs):
                    now[0] += seconds
                    for each in together:
                        progress.on_epoch(each, [row()] * (finished + i + 1))
                for each in together:
                    progress.on_end(each)
        return re.findall(r"about (.*) left", capsys.readouterr().out)

    return told


def test_the_time_left_is_by_the_clock_with_evaluation_and_with_compiling_once_an_arm(times_left):
    """Epochs of 3 s, 2 of them training. The first one of each arm takes 30 s more."""
    jobs = [job(arm, seed) for seed in (0, 1) for arm in "ab"]
    first, second, *others = times_left(jobs, *(([each], 3.0 + 30 * (each.seed == 0), 3.0) for each in jobs))
    assert first == f"{7 * 2 + 31} s", "what the first epoch took beyond training is taken for compiling"
    assert second == f"{6 * 2.5 + 31:.0f} s"
    assert others == ["12 s", "10 s", "8 s", "5 s", "3 s", "0 s"], "the pace is the mean of 2 2 3, of 2 2 3 3, ..."


def test_what_an_earlier_call_finished_is_left_out(times_left):
    jobs = [job("a", 0, done=True), job("b", 0, done=True), job("a", 1), job("b", 1)]
    assert times_left(jobs, ([jobs[2]], 2.0), ([jobs[3]],), finished=1) == ["4 s"], "its first epoch is in a checkpoint"
    jobs = [job("a", 0), job("a", 1), job("a", 2)]
    assert times_left(jobs, ([jobs[0]],), ([jobs[1]], 2.0, 2.0)) == ["6 s", "4 s"], "nothing was left of the first"


def test_long_runs_and_large_networks_count_for_what_they_cost(times_left):
    """The same images take a network of ten times the multiply-adds ten times as long."""
    small, long, large = job("small"), job("long", num_epochs=6), job("large", macs=10_000)
    told = times_left([small, long, large], ([small], 2.0, 2.0), ([long], *[2.0] * 6))
    assert told == ["54 s", "52 s", "50 s", "48 s", "46 s", "44 s", "42 s", "40 s"]


def test_runs_that_train_at_once_divide_it_and_it_is_in_the_unit_that_suits(times_left):
    jobs = [job(seed=seed) for seed in range(4)]
    assert times_left(jobs, (jobs[:2], 2.0, 2.0), ([jobs[2]], 2.0)) == ["7 s", "6 s", "5 s", "4 s", "6 s"]
    assert [duration(s) for s in (89, 90, 5399, 5400, 36000)] == ["89 s", "2 min", "90 min", "1.5 h", "10.0 h"]


EPOCH_LINE = (
    "Adam [b], seed 0: epoch 1/2  train loss 2.303 acc 10.00 %  val loss 2.250 acc 12.50 %  lr 1.00e-02  "
    "400 images/s  about 2 s left"
)


def test_a_log_gets_one_plain_line_an_epoch_and_one_where_an_arm_compiles(capsys):
    with Progress([job(done=True), JOB]) as progress:
        progress.on_run(JOB)
        progress.on_progress(JOB, 0, 100)
        progress.on_epoch(JOB, [row()])
        assert capsys.readouterr() == ("Adam [b], seed 0: compiling\n" + EPOCH_LINE + "\n", "")
        progress.on_epoch(JOB, [row(), row(val_loss=None, val_accuracy=None, test_loss=1.5, test_accuracy=0.0)])
        progress.on_end(JOB)
        progress.on_run(job("Adam [b]", seed=1))
    rest = capsys.readouterr().out
    assert "acc 10.00 %  test loss 1.500 acc 0.00 %  lr" in rest and "compiling" not in rest


@pytest.mark.parametrize("columns", [60, 100])
def test_a_terminal_gets_whole_plain_lines_and_one_live_line_that_keeps_its_numbers(columns, terminal):
    screen, long = terminal(columns), job("a rather long name of an arm", 12345, num_epochs=4)
    with Progress([long]) as progress:
        progress.on_run(long)
        progress.on_progress(long, 0, 100)
        assert progress._bar.tasks[0].fields["at"] == "epoch 1/4", "no time left before the first epoch"
        progress.on_epoch(long, [row(0.01)])
        progress.on_epoch(long, [row(0.01), row(0.01)])
        progress.print(":+1: [red]as it is[/red]")
    text = screen.text()
    assert ":+1: [red]as it is[/red]\r\n" in text and re.search(r"12345: epoch 2/4 [^\r\n]* left\r\n", text)
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l"), "the cursor is visible again"
    assert text.endswith("\x1b[1A\x1b[2K"), "and the live line is wiped away"
    pictures = [frame for frame in frames(text) if "━" in frame]
    assert max(map(len, pictures)) <= columns
    assert re.match(r"0:00:\d\d [━╸╺]{16} epoch 2/4, \d+ s left", pictures[-1])
    assert ("a rather long name of an arm, seed 12345" in pictures[-1]) == (columns >= 100)


def test_output_that_nobody_reads_is_a_reason_to_stop_and_not_to_fail(monkeypatch):
    """Any other error would be taken for one of the run that trains, and the others would go on."""

    def broken_pipe(*_):
        raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", SimpleNamespace(write=broken_pipe, flush=broken_pipe, isatty=lambda: False))
    with Progress([JOB]) as progress, pytest.raises(Interrupted, match="nobody reads"):
        progress.print("a line")
