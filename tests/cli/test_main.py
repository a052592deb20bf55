"""The command line from the outside: what it runs and prints, how it refuses, and how it is stopped and continued."""

import json
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from support.fake_experiments import BASE, MEASURED, exit_code
from support.tiny import DEMO

from jaxresnet.cli.commands import main as module_main
from jaxresnet.cli.experiment import Experiment
from jaxresnet.cli.main import first_line, run_experiment
from jaxresnet.comparison.plan import prepare
from jaxresnet.config import with_fields
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_json
from jaxresnet.results.schemas import measurement_path

DEVICES = jax.devices()
ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "experiments" / "adam_lookahead.py"
EPOCH_LINE = re.compile(r"^(Adam.*), seed (\d+): epoch (\d+)/3 ", re.MULTILINE)
SHORT = ["--seeds", "0", "--num-epochs", "2"]


@pytest.fixture
def run(monkeypatch, capsys):
    """run(function, argv, **of the function) -> (exit status, stdout, stderr) of a command."""

    def run(function, argv, *args, **kwargs):
        monkeypatch.setattr(sys, "argv", argv)
        capsys.readouterr()
        return exit_code(function, *args, **kwargs), *capsys.readouterr()

    return run


@pytest.fixture
def run_script(small_demo, run):
    """Of the script with these flags."""
    return lambda *flags: run(runpy.run_path, [str(SCRIPT), *flags], str(SCRIPT), run_name="__main__")


@pytest.fixture
def run_demo(small_demo, run):
    """Of a script that has these experiments."""
    return lambda experiments, *flags, **kwargs: run(
        run_experiment, ["script.py", *DEMO, *flags], *experiments, **kwargs
    )


@pytest.fixture
def run_module(run):
    """Of `python -m jaxresnet` with these arguments."""
    return lambda *args: run(module_main, ["jaxresnet", *args])


def small(name, **kwargs):
    """An experiment of one run: 212 images to train on and 44 to choose on, or 256 as published."""
    return Experiment(name, {name: {name.upper(): BASE}}, demo_images=212, **kwargs)


def test_the_demo_from_first_line_to_last(run_script, run_module):
    code, out, err = run_script(*DEMO, "--seeds", "0", "1")
    assert (code, err) == (0, "")
    first, note, expect, *lines = out.splitlines()
    assert first.startswith("adam_lookahead-demo | intended protocol | ") and first.endswith(
        " | float32 | synthetic: synthetic data, not CIFAR-10 | 256 training images | width 4, batch 64, epochs 3 "
        "| Adam + Lookahead vs Adam | seeds 0, 1"
    )
    assert "accuracies mean little" in note and expect == "4 of 4 runs to train"
    runs = [(arm, seed, str(epoch)) for seed in "01" for arm in ("Adam + Lookahead", "Adam") for epoch in (1, 2, 3)]
    assert sorted(EPOCH_LINE.findall(out)) == sorted(runs), "two runs at a time"
    folder = Path("out/adam_lookahead-demo")
    assert lines[-4:-1] == [f"figure   {folder}/figure.png", f"results  {folder}", ""]
    assert lines[-1].startswith("took ")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    verdict = lines[lines.index(f"figure   {folder}/figure.png") - 2]
    assert verdict.endswith("[synthetic data, not CIFAR-10]")
    comparison = json.loads((folder / "comparison.json").read_text())
    assert comparison["environment"]["command"] == f"python {SCRIPT} {shlex.join(DEMO)} --seeds 0 1"
    assert comparison["published"] == {}, "a published figure says nothing of synthetic data"
    assert len(list(Path("out/runs").iterdir())) == 4

    # Again: nothing left to train, the same page at the end.
    code, again, _ = run_script(*DEMO, "--seeds", "0", "1")
    assert code == 0 and not EPOCH_LINE.search(again) and "all 4 runs are finished" in again
    assert again.splitlines()[0] == first
    assert again.split("\n\n")[1:-1] == out.split("\n\n")[1:-1]

    # From the folder alone, without JAX.
    (folder / "figure.png").unlink()
    redraw = f"import sys\nfrom jaxresnet.__main__ import main\nsys.argv[1:] = ['report', '{folder}']\nmain()\n"
    check = "assert not {'jax', 'flax', 'optax'} & sys.modules.keys()"
    done = subprocess.run([sys.executable, "-c", redraw + check], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert verdict in done.stdout.splitlines() and done.stdout.split("\n\n")[0] in out
    assert (folder / "figure.png").is_file()
    code, report, _ = run_module("report", "out")
    assert code == 0 and verdict in report and Path("out/report.html").is_file()

    # Other settings do not mix with it; they go to another name, and share the runs that stay the same.
    code, _, err = run_script(*DEMO, "--seeds", "0", "1", "--sync-period", "6")
    assert code == 2 and err.startswith(f"error: {folder}: holds another comparison (")
    assert "optim.sync_period: 5 -> 6" in err and "Traceback" not in err
    code, out, _ = run_script(*DEMO, "--seeds", "0", "--name", "k5")
    assert code == 0 and out.startswith("k5 | ") and not EPOCH_LINE.search(out) and Path("out/k5/figure.png").is_file()


@pytest.mark.parametrize(
    "flags, message",
    [
        ([*DEMO, "--batch-size", "257"], "batch_size=257: must be at most the 256 training images"),
        ([*DEMO, "--name", "a/b"], "a/b"),
        ([*DEMO, "--out", "occupied", *SHORT], "occupied"),
        (["--data-dir", "nowhere"], "nowhere"),
    ],
)
def test_a_users_error_is_one_line_and_status_2(run_script, flags, message):
    Path("occupied").write_text("a file")
    code, out, err = run_script(*flags)
    assert code == 2
    assert err.startswith("error: ") and message in err and "Traceback" not in err
    assert not Path("out").exists() and not EPOCH_LINE.search(out)


def test_a_run_that_blows_up_is_a_users_error(run_script):
    huge = ["--learning-rate", "1e30", "--schedule", "warmup", "--schedule-unit", "epoch", "--warmup-fraction", "1"]
    code, out, err = run_script(*DEMO, "--seeds", "0", *huge)
    assert code == 2
    assert len(EPOCH_LINE.findall(out)) == 2, "the first epoch of both arms has a learning rate of zero"
    assert "incomplete: 0 of 2 runs" in out, "the table is printed all the same"
    assert "2 of 2 runs failed, and no other was lost. The same command tries them again" in err
    for arm in ("Adam + Lookahead", "Adam"):
        assert re.search(rf"^  {re.escape(arm)} seed 0: .* epoch 2, step 1 of 4", err, re.MULTILINE)


def test_several_experiments_end_in_one_page_and_share_their_runs(run_demo):
    seen = []

    def after(folder, data):
        assert (folder / "figure.png").is_file()
        seen.append((str(folder), data.train.num_examples, data.test.num_examples, data.synthetic))
        return f"what was seen in {folder}"

    one, two = small("one", after=after), small("two")
    code, alone, _ = run_demo([one], *SHORT)
    assert code == 0 and "page" not in alone and alone.count("epoch 1/2") == 1

    code, out, err = run_demo([one, two], *SHORT, description="Both.", protocol="both")
    assert (code, err) == (0, "")
    first_lines = [line.split(" | ")[:2] for line in out.splitlines() if line.count(" | ") > 5]
    protocols = (("-published-demo", "published protocol"), ("-demo", "intended protocol"))
    assert first_lines == [[name + suffix, protocol] for name in ("one", "two") for suffix, protocol in protocols]
    assert "1 of 2 runs to train" in out and out.count("epoch 1/2") == 1, "the arms of both are the same runs"
    assert "\none-published-demo: ONE, seed 0: epoch 1/2 " in out
    assert seen == [(f"out/one{protocol}-demo", 256, 100, True) for protocol in ("", "-published", "")]
    for folder, *_ in seen[1:]:
        assert f"figure   {folder}/figure.png\nresults  {folder}\n\nwhat was seen in {folder}\n" in out
    assert out.splitlines()[-1] == "page     out/report.html" and Path("out/report.html").is_file()


def test_a_measurement_runs_once_and_before_anything_trains(run_demo):
    calls = []

    def measure(folder, demo):
        calls.append((str(folder), demo))
        write_json(measurement_path(folder), {})
        return "the table"

    measured = MEASURED._replace(comparisons={"sizes-trained": {"A": BASE}}, measurements={"sizes": measure})
    code, _, err = run_demo([measured])
    assert code == 2 and err.startswith("error: --eval-batch-size, --pool-size, --stage-sizes, --width: no effect")
    code, _, err = run_demo([measured], "--train", "--batch-size", "1000")
    assert code == 2 and "batch_size=1000" in err
    assert calls == [] and not Path("out").exists(), "what can be refused is refused before"

    code, out, err = run_demo([measured], "--train", *SHORT)
    assert (code, err) == (0, "") and calls == [("out/sizes-demo", True)]
    assert out.startswith("the table\n\nresults  out/sizes-demo\nsizes-trained-demo | ")
    code, out, _ = run_demo([measured], "--train", *SHORT)
    assert code == 0 and len(calls) == 1
    assert out.startswith("out/sizes-demo is there already: remove it to measure again\n")


def test_a_folder_that_is_refused_is_refused_before_anything_trains(run_demo):
    Path("out/two-demo").mkdir(parents=True)
    Path("out/two-demo/precious.txt").write_text("mine")
    code, out, err = run_demo([small("one"), small("two")], *SHORT)
    assert code == 2 and "out/two-demo: holds other files" in err and "epoch 1/2" not in out
    assert not Path("out/one-demo").exists()


def test_a_comparison_that_fails_keeps_no_other_from_running(run_demo):
    def after(folder, data):
        raise ResultsError(f"{folder}: cannot be looked at again")

    one, two = small("one", after=after), small("two")
    code, out, err = run_demo([one, two], *SHORT)
    assert code == 2 and "results  out/two-demo" in out and Path("out/report.html").is_file()
    problem = "error: out/one-demo: cannot be looked at again"
    assert err.splitlines() == [problem, "error: 1 of 2 comparisons failed, see above: one-demo"]
    code, out, err = run_demo([one], *SHORT)
    assert (code, err) == (2, problem + "\n") and "all 1 runs are finished" in out


@pytest.mark.devices(2)
def test_devices_runs_gives_each_device_a_run(run_demo, monkeypatch):
    monkeypatch.setattr(jax, "devices", lambda: DEVICES[:2])
    code, out, err = run_demo([small("one")], "--devices", "runs", "--seeds", "0", "1")
    assert (code, err) == (0, "") and ": 2 runs at a time | " in out.splitlines()[0]
    assert out.count(": epoch 3/3") == 2 and re.search(r"about 0 s left\n\n", out)


def test_the_first_line_has_each_value_in_which_arms_differ_once(tiny_data, tmp_path):
    fields = {"batch_size": 64, "val_size": 44, "test_every_epoch": True, "precision": "float32"}
    arms = {
        "A": with_fields(BASE, {**fields, "width": 32, "num_epochs": 1000, "precision": "bfloat16"}),
        "B": with_fields(BASE, {**fields, "batch_size": 128, "train_size": 200}),
        "C": with_fields(BASE, fields),
    }
    line = first_line(prepare(arms, (0, 2), tiny_data, tmp_path, name="x", protocol="published"))
    assert line.startswith("x | published protocol | ") and f": {len(DEVICES)} devices that share batches | " in line
    assert " | bfloat16 / float32 | " in line and line.endswith(
        " | 256 / 156 training images | width 32 / 64, batch 64 / 128, epochs 1,000 / 51 | A vs B vs C | seeds 0, 2"
    )


def test_the_commands_of_the_module(run_module, monkeypatch):
    brought = SimpleNamespace(import_comparison=lambda folder, out: [f"{folder.name}-{out.name}"])
    monkeypatch.setitem(sys.modules, "jaxresnet.comparison.imports", brought)
    assert run_module("import", "old/x", "--out", "here") == (0, "old/x -> here/x-here\n", "")
    code, out, _ = run_module("summary", "--stage-sizes", "2", "2", "2", "2")
    assert code == 0 and "11,173,962 parameters, 6,173,962 over" in out


@pytest.mark.parametrize(
    "args, part",
    [
        (["summary", "--widht", "3"], "--width"),
        (["report", "nowhere"], "nowhere: no such folder"),
        ([], "summary"),
    ],
)
def test_wrong_uses_of_the_module_are_refused(run_module, args, part):
    code, out, err = run_module(*args)
    assert code == 2
    assert part in out + err and "Traceback" not in err
