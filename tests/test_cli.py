"""The command line from the outside: what it prints, how it refuses, and Ctrl-C in a real process."""

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
from tiny import MODEL, RUN

import jaxresnet.__main__
import jaxresnet.cli
from jaxresnet.cli import first_line, parse, run_experiment
from jaxresnet.config import ModelConfig
from jaxresnet.errors import ConfigError
from jaxresnet.progress import Progress
from jaxresnet.published import intended, published

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "experiments" / "adam_lookahead.py"
BASE = published["adam_512"].config
DEMO = ["--demo", "--stage-sizes", "1", "--pool-size", "32"]
EPOCH_LINE = re.compile(r"^(Adam.*), seed (\d+): epoch (\d+)/3 ", re.MULTILINE)


def exit_code(function, *args):
    try:
        function(*args)
    except SystemExit as e:
        return e.code
    return 0


@pytest.fixture
def run_script(monkeypatch, tmp_path, capsys):
    """run(*flags) -> (exit status, stdout, stderr) of the script, in an empty folder, its demo cut down to `RUN`."""
    monkeypatch.chdir(tmp_path)
    demo = {"num_epochs": 3, "batch_size": 64, "eval_batch_size": 100}
    sizes = {"DEMO_WIDTH": MODEL.width, "DEMO_TRAIN": 256, "DEMO_VAL": 44, "DEMO_TEST": 100}
    for name, value in {"DEMO": demo, **sizes}.items():
        monkeypatch.setattr(jaxresnet.cli, name, value)
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])  # the engines of the other tests
    monkeypatch.setattr(jax, "local_device_count", lambda: 1)

    def run(*flags):
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *flags])
        capsys.readouterr()
        code = exit_code(lambda: runpy.run_path(str(SCRIPT), run_name="__main__"))
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
    first, *lines = out.splitlines()
    for part in (
        "float32",
        "synthetic: synthetic data, not CIFAR-10, 256 training images",
        "width 4, 3 epochs, batch 64",
        "Adam + Lookahead vs Adam",
        "intended protocol",
        "seeds 0, 1",
        "expect about",
    ):
        assert part in first
    runs = [(arm, seed, str(epoch)) for seed in "01" for arm in ("Adam + Lookahead", "Adam") for epoch in (1, 2, 3)]
    assert EPOCH_LINE.findall(out) == runs
    folder = Path("out/adam_lookahead-demo")
    assert lines[-3:-1] == [f"figure   {folder}/figure.png", f"results  {folder}"]
    assert lines[-1].startswith("took ")
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    summary = json.loads((folder / "summary.json").read_text())
    verdict = summary["comparison"]["verdict"]
    assert verdict.endswith("[synthetic data, not CIFAR-10]") and verdict in lines
    config = json.loads((folder / "config.json").read_text())
    assert config["environment"]["command"] == f"python {SCRIPT} {shlex.join(DEMO)} --seeds 0 1"
    assert config["arms"]["Adam + Lookahead"]["optim"]["lookahead"] is True
    assert config["arms"]["Adam"]["optim"]["lookahead"] is False

    # Again: nothing left to train, the same page at the end.
    code, again, _ = run_script(*DEMO, "--seeds", "0", "1")
    assert code == 0 and not EPOCH_LINE.search(again)
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


def test_a_run_that_blows_up_is_a_users_error(run_script):
    huge = ["--learning-rate", "1e30", "--schedule", "warmup", "--schedule-unit", "epoch", "--warmup-fraction", "1"]
    code, out, err = run_script(*DEMO, "--seeds", "0", *huge)
    assert code == 2
    assert len(EPOCH_LINE.findall(out)) == 1, "the first epoch has a learning rate of zero"
    assert err.startswith("error: seed 0: the loss or a gradient stopped being finite in epoch 1, step 4")


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT], ids=lambda s: s.name)
def test_a_signal_ends_after_the_step_with_the_command_that_continues(run_script, monkeypatch, signum):
    on_progress = Progress.on_progress

    def ask_to_stop(self, epoch, images):
        if (epoch, images) == (1, 128):
            os.kill(os.getpid(), signum)
        on_progress(self, epoch, images)

    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(Progress, "on_progress", ask_to_stop)
        code, out, err = run_script(*DEMO, "--seeds", "0", "--out", "a b")
    assert code == 130
    assert len(EPOCH_LINE.findall(out)) == 1
    assert "Stopped, checkpoint in " in err and "Traceback" not in err
    assert f"\n  {sys.orig_argv[0]} {SCRIPT} {shlex.join(DEMO)} --seeds 0 --out 'a b'\n" in err
    assert [p.name for p in Path("a b/checkpoints/adam-lookahead-seed0").iterdir() if p.name == "6"] == ["6"]
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
    code, out, _ = run_script(*DEMO, "--seeds", "0", "--out", "a b")
    assert code == 0 and [found[2] for found in EPOCH_LINE.findall(out)] == ["2", "3", "1", "2", "3"]


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
    assert process.returncode == 130, err
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


# ------------------------------------------------------------------------------------------------------- the flags


def test_without_flags_the_run_is_the_intended_one():
    options = parse(None, BASE, [])
    assert options.config == intended(BASE)
    assert (options.seeds, options.protocol, options.demo) == ((0, 1, 2), "intended", False)
    assert options.config.val_size == 5000 and options.config.selection == "val"


def test_protocol_published_is_the_run_as_published():
    config = parse(None, BASE, ["--protocol", "published"]).config
    assert config == BASE
    assert (config.val_size, config.selection, config.eval_weights) == (0, "test", "fast")
    assert (config.optim.schedule_unit, config.optim.schedule_length) == ("epoch", 97)
    assert parse(None, BASE, ["--protocol=published"]).config == BASE
    assert parse(None, BASE, ["--protocol", "published", "--demo"]).config.val_size == 0


@pytest.mark.parametrize("argv", [["published", "intended"], ["intended", "published"]], ids="-".join)
def test_of_a_flag_given_twice_the_last_one_counts(argv):
    """For what it is called and for what it sets alike."""
    options = parse(None, BASE, ["--protocol", argv[0], "--protocol", argv[1]])
    assert options.protocol == argv[1]
    assert options.config == (BASE if argv[1] == "published" else intended(BASE))


def test_demo_and_no_demo_together_are_refused():
    with pytest.raises(ConfigError, match="give each once"):
        parse(None, BASE, ["--demo", "--no-demo"])


def test_every_field_is_a_flag_of_its_own_name():
    argv = (
        "--seeds 4 5 --sync-period 7 --no-flip --width 32 --stage-sizes 2 2 2 2 --precision bfloat16 --train-size 9000"
    )
    options = parse(None, BASE, [*argv.split(), "--out", "here", "--learning-rate=0.5", "--schedule-length", "None"])
    start = intended(BASE)
    assert options.seeds == (4, 5) and options.out == Path("here")
    assert options.config == replace(
        start,
        train_size=9000,
        model=replace(start.model, width=32, stage_sizes=(2, 2, 2, 2), precision="bfloat16"),
        augment=replace(start.augment, flip=False),
        optim=replace(start.optim, sync_period=7, learning_rate=0.5),
    )


def test_demo_flags_can_be_changed_too():
    config = parse(None, BASE, ["--demo", "--num-epochs", "2", "--no-lookahead"]).config
    assert config.num_epochs == 2 and not config.optim.lookahead
    assert config.model == ModelConfig(width=jaxresnet.cli.DEMO_WIDTH)
    assert config.val_size == jaxresnet.cli.DEMO_VAL


@pytest.mark.parametrize(
    "argv, parts",
    [
        (["--lerning-rate", "1"], ["Unrecognized options: --lerning-rate", "Perhaps you meant", "--learning-rate"]),
        (["--sync-periods", "1"], ["--sync-periods", "--sync-period INT"]),
        (["--learning-rate", "abc"], ["--learning-rate", "'abc'"]),
        (["--num-epochs", "1.5"], ["--num-epochs", "'1.5'"]),
        (["--num-epochs", "0"], ["num_epochs=0: must be a whole number, 1 or more"]),
        (["--learning-rate", "nan"], ["learning_rate=nan: must be a number of at least 0"]),
        (["--optimizer", "adamm"], ["'adamm'", "('adam', 'adamw', 'sgd')"]),
        (["--protocol", "publishd"], ["'publishd'", "('published', 'intended')"]),
        (["--pool-size", "8"], ["pool_size=8: must be 4"]),
        (["--width"], ["--width"]),
        (["epochs", "3"], ["Unrecognized options: epochs"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith(("-", "epochs")) else "",
)
def test_a_wrong_flag_is_refused_with_status_2(argv, parts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert exit_code(parse, None, BASE, argv) == 2
    message = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert all(part in message for part in parts), message
    assert "Traceback" not in message


def test_help_names_every_flag(capsys):
    assert exit_code(parse, "What this script is for.", BASE, ["--help"]) == 0
    text = capsys.readouterr().out
    assert "What this script is for." in text
    for flag in (
        "demo",
        "seeds",
        "num-epochs",
        "batch-size",
        "data-dir",
        "out",
        "precision",
        "protocol",
        "sync-period",
    ):
        assert f"--{flag}" in text


def test_the_first_line_of_the_real_thing(tiny_data):
    options = parse(None, BASE, ["--protocol", "published"])
    line = first_line(options, tiny_data._replace(name="cifar10", synthetic=False), {"A": BASE, "B": BASE})
    assert line.startswith("8 x ")
    assert "| cifar10, 300 training images |" in line and "synthetic" not in line
    assert "| 51 epochs, batch 512 | A vs B | published protocol | seeds 0, 1, 2 |" in line


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


def test_the_runs_here_are_those_of_the_other_tests():
    """Else these tests would compile their own."""
    assert parse(None, BASE, []).config.optim == RUN.optim


@pytest.mark.parametrize("flags", [["--no-lookahead"], ["--seeds", "1", "--no-lookahead", "--protocol", "published"]])
def test_a_flag_that_the_arms_set_themselves_is_refused(flags, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script.py", *flags])

    def arms(config):
        return {name: replace(config, optim=replace(config.optim, lookahead=name == "with")) for name in ("with", "no")}

    with pytest.raises(SystemExit) as stopped:
        run_experiment("script", None, published["adam_512"].config, arms)
    assert stopped.value.code == 2
    assert "--lookahead: has no effect here" in capsys.readouterr().err
