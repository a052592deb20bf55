"""benchmarks/gpu.sh: parts are chosen, fail and run out of time by themselves, and its programs know its flags."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = "pytorch pytorch-float32 published step startup tests"
SKIPPED = dict.fromkeys(PARTS.split(), "skipped")


@pytest.fixture
def gpu_sh(tmp_path):
    """(what stands in for Python, as a shell script; variables) -> exit status, {part: how it ended}, the logs."""

    def run(python="exit 0", **variables):
        interpreter, folder = tmp_path / "interpreter", Path(tempfile.mkdtemp(dir=tmp_path)) / "out"
        interpreter.write_text(f"#!/bin/sh\n{python}\n")
        interpreter.chmod(0o755)
        mine = ("SKIP", "ONLY", "TOTAL", "LIMIT", "TESTS", "DATA", "WHEELS", "PYTHON", "TOY")
        environ = {name: value for name, value in os.environ.items() if name not in mine}
        environ |= {"PYTHON": str(interpreter), **variables}
        command = ["bash", str(BENCHMARKS / "gpu.sh"), str(folder)]
        done = subprocess.run(command, env=environ, capture_output=True, text=True)
        assert (folder / "gpu.tar.gz").is_file() == (folder / "summary.json").is_file() == (done.returncode != 2)
        rows = json.loads((folder / "summary.json").read_text())["parts"] if done.returncode != 2 else []
        ended = {row["part"]: row["result"] for row in rows}
        logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
        return SimpleNamespace(status=done.returncode, ended=ended, logs=logs, stderr=done.stderr)

    return run


def test_a_part_that_fails_or_is_left_out_does_not_stop_the_others(gpu_sh):
    python = 'case "$*" in *published_run*) exit 3;; *) echo "$@";; esac'
    done = gpu_sh(python, ONLY="published step startup", SKIP="startup")
    assert done.status == 1 and done.ended == {**SKIPPED, "published": "failed", "step": "done"}
    assert "benchmarks/train_step.py" in done.logs["step"] and "/out/step.json" in done.logs["step"]
    assert gpu_sh(SKIP=PARTS).ended == SKIPPED
    wrong = gpu_sh(SKIP="test")
    assert wrong.status == 2 and "no part named test; there are: pytorch" in wrong.stderr


def test_a_part_that_takes_too_long_is_ended(gpu_sh):
    done = gpu_sh("exec sleep 60", ONLY="step", LIMIT="1")
    assert done.status == 1 and done.ended["step"] == "out of time"
    done = gpu_sh("exec sleep 60", ONLY="step", TOTAL="5")
    assert done.status == 1 and done.ended["step"] == "no time left"


@pytest.mark.parametrize("toy", [{}, {"TOY": "1"}], ids=["gpu", "toy"])
def test_no_flag_of_the_script_is_unknown_to_its_program(gpu_sh, toy):
    """What a GPU is asked for cannot be tried without one; that the programs take it can."""
    done = gpu_sh('printf "%s\\n" "$@"', SKIP="tests", **toy)
    assert done.status == 0 and done.logs.keys() == {*SKIPPED} - {"tests"}
    for log in done.logs.values():
        program, *flags = log.splitlines()
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
