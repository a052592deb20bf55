"""The programs that measure compiling, sweeps, XLA's options, convolutions and precisions, each as small as can be, and
the script for a GPU."""

import json
import os
import statistics
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import compiling
import conv_passes
import jax
import precision_training
import pytest
import steps_per_dispatch
import sweep
import xla_options
from support.tiny import RUN

import jaxresnet as jr
import jaxresnet.training.engine
from jaxresnet.training.compilation import CompiledOnce
from jaxresnet.training.engine import Engine, Program

BENCHMARKS = Path(compiling.__file__).parent
SMALL = ["--width", "4", "--stage-sizes", "1"]


@pytest.fixture
def on_cpu(monkeypatch):
    """For the child processes, also where the tests have a GPU for themselves."""
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")


# --------------------------------------------------------------------------------------------- steps_per_dispatch.py


def test_dispatches_of_one_step_and_of_several_take_turns(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "1")
    out = tmp_path / "out.json"
    dispatches = []
    train_epoch = Engine.train_epoch

    def noted(engine, *args, **more):
        dispatches.append([])
        return train_epoch(engine, *args, **{**more, "after_step": lambda done, *_: dispatches[-1].append(done)})

    monkeypatch.setattr(Engine, "train_epoch", noted)
    flags = [*SMALL, "--batch-sizes", "4", "--images", "32", "--rounds", "2"]
    steps_per_dispatch.main([str(out), *flags])
    (case,) = json.loads(out.read_text())["cases"]
    by_count = [[*range(4, 33, 4)], [8, 16, 24, 32], [32]]
    assert dispatches == [*by_count, *by_count, *by_count[::-1]], "one warm-up, and two rounds"
    assert [row["steps_per_dispatch"] for row in case["dispatches"]] == [1, 2, 8]
    assert case["dispatches"][0]["speed_against_1"] == 1 and all(row["step_seconds"] > 0 for row in case["dispatches"])
    assert len(capsys.readouterr().out.splitlines()) == 3


def test_dispatches_need_a_cpu_that_multiplies_bfloat16(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")
    with pytest.raises(SystemExit, match="needs a CPU that multiplies bfloat16"):
        steps_per_dispatch.main([str(tmp_path / "out.json")])
    assert not any(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------ compiling.py


def test_two_runs_that_differ_in_numbers_compile_once_and_the_next_process_not_at_all(tmp_path, on_cpu, capsys):
    out = tmp_path / "compiling.json"
    runs = ["adam_256_lr_1", "adam_256_lr_3"]
    size = ["--train-images", "512", "--test-images", "500"]
    assert compiling.main([str(out), "--as-accelerator", *SMALL, *size, "--runs", *runs]) == 0
    found = json.loads(out.read_text())
    assert found["as_accelerator"] and found["runs"] == runs and found["environment"]["platform"] == "cpu"
    first, again, second = (found["passes"][name] for name in compiling.PASSES)
    for one in (first, again, second):
        assert one["total"] == {
            key: pytest.approx(sum(one["runs"][run][key] for run in runs)) for key in one["runs"][runs[0]]
        }
    assert first["total"]["engines"] == 1 and first["total"]["programs"] == 2, "an epoch, and evaluation"
    assert first["total"]["compiled"] > 2 and first["total"]["from_disk"] == 0
    assert (again["total"]["engines"], again["total"]["programs"], again["total"]["compiled"]) == (0, 0, 0)
    assert second["total"]["programs"] == 2 and second["total"]["from_disk"] >= 2
    assert second["total"]["compiled"] < first["total"]["compiled"]
    assert len(found["processes"]) == 2 and found["bytes_on_disk"] > 1000
    assert all(one["import_seconds"] > 0 for one in found["processes"])
    assert "second start: 1 new engines asked for 2 programs" in capsys.readouterr().out


def test_what_is_compiled_without_data_is_what_a_run_needs(tiny_data, monkeypatch):
    """Text for text: arrays that have a shape only, and those that `fit` places, make the same programs."""
    texts = []
    compile_it = Program._compile

    def noted(program, *args):
        texts.append(program._mapped.lower(*args).as_text())
        return compile_it(program, *args)

    monkeypatch.setattr(Program, "_compile", noted)
    monkeypatch.setattr(jaxresnet.training.engine, "_compiled_once", lambda *_: CompiledOnce())
    model = replace(RUN.model, width=2)  # like no other test's, so that no engine is shared
    config = replace(RUN, model=model, num_epochs=1, val_size=0, selection="test", test_every_epoch=True)
    devices = jax.devices()[:1]
    events = Counter()
    with compiling.without_running(events):
        compiling.prepare(config, Engine(config, 300, tuple(devices)), 300, 100)
    prepared, texts[:] = list(texts), []
    jr.fit(config, tiny_data, devices=devices)
    assert sorted(prepared) == sorted(texts)
    assert events["programs"] == len(texts) == (3 if devices[0].platform == "cpu" else 2)


# ------------------------------------------------------------------------------ conv_passes.py, precision_training.py


@pytest.mark.skipif(jax.devices()[0].platform != "cpu", reason="is for CPUs")
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_ways_to_convolve_take_turns(precision):
    found = conv_passes.measure(batch=2, side=4, channels=16, stride=2, precision=precision, pairs=2)
    assert found["images"] == [4, 4, 16] and found["features"] == 32
    assert found["seconds"].keys() == found["library_times_as_fast_as"].keys() == conv_passes.WAYS.keys()
    assert found["library_times_as_fast_as"]["library"] == 1 and all(len(each) == 2 for each in found["times"].values())


def test_both_precisions_train_from_the_same_start(tiny_data, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jr, "load_cifar10", {"folder": tiny_data}.__getitem__)
    published = jr.published["adam_512"]
    small = replace(published.config, model=RUN.model)  # of one stage: compiling is what this costs
    monkeypatch.setitem(jr.published, "adam_512", published._replace(config=small))
    monkeypatch.setenv("JAXRESNET_CPU_BFLOAT16", "0")  # which the program changes
    out = tmp_path / "out"
    size = ["--width", "2", "--epochs", "1", "--seeds", "0", "--batch-size", "64", "--train-size", "256"]
    precision_training.main([str(out), "--data", "folder", *size])
    float32, bfloat16 = (json.loads((out / f"runs/{arm}-seed0.json").read_text()) for arm in ("float32", "bfloat16"))
    assert float32["config"]["model"].pop("precision") == "float32"
    assert bfloat16["config"]["model"].pop("precision") == "bfloat16"
    assert float32["config"] == bfloat16["config"] and float32["config"]["num_epochs"] == 1
    assert "bfloat16" in capsys.readouterr().out


# ---------------------------------------------------------------------------------------------------------- sweep.py


def test_a_sweep_over_two_devices(tmp_path, on_cpu, capsys):
    out = tmp_path / "sweep.json"
    size = ["--runs", "2", "--epochs", "1", "--images", "64", "--batch-size", "32"]
    assert sweep.main([str(out), "--devices", "2", *SMALL, *size, "--repeats", "2"]) == 0
    found = json.loads(out.read_text())
    one, two = found["devices"]
    assert (one["devices"], two["devices"]) == (1, 2)
    assert one["programs"] == two["programs"] == 2, "a step and evaluation, however many devices"
    assert one["different_runs"] == two["different_runs"] == [] and set(found["figures"]) == {"seed 0", "seed 1"}
    assert found["figures"]["seed 0"] != found["figures"]["seed 1"]
    assert {"train_loss", "grad_norm"} <= set(found["figures"]["seed 0"]["epochs"][0])
    assert "test_loss" in found["figures"]["seed 0"]["scores"]
    assert two["median_seconds"] == statistics.median(two["seconds"]) and len(two["seconds"]) == 2
    speed = statistics.median(a / b for a, b in zip(one["seconds"], two["seconds"], strict=True))
    assert two["efficiency"] == pytest.approx(speed / min(2, found["cores"]))
    assert "2 runs" in capsys.readouterr().out


def test_efficiency_counts_cores_and_runs():
    times = {1: [8.0, 12.0, 8.0], 2: [4.0, 6.0, 5.0], 4: [4.0, 4.0, 5.0], 8: [6.0, 6.0, 6.0]}
    one, two, four, eight = sweep.summary(times, runs=8, cores=2)
    assert one["efficiency"] == 1 and one["runs_per_minute"] == 60
    assert two["times_as_fast_as_one"] == 2 and two["efficiency"] == 1 and two["against_a_core_each"] is None
    assert four["times_as_fast_as_one_range"] == [1.6, 3] and four["efficiency"] == 1
    assert four["against_a_core_each"] == 0.8 and eight["against_a_core_each"] == 1.2
    assert sweep.summary(times, runs=1, cores=8)[3]["efficiency"] == pytest.approx(8 / 6)


class FakeContender:
    """A worker that needs no process. script: {name: (what it says when it is ready, or why it failed; its turns)}."""

    script: ClassVar[dict] = {}

    def __init__(self, name, command, environment, timeout):
        self.name, self.units, self.failure, self.ready = name, [], None, {}

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        pass

    def wait_until_ready(self):
        ready, self.turns = self.script[self.name]
        if isinstance(ready, str):
            self.failure = ready
        else:
            self.ready = ready


def fake_turns(contenders, rounds, pause=0):
    for contender in contenders:
        contender.units += contender.turns[:rounds]


@pytest.fixture
def fakes(monkeypatch):
    for module in (sweep, xla_options):
        monkeypatch.setattr(module, "Contender", FakeContender)
        monkeypatch.setattr(module, "take_turns", fake_turns)
    return lambda script: monkeypatch.setattr(FakeContender, "script", script)


def fake_sweep(loss=0.1, programs=2, available=8):
    figures = {"seed 0": {"epochs": [{"train_loss": 0.1}]}, "seed 1": {"epochs": [{"train_loss": loss}]}}
    told = {"available": available, "programs": programs, "compile_seconds": 1.0, "small_programs": 9, "cpu_seconds": 1}
    return {**told, "figures": figures, "environment": {"platform": "cpu"}}, [1.0, 2.0]


@pytest.mark.parametrize(
    ("of_two", "problem"),
    [
        (fake_sweep(), None),
        (fake_sweep(loss=0.1 + 2**-58), None),  # the same number
        (fake_sweep(loss=0.1 + 2**-56), "2 devices: not the same bits in seed 1"),
        (fake_sweep(programs=4), "2 devices: 4 programs were compiled, and 2 with one device"),
    ],
)
def test_a_sweep_fails_where_a_bit_differs_or_more_is_compiled(fakes, tmp_path, capsys, of_two, problem):
    fakes({"1 devices": fake_sweep(), "2 devices": of_two})
    command = [str(tmp_path / "sweep.json"), "--devices", "1", "2", "--repeats", "2"]
    assert sweep.main(command) == (0 if problem is None else 1)
    assert problem is None or problem in capsys.readouterr().err
    assert (tmp_path / "sweep.json").is_file()


def test_a_sweep_leaves_out_devices_that_are_not_there_and_ends_with_a_failing_worker(fakes, tmp_path):
    fakes({"1 devices": fake_sweep(available=1)})
    assert sweep.main([str(tmp_path / "sweep.json"), "--repeats", "2"]) == 0
    assert [row["devices"] for row in json.loads((tmp_path / "sweep.json").read_text())["devices"]] == [1]
    fakes({"1 devices": ("out of memory", [])})
    with pytest.raises(SystemExit, match="1 devices: out of memory"):
        sweep.main([str(tmp_path / "sweep.json")])


def test_a_turn_with_other_figures_than_the_first_is_an_error(monkeypatch):
    losses = iter([1.0, 1.0, 1.5])
    monkeypatch.setattr(Program, "_compile", Program._compile)  # put back afterwards, as is the next
    monkeypatch.setattr(sys.modules["jaxresnet.comparison.compare"], "_render", None)
    monkeypatch.setattr(jr, "compare", lambda *_, **__: None)
    monkeypatch.setattr(sweep, "figures", lambda _: {"seed 0": next(losses)})
    case = {"images": 10, "batch_size": 2, "stage_sizes": [1], "width": 4, "epochs": 1, "runs": 1}
    unit = sweep.set_up(1, case)
    unit.run()
    unit.run()
    with pytest.raises(RuntimeError, match="not the figures of the first turn: seed 0"):
        unit.run()


# ---------------------------------------------------------------------------------------------------- xla_options.py


def test_options_are_measured_against_none(tmp_path, on_cpu, capsys):
    out = tmp_path / "options.json"
    size = ["--batch-size", "8", "--steps", "1", "--pairs", "2"]
    options = ["-o", "xla_cpu_enable_fast_math=true", "xla_cpu_prefer_vector_width=512", "-o", "xla_cpu_of_1999=1"]
    assert xla_options.main([str(out), *SMALL, *size, *options]) == 0
    found = json.loads(out.read_text())
    again, both, unknown = found["candidates"]
    assert again["options"] == {} and again["status"] == both["status"] == "measured"
    assert both["options"] == {"xla_cpu_enable_fast_math": True, "xla_cpu_prefer_vector_width": "512"}
    ratios = [none / own for own, none in zip(both["seconds"], both["seconds_without"], strict=True)]
    assert both["times_as_fast"] == statistics.median(ratios) and len(ratios) == 2
    assert both["seconds_without"] != again["seconds_without"], "turns of its own time"
    assert both["compile_seconds"] > 0 and both["temporary_bytes"] > 0
    assert again["loss"] == found["none"]["loss"] and both["loss"] == pytest.approx(again["loss"], rel=1e-3)
    assert unknown == {"options": {"xla_cpu_of_1999": "1"}, "status": xla_options.UNKNOWN}
    assert "xla_cpu_of_1999=1: unknown to this version of XLA" in capsys.readouterr().out


def test_no_candidate_has_a_value_that_xla_refuses():
    """It may be unknown to another version; a misspelt value would be refused by all of them."""
    for candidates in xla_options.CANDIDATES.values():
        for options in candidates:
            assert xla_options.why_refused(options) in (None, xla_options.UNKNOWN), options
    assert xla_options.why_refused({"xla_backend_optimization_level": "high"}).startswith("refused: ")


def test_a_candidate_that_fails_is_told_and_changes_the_status(fakes, tmp_path, capsys):
    told = {"compile_seconds": 1.0, "temporary_bytes": 2**20, "loss": 2.0, "platform": "gpu", "environment": {}}
    none = {**told, "unit": "", "images": 1, "candidates": [[{"good": True}, None], [{"bad": True}, None]]}
    fakes(
        {
            "none": (none, [2.0, 2.0]),
            "none, again": (told, [2.0, 2.0]),
            "good=True": ({**told, "loss": 2.1}, [1.0, 1.6]),
            "bad=True": ("ended with SIGSEGV", []),
        }
    )
    out = tmp_path / "options.json"
    assert xla_options.main([str(out), "--pairs", "2"]) == 1
    rows = json.loads(out.read_text())["candidates"]
    assert rows[1]["times_as_fast"] == statistics.median([2.0, 1.25])
    assert rows[2] == {"options": {"bad": True}, "status": "failed: ended with SIGSEGV"}
    assert "good=True: 1.625 times as fast (1.250 to 2.000)" in (printed := capsys.readouterr().out)
    assert "LOSS 2.10000, not 2.00000" in printed
    assert xla_options.main([str(out), "--pairs", "2", "--seconds", "-1"]) == 0, "nothing was begun, nothing failed"
    assert {row["status"] for row in json.loads(out.read_text())["candidates"]} == {"no time left of -1 s"}


def test_values_of_options():
    assert xla_options.parse_option("a=TRUE") == ("a", True) and xla_options.parse_option("a=false") == ("a", False)
    assert xla_options.parse_option("a=b=c,d") == ("a", "b=c,d") and xla_options.parse_option("a=") == ("a", "")
    with pytest.raises(xla_options.argparse.ArgumentTypeError, match="NAME=VALUE"):
        xla_options.parse_option("xla_gpu_ftz")


# ------------------------------------------------------------------------------------------------------------ gpu.sh


PARTS = "pytorch pytorch-float32 profile published compiling options augmentation stem step tests"


def gpu_sh(folder, **variables):
    """(exit status, {part: how it ended}, names of the files)."""
    mine = ("SKIP", "ONLY", "TOTAL", "LIMIT", "TESTS", "DATA", "WHEELS", "PYTHON", "TOY")
    environ = {name: value for name, value in os.environ.items() if name not in mine} | variables
    command = ["bash", str(BENCHMARKS / "gpu.sh"), str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True)
    if not (folder / "summary.json").is_file():
        return SimpleNamespace(status=done.returncode, stderr=done.stderr)
    summary = json.loads((folder / "summary.json").read_text())
    ended = {row["part"]: row["result"] for row in summary["parts"]}
    return SimpleNamespace(status=done.returncode, ended=ended, files=sorted(p.name for p in folder.iterdir()))


@pytest.fixture
def interpreter(tmp_path):
    """A stand-in for Python that does what it is told to."""

    def make(text):
        path = tmp_path / "interpreter"
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return str(path)

    return make


def test_every_part_can_be_skipped(tmp_path):
    done = gpu_sh(tmp_path / "out", SKIP=PARTS)
    assert done.status == 0 and done.files == ["gpu.tar.gz", "summary.json"]
    assert done.ended == dict.fromkeys(PARTS.split(), "skipped")


def test_a_part_that_fails_does_not_stop_the_others(tmp_path, interpreter):
    python = interpreter('case "$*" in *profile_step*) exit 3;; *) echo "$@";; esac')
    done = gpu_sh(tmp_path / "out", ONLY="profile options augmentation", SKIP="augmentation", PYTHON=python)
    assert done.status == 1 and done.files == ["gpu.tar.gz", "options.log", "profile.log", "summary.json"]
    others = dict.fromkeys(PARTS.split(), "skipped")
    assert done.ended == {**others, "profile": "failed", "options": "done"}
    assert f"xla_options.py {tmp_path}/out/options.json" in (tmp_path / "out" / "options.log").read_text()


def test_a_part_that_takes_too_long_is_ended(tmp_path, interpreter):
    done = gpu_sh(tmp_path / "out", ONLY="step", LIMIT="1", PYTHON=interpreter("exec sleep 60"))
    assert done.status == 1 and done.ended["step"] == "out of time"
    done = gpu_sh(tmp_path / "out", ONLY="step", TOTAL="5", PYTHON=interpreter("exec sleep 60"))
    assert done.status == 1 and done.ended["step"] == "no time left"


def test_a_misspelt_part_is_refused(tmp_path):
    done = gpu_sh(tmp_path / "out", SKIP="test")
    assert done.status == 2 and "no part named test; there are: pytorch" in done.stderr


def test_no_flag_of_the_script_is_unknown_to_its_program(tmp_path, interpreter):
    """What the GPU is asked for cannot be tried without one; that the programs take it can."""
    done = gpu_sh(tmp_path / "out", SKIP="tests", PYTHON=interpreter('printf "%s\\n" "$@"'))
    assert done.status == 0
    logs = sorted((tmp_path / "out").glob("*.log"))
    assert {"pytorch", "pytorch-float32", "profile", "published", "stem", "step"} < {log.stem for log in logs}
    for log in logs:
        program, *flags = log.read_text().splitlines()
        command = [sys.executable, "-c", ARGUMENTS, str(BENCHMARKS.parent / program), *flags]
        subprocess.run(command, check=True, capture_output=True)


# Runs a program up to the point where it has understood its command line.
ARGUMENTS = """
import argparse, runpy, sys
sys.argv = sys.argv[1:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
parse = argparse.ArgumentParser.parse_args
def understood(*args):
    parse(*args)
    raise SystemExit(0)
argparse.ArgumentParser.parse_args = understood
runpy.run_path(sys.argv[0], run_name="__main__")
"""
