"""benchmarks/gpu.sh: parts are chosen, fail and run out of time by themselves, and its programs know its flags."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
SKIPPED = dict.fromkeys(["pytorch", "pytorch-float32", "published", "step", "startup", "tests"], "skipped")


@pytest.fixture
def gpu_sh(tmp_path):
    """(what stands in for Python, as a shell script; variables) -> exit status, {part: how it ended}, the logs."""

    def run(python="exit 0", **variables):
        interpreter, folder = tmp_path / "interpreter", Path(tempfile.mkdtemp(dir=tmp_path))
        interpreter.write_text(f"#!/bin/sh\n{python}\n")
        interpreter.chmod(0o755)
        mine = ("SKIP", "ONLY", "TOTAL", "LIMIT", "TESTS", "DATA", "WHEELS", "PYTHON", "TOY")
        environ = {name: value for name, value in os.environ.items() if name not in mine}
        command = ["bash", str(BENCHMARKS / "gpu.sh"), str(folder)]
        status = subprocess.run(command, env={**environ, "PYTHON": str(interpreter), **variables}).returncode
        assert (folder / "gpu.tar.gz").is_file()
        rows = json.loads((folder / "summary.json").read_text())["parts"]
        logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
        return status, {row["part"]: row["result"] for row in rows}, logs

    return run


def test_a_part_that_fails_or_is_left_out_does_not_stop_the_others(gpu_sh):
    python = 'case "$*" in *published_run*) exit 3;; *) echo "$@";; esac'
    status, ended, logs = gpu_sh(python, ONLY="published step startup", SKIP="startup")
    assert status == 1 and ended == {**SKIPPED, "published": "failed", "step": "done"}
    assert "benchmarks/train_step.py" in logs["step"] and "/step.json" in logs["step"]


def test_a_part_that_takes_too_long_is_ended(gpu_sh):
    for limit, result in ({"LIMIT": "1"}, "out of time"), ({"TOTAL": "5"}, "no time left"):
        status, ended, _ = gpu_sh("exec sleep 60", ONLY="step", **limit)
        assert status == 1 and ended["step"] == result


def test_a_part_that_there_is_not_is_refused(tmp_path):
    command, env = ["bash", str(BENCHMARKS / "gpu.sh"), str(tmp_path)], {**os.environ, "SKIP": "test"}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 2 and "no part named test; there are: pytorch" in done.stderr


@pytest.mark.parametrize("toy", ["", "1"], ids=["gpu", "toy"])
def test_no_flag_of_the_script_is_unknown_to_its_program(gpu_sh, toy):
    """What a GPU is asked for cannot be tried without one; that the programs take it can."""
    status, _, logs = gpu_sh('printf "%s\\n" "$@"', SKIP="tests", TOY=toy)
    assert status == 0 and logs.keys() == {*SKIPPED} - {"tests"}
    for log in logs.values():
        program, *flags = log.splitlines()
        subprocess.run([sys.executable, "-c", ARGUMENTS, str(BENCHMARKS.parent / program), *flags], check=True)


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
