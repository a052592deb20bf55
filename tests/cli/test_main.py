"""The command line from the outside: what it runs and prints, how it refuses, and Ctrl-C in a real process."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jax
import pytest
from support.fake_experiments import BASE, EXPERIMENT, MAIN, MEASURED, OTHER, arms_of, exit_code, measuring, parse_main
from support.tiny import DEMO, MODEL, RUN

import jaxresnet.__main__
import jaxresnet.cli.experiment
import jaxresnet.cli.main
from jaxresnet.cli.experiment import Experiment, as_demo
from jaxresnet.cli.main import (
    Planned,
    expected_seconds,
    first_line,
    plan,
    published_figures,
    run_experiment,
    run_measurements,
)
from jaxresnet.cli.options import Options, parse
from jaxresnet.cli.progress import PlannedRun, Progress
from jaxresnet.comparison.compare import compare
from jaxresnet.config import ModelConfig, with_fields
from jaxresnet.errors import ResultsError
from jaxresnet.recipes import SOURCE, intended

COMPARE = sys.modules[compare.__module__]  # the package's attribute of that name is the function
DEVICES = jax.devices()
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "adam_lookahead.py"
EPOCH_LINE = re.compile(r"^(Adam.*), seed (\d+): epoch (\d+)/3 ", re.MULTILINE)


@pytest.fixture
def run_script(small_demo, monkeypatch, capsys):
    """run(*flags) -> (exit status, stdout, stderr) of the script."""

    def run(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        capsys.readouterr()
        code = exit_code(lambda: runpy.run_path(str(SCRIPT), run_name="__main__"))
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_demo(small_demo, monkeypatch, capsys):
    """run(experiments, *flags, **of run_experiment) -> (exit status, stdout, stderr) of a script that has them."""

    def run(experiments, *flags, **kwargs):
        monkeypatch.setattr(sys, "argv", ["script.py", *DEMO, *flags])
        capsys.readouterr()
        code = exit_code(lambda: run_experiment(*experiments, **kwargs))
        return code, *capsys.readouterr()

    return run


def run_main(monkeypatch, capsys, *args):
    monkeypatch.setattr(sys, "argv", ["jaxresnet", *args])
    capsys.readouterr()
    code = exit_code(jaxresnet.__main__.main)
    return code, *capsys.readouterr()


# ------------------------------------------------------------------------------------------------ the whole script


def test_the_demo_from_first_line_to_last(run_script, monkeypatch, capsys):
    code, out, err = run_script(*DEMO, "--seeds", "0", "1")
    assert (code, err) == (0, "")
    first, note, expect, *lines = out.splitlines()
    for part in (
        "adam_lookahead | intended protocol",
        "float32",
        "synthetic: synthetic data, not CIFAR-10, 256 training images",
        "width 4, 3 epochs, batch 64",
        "Adam + Lookahead vs Adam",
        "seeds 0, 1",
    ):
        assert part in first
    assert "accuracies mean little" in note
    assert re.fullmatch(r"expect about \d+ (s|min) of training, plus compiling", expect)
    runs = [(arm, seed, str(epoch)) for seed in "01" for arm in ("Adam + Lookahead", "Adam") for epoch in (1, 2, 3)]
    assert EPOCH_LINE.findall(out) == runs
    folder = Path("out/adam_lookahead-demo")
    assert lines[-4:-1] == [f"figure   {folder}/figure.png", f"results  {folder}", ""]
    assert lines[-1].startswith("took ")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    verdict = summary["comparison"]["verdict"]
    assert verdict.endswith("[synthetic data, not CIFAR-10]") and verdict in lines
    config = json.loads((folder / "config.json").read_text())
    assert config["environment"]["command"] == f"python {SCRIPT} {shlex.join(DEMO)} --seeds 0 1"
    assert config["arms"]["Adam + Lookahead"]["optim"]["lookahead"] is True
    assert config["arms"]["Adam"]["optim"]["lookahead"] is False
    assert config["published"] == {}, "a published figure says nothing of synthetic data"

    # Again: nothing left to train, the same page at the end.
    code, again, _ = run_script(*DEMO, "--seeds", "0", "1")
    assert code == 0 and not EPOCH_LINE.search(again) and "expect about" not in again
    assert again.splitlines()[0] == first
    assert again.split("\n\n")[1:-1] == out.split("\n\n")[1:-1]

    # From the folder alone.
    (folder / "figure.png").unlink()
    code, report, err = run_main(monkeypatch, capsys, "report", str(folder))
    assert (code, err) == (0, "")
    assert verdict in report.splitlines() and report.split("\n\n")[0] in out
    assert (folder / "figure.png").is_file()

    # Other settings do not mix with it.
    code, out, err = run_script(*DEMO, "--seeds", "0", "1", "--sync-period", "6")
    assert code == 2
    assert err.startswith(f"error: {folder} holds another comparison (")
    assert "optim.sync_period: 5 -> 6" in err and "Traceback" not in err


@pytest.mark.parametrize(
    "flags, message",
    [
        ([*DEMO, "--batch-size", "257"], "batch_size=257: must be at most the 256 training images"),
        ([*DEMO, "--seeds", "0", "0"], "seeds=[0, 0]: at least one is needed, and none twice"),
        ([*DEMO, "--seeds", "-1"], "seed=-1: must be a whole number, 0 or more"),
        ([*DEMO, "--seeds"], "seeds=[]: at least one is needed"),
        ([*DEMO, "--seed", "3"], "name them all: --seeds 0 1 2"),
        ([*DEMO, "--out", "occupied"], "occupied: cannot write results there"),
        ([*DEMO, "--data-dir", "."], "leave --data-dir out, or leave --demo out"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
    ids=lambda value: " ".join(value[len(DEMO) :] or value) if isinstance(value, list) else "",
)
def test_a_users_error_is_one_line_and_status_2(run_script, flags, message):
    Path("occupied").write_text("a file")
    code, _, err = run_script(*flags)
    assert code == 2
    assert err.startswith("error: ") and message in err and "Traceback" not in err
    assert not Path("out").exists()


@pytest.mark.parametrize(
    "flags",
    [["--no-lookahead"], ["--lookahead"], ["--no-lookahead", "--protocol", "published"], ["--lookahead", "--demo"]],
    ids=" ".join,
)
def test_a_flag_for_what_the_arms_compare_is_refused(run_script, flags):
    """Even with the value that the first arm has: the flag is for all arms."""
    code, _, err = run_script(*flags)
    assert code == 2
    assert err == (
        "error: --lookahead: the arms of adam_lookahead set it themselves, to True, False; leave the flag out, or "
        "choose other comparisons with --only\n"
    )
    assert not Path("out").exists()


def test_a_run_that_blows_up_is_a_users_error(run_script):
    huge = ["--learning-rate", "1e30", "--schedule", "warmup", "--schedule-unit", "epoch", "--warmup-fraction", "1"]
    code, out, err = run_script(*DEMO, "--seeds", "0", *huge)
    assert code == 2
    assert len(EPOCH_LINE.findall(out)) == 2, "the first epoch of both arms has a learning rate of zero"
    assert "(incomplete: 0 of 2 runs, 2 failed)" in out, "the table is printed all the same"
    assert "2 of 2 runs failed, and no other was lost. The same command tries them again" in err
    for arm in ("Adam + Lookahead", "Adam"):
        problem = "the loss, a gradient, an update or batch statistics stopped being finite in epoch 1, step 4"
        assert f"  {arm} seed 0: {problem} (both counted from 0). Try" in err


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_ends_after_the_step_with_the_command_that_continues(run_script, monkeypatch, signum):
    on_progress = Progress.on_progress

    def ask_to_stop(self, run, epoch, images):
        if (epoch, images) == (1, 128):
            os.kill(os.getpid(), signum)
        on_progress(self, run, epoch, images)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_progress", ask_to_stop)
        code, out, err = run_script(*DEMO, "--seeds", "0", "--out", "a b")
    assert code == 75
    assert len(EPOCH_LINE.findall(out)) == 1
    assert "Stopped, checkpoint in " in err and "Traceback" not in err
    assert f"\n  {sys.orig_argv[0]} {SCRIPT} {shlex.join(DEMO)} --seeds 0 --out 'a b'\n" in err
    assert [p.name for p in Path("a b/checkpoints/adam-lookahead-seed0").iterdir() if p.name == "6"] == ["6"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    code, out, _ = run_script(*DEMO, "--seeds", "0", "--out", "a b")
    assert code == 0 and [found[2] for found in EPOCH_LINE.findall(out)] == ["2", "3", "1", "2", "3"]


def test_a_signal_before_training_says_that_the_same_command_continues(run_script, monkeypatch):
    monkeypatch.setattr(jaxresnet.cli.main, "_load_data", lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    code, _, err = run_script(*DEMO)
    assert code == 75 and "Stopped. The same command continues:" in err


def test_ctrl_c_in_a_process_of_its_own(tmp_path):
    """A real Ctrl-C, then the very command that it prints."""
    network = ["--stage-sizes", "1", "--pool-size", "32", "--width", "2", "--num-epochs", "3", "--batch-size", "512"]
    argv = [str(SCRIPT), "--demo", "--seeds", "0", *network]
    env = {**os.environ, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "cwd": tmp_path, "env": env}
    process = subprocess.Popen([sys.executable, *argv], **pipes)
    before = []
    for line in process.stdout:
        before.append(line)
        if EPOCH_LINE.match(line):
            process.send_signal(signal.SIGINT)
            break
    rest, err = process.communicate(timeout=300)
    assert process.returncode == 75, err
    assert "synthetic data, not CIFAR-10" in before[0]
    assert "Stopped, checkpoint in " in err and "Traceback" not in err
    command = shlex.split(err.strip().splitlines()[-1])
    assert command == [sys.executable, *argv]
    done = EPOCH_LINE.findall("".join(before) + rest)
    assert 0 < len(done) < 6, "stopped before all six epochs of two arms"

    again = subprocess.run(command, timeout=300, **pipes)
    assert again.returncode == 0, again.stderr
    assert done + EPOCH_LINE.findall(again.stdout) == [
        (arm, "0", str(epoch)) for arm in ("Adam + Lookahead", "Adam") for epoch in (1, 2, 3)
    ]
    assert (tmp_path / "out" / "adam_lookahead-demo" / "figure.png").is_file()


# ------------------------------------------------------------------------ several comparisons, measurements and devices


@pytest.mark.parametrize(
    "argv, folders",
    [
        ([], ["out/main", "out/rates-256"]),
        (["--demo"], ["out/main-demo", "out/rates-256-demo"]),
        (["--all"], ["out/main", "out/rates-256", "out/rates-one"]),
        (["--protocol", "published"], ["out/main-published", "out/rates-256-published"]),
        (["--protocol", "both", "--only", "main"], ["out/main-published", "out/main"]),
        (["--protocol", "both", "--demo", "--only", "main"], ["out/main-published-demo", "out/main-demo"]),
        (["--out", "here"], ["here/main", "here/rates-256"]),
        (["--out", "here", "--only", "rates"], ["here/rates-256"]),
    ],
    ids=lambda value: " ".join(value),
)
def test_the_folders_of_several_experiments(argv, folders):
    options, fields = parse_main(*argv, experiments=(EXPERIMENT, OTHER))
    assert [str(one.out) for one in plan((EXPERIMENT, OTHER), options, fields)] == folders


@pytest.mark.parametrize(
    "experiment, argv, folders",
    [
        (EXPERIMENT, [], ["out/main"]),
        (EXPERIMENT, ["--demo"], ["out/main-demo"]),
        (EXPERIMENT, ["--out", "a/b"], ["a/b"]),
        (EXPERIMENT, ["--out", "a/b", "--demo", "--protocol", "published"], ["a/b"]),
        (EXPERIMENT, ["--out", "a/b", "--protocol", "both"], ["a/b/main-published", "a/b/main"]),
        (OTHER, ["--out", "a/b"], ["a/b"]),
        (OTHER, ["--out", "a/b", "--all"], ["a/b/rates-256", "a/b/rates-one"]),
        (MEASURED, ["--out", "a/b"], []),
        (MEASURED, ["--out", "a/b", "--train"], ["a/b/sizes-trained"]),  # a/b/sizes is that of the measurement
        (MEASURED, ["--out", "a/b", "--only", "sizes-trained"], ["a/b"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_the_folders_of_one_experiment(experiment, argv, folders):
    options, fields = parse_main(*argv, experiments=(experiment,))
    assert [str(one.out) for one in plan((experiment,), options, fields)] == folders


def test_each_demo_has_its_own_synthetic_images(small_demo):
    small, large = EXPERIMENT._replace(demo_images=100), OTHER._replace(demo_images=200)
    options, fields = parse([small, large], ["--demo"])
    data = jaxresnet.cli.main._load_data(options, plan([small, large], options, fields))
    sizes = {str(out): (one.train.num_examples, one.test.num_examples, one.synthetic) for out, one in data.items()}
    assert sizes == {"out/main-demo": (144, 100, True), "out/rates-256-demo": (244, 100, True)}


def test_measurements_run_once_into_their_folders(run_demo):
    calls = []
    names = ["sizes", "times", "shapes", "colours"]
    experiment = Experiment("Measured.", {}, measurements={name: measuring(calls, name) for name in names})
    code, _, err = run_demo([experiment])
    assert code == 2 and err.startswith("error: --eval-batch-size, --pool-size, --stage-sizes, --width: no effect here")
    assert "--train" in err and calls == [] and not Path("out").exists()

    options, _ = parse([experiment], ["--demo"])
    run_measurements([experiment], options)
    assert calls == [(name, f"out/{name}-demo", True) for name in names], "in the script's order"
    (Path("out/times-demo") / "measurement.json").unlink()
    calls.clear()
    run_measurements([experiment], options)
    assert calls == [("times", "out/times-demo", True)]

    calls.clear()
    options, _ = parse([experiment], ["--only", "shapes", "sizes", "--out", "here"])
    run_measurements([experiment], options)
    assert calls == [("sizes", "here/sizes", False), ("shapes", "here/shapes", False)]
    calls.clear()
    options, _ = parse([experiment], ["--only", "colours", "--out", "there"])
    run_measurements([experiment], options)
    assert calls == [("colours", "there", False)], "alone, it has the folder for itself"


def test_what_a_measurement_says_is_printed_before_anything_trains(run_demo, monkeypatch):
    calls = []
    measured = MEASURED._replace(comparisons={"sizes-trained": {"A": BASE}}, measurements={"sizes": measuring(calls)})
    monkeypatch.setattr(sys, "argv", ["script.py", "--demo"])
    code, out, err = run_demo([measured], "--train", "--seeds", "0")
    assert (code, err) == (0, "")
    assert out.startswith("the table of sizes\n\nresults  out/sizes-demo\nsizes-trained | ")
    assert calls == [("sizes", "out/sizes-demo", True)]
    assert json.loads(Path("out/sizes-trained-demo/summary.json").read_text())["complete"]
    code, out, _ = run_demo([measured], "--train", "--seeds", "0")
    assert code == 0 and len(calls) == 1
    assert out.startswith("out/sizes-demo is there already: remove it to measure again\n")


def test_a_wrong_flag_is_found_before_anything_is_measured(run_demo):
    calls = []
    measured = MEASURED._replace(measurements={"sizes": measuring(calls)})
    code, _, err = run_demo([measured], "--train", "--no-lookahead")
    assert code == 2 and "--lookahead: the arms of sizes-trained set it themselves" in err and calls == []


def test_a_measurement_where_nothing_can_be_written_is_a_users_error(small_demo, monkeypatch, capsys):
    Path("occupied").write_text("a file")
    monkeypatch.setattr(sys, "argv", ["script.py", "--demo", "--out", "occupied"])
    assert exit_code(run_experiment, MEASURED) == 2
    assert "error: occupied: cannot write results there (File exists)" in capsys.readouterr().err


def test_after_a_comparison_its_folder_and_data_are_looked_at_again(run_demo):
    seen = []

    def after(folder, data):
        assert (folder / "summary.json").is_file()
        seen.append((str(folder), data.train.num_examples, data.test.num_examples, data.synthetic))
        return f"what was seen in {folder}"

    one = Experiment("One.", {"one": {"A": BASE}}, demo_images=212, after=after)
    code, out, err = run_demo([one], "--seeds", "0", "--protocol", "both", "--num-epochs", "1")
    assert (code, err) == (0, "")
    assert seen == [(f"out/one{protocol}-demo", 256, 100, True) for protocol in ("-published", "")]
    blocks = out.split("\n\n")
    for folder, *_ in seen:
        assert f"what was seen in {folder}" in blocks
        assert blocks.index(f"what was seen in {folder}") == 1 + blocks.index(
            f"figure   {folder}/figure.png\nresults  {folder}"
        )


def test_several_experiments_end_in_one_page_and_are_not_run_twice(run_demo):
    calls = []
    one = Experiment("One.", {"one": {"A": BASE}}, demo_images=212)  # and 44 to choose on: 256 as published
    two = Experiment("Two.", {"two": {"B": BASE}}, demo_images=212, measurements={"sizes": measuring(calls)})
    flags = ["--seeds", "0", "--num-epochs", "1"]
    code, alone, _ = run_demo([one], *flags)
    assert code == 0 and "page" not in alone and alone.count("epoch 1/1") == 1

    code, out, err = run_demo([one, two], *flags, description="Both.", protocol="both")
    assert (code, err) == (0, "")
    assert out.splitlines()[-1] == "page     out/report.html" and Path("out/report.html").is_file()
    first_lines = [line.split(" | ")[:2] for line in out.splitlines() if line.count(" | ") > 5]
    names = [("one", "published"), ("one", "intended"), ("two", "published"), ("two", "intended")]
    assert first_lines == [[name, f"{protocol} protocol"] for name, protocol in names]
    assert "expect about" in out and "1 of 4 runs being finished" in out
    assert out.count("epoch 1/1") == 3, "out/one-demo is there already"
    assert calls == [("sizes", "out/sizes-demo", True)]


def test_a_folder_that_is_refused_is_refused_before_anything_trains(run_demo):
    one, two = (Experiment(name, {name: {"A": BASE}}, demo_images=212) for name in ("one", "two"))
    Path("out/two-demo").mkdir(parents=True)
    Path("out/two-demo/precious.txt").write_text("mine")
    code, out, err = run_demo([one, two], "--seeds", "0", "--num-epochs", "1")
    assert code == 2 and "out/two-demo: holds other files" in err and "epoch 1/1" not in out
    assert not Path("out/one-demo").exists()


def test_a_comparison_that_fails_keeps_no_other_from_running(run_demo):
    def after(folder, data):
        raise ResultsError("cannot be looked at again")

    one = Experiment("One.", {"one": {"A": BASE}}, demo_images=212, after=after)
    two = Experiment("Two.", {"two": {"B": BASE}}, demo_images=212)
    flags = ["--seeds", "0", "--num-epochs", "1"]
    code, out, err = run_demo([one, two], *flags)
    assert code == 2 and out.count("epoch 1/1") == 2 and Path("out/report.html").is_file()
    assert "error: out/one-demo: cannot be looked at again" in err
    assert err.splitlines()[-1] == "error: 1 of 2 comparisons failed, see above: one-demo"
    code, out, err = run_demo([one], *flags, "--devices", "runs")
    assert (code, err) == (2, "error: cannot be looked at again\n")
    assert "all 1 runs are finished: nothing is trained" in out and "--devices runs: there is one device" in out


def test_several_experiments_do_not_go_into_the_folder_of_one(run_demo):
    one, two = (Experiment(name, {name: {"A": BASE}}, demo_images=212) for name in ("one", "two"))
    flags = ["--seeds", "0", "--num-epochs", "1"]
    assert run_demo([one], *flags, "--out", "mine")[0] == 0
    code, out, err = run_demo([one, two], *flags, "--out", "mine")
    assert code == 2 and "mine: is the folder of one comparison" in err and "epoch 1/1" not in out


@pytest.mark.devices(2)
def test_devices_runs_gives_each_device_a_run(small_demo, monkeypatch, capsys):
    devices = DEVICES[:2]
    monkeypatch.setattr(jax, "devices", lambda: devices)
    fit, used = COMPARE.fit, []

    def noting(*args, devices, **kwargs):
        used.append(devices)
        return fit(*args, devices=devices, **kwargs)

    monkeypatch.setattr(COMPARE, "fit", noting)
    one = Experiment("One.", {"one": {"lr 1e-2": BASE, "lr 1e-3": with_fields(BASE, {"learning_rate": 1e-3})}})
    monkeypatch.setattr(sys, "argv", ["script.py", *DEMO, "--devices", "runs", "--seeds", "0", "1"])
    code = exit_code(run_experiment, one)
    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert " | 2 (a run each) x " in out.splitlines()[0]
    assert len(used) == 4 and {device for (device,) in used} == set(devices)
    assert out.count(": epoch 3/3") == 4 and re.search(r"about 0 s left\n\n", out)
    assert json.loads(Path("out/one-demo/summary.json").read_text())["complete"]

    monkeypatch.setattr(sys, "argv", ["script.py", *DEMO, "--batch-size", "63", "--out", "other"])
    assert exit_code(run_experiment, one) == 2, "63 images do not divide over two devices"
    assert "batch_size=63: must be a multiple of the 2 devices" in capsys.readouterr().err


# ----------------------------------------------------------------------------------------- what is said before the runs


def test_the_first_line_of_the_real_thing(tiny_data):
    options, fields = parse_main("--protocol", "published")
    (one,) = plan([EXPERIMENT], options, fields)
    line = first_line(one, options, tiny_data._replace(name="cifar10", synthetic=False))
    assert line.startswith("main | published protocol | 8 (sharing batches) x ")
    assert "| float32 | cifar10, 300 training images | 51 epochs, batch 512 | " in line and "synthetic" not in line
    assert line.endswith(" | Adam + Lookahead vs Adam | seeds 0, 1, 2")
    assert "8 (a run each) x " in first_line(one, replace(options, devices="runs"), tiny_data)


def test_the_first_line_names_what_the_arms_differ_in(tiny_data):
    arms = {
        "A": with_fields(BASE, {"width": 32, "num_epochs": 1000, "precision": "bfloat16"}),
        "B": with_fields(BASE, {"batch_size": 64, "train_size": 200}),
        "C": with_fields(BASE, {"batch_size": 64}),
    }
    line = first_line(Planned(EXPERIMENT, "x", "intended", arms, Path("out")), Options(), tiny_data)
    for part in (
        "bfloat16 / float32 |",
        "300 / 200 training images",
        "width 32 / 64, 1,000 / 51 epochs, batch 512 / 64",
    ):
        assert part in line


def test_the_time_to_expect_is_proportional_to_the_work_left(monkeypatch):
    monkeypatch.setattr(jaxresnet.cli.main.time, "perf_counter", iter(range(1000)).__next__)  # a product takes a second
    run = PlannedRun("A", 0, images=1024, num_epochs=2, macs=1024**2)
    seconds = expected_seconds([run], Options())
    assert seconds == pytest.approx(2 / 0.4 / len(jax.devices()))
    assert expected_seconds([run, replace(run, num_epochs=6)], Options()) == pytest.approx(4 * seconds)


def test_published_figures_stand_beside_the_runs_that_were_published():
    figures = published_figures({**MAIN, "another rate": with_fields(BASE, {"learning_rate": 0.5})})
    assert figures == {
        "Adam + Lookahead": {"run": "adam_512", "best": 91.26, "last": 91.00, "source": SOURCE},
        "Adam": {"run": "adam_512_without_lookahead", "best": 90.78, "last": 90.78, "source": SOURCE},
    }
    assert published_figures({arm: intended(config) for arm, config in MAIN.items()}) == {}


# ---------------------------------------------------------------------------------------------- python -m jaxresnet


def test_summary(monkeypatch, capsys):
    code, out, _ = run_main(monkeypatch, capsys, "summary")
    assert code == 0 and "4,903,242 parameters, 96,758 under" in out
    code, out, _ = run_main(monkeypatch, capsys, "summary", "--stage-sizes", "2", "2", "2", "2")
    assert code == 0 and re.search(r"11,173,962 parameters, 6,173,962 over", out)


@pytest.mark.parametrize(
    "args, part",
    [
        (["summary", "--widht", "3"], "--width"),
        (["summary", "--width", "0"], "width=0"),
        (["report", "nowhere"], "nowhere: no such folder"),
        (["report"], "report --help"),
        (["sumary"], "summary"),
        ([], "summary"),
    ],
    ids=lambda value: " ".join(value) or "nothing" if isinstance(value, list) else "",
)
def test_wrong_uses_of_the_module_are_refused(monkeypatch, capsys, tmp_path, args, part):
    monkeypatch.chdir(tmp_path)
    code, out, err = run_main(monkeypatch, capsys, *args)
    assert code == 2
    assert part in out + err and "Traceback" not in err


def test_the_module_runs_as_a_command():
    command = [sys.executable, "-m", "jaxresnet", "summary", "--width", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    params = jaxresnet.count_params(ModelConfig(width=8))
    assert f"{params:,} parameters" in done.stdout


def test_the_runs_here_are_those_of_the_other_tests(monkeypatch):
    """Else these tests would compile their own."""
    monkeypatch.setattr(jaxresnet.cli.experiment, "DEMO_VAL", 44)
    config = arms_of(*DEMO)["Adam + Lookahead"]
    assert config == with_fields(RUN, {"test_every_epoch": True, "precision": "auto"})
    assert config.model == replace(MODEL, precision="auto")
    assert as_demo(intended(BASE)) == replace(
        config, model=ModelConfig(width=16, precision="float32"), eval_batch_size=512
    )
