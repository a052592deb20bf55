"""benchmarks/gpu.sh: its programs know its flags. What a GPU is asked for cannot be tried without one; that can."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
PARTS = {"pytorch", "pytorch-float32", "published", "step", "startup"}

# Runs programs up to the point where each has understood its command line.
ARGUMENTS = """
import argparse, json, runpy, sys

class Understood(Exception):
    pass

parse = argparse.ArgumentParser.parse_args

def understood(*args):
    parse(*args)
    raise Understood

argparse.ArgumentParser.parse_args = understood
commands = json.loads(sys.argv[1])
sys.path.insert(0, commands[0][0].rpartition("/")[0])
for sys.argv in commands:
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Understood:
        print(sys.argv[0])
"""


def test_no_flag_of_the_script_is_unknown_to_its_program(tmp_path):
    echo, commands = tmp_path / "echo", []
    echo.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    echo.chmod(0o755)
    for toy in ("", "1"):
        folder = tmp_path / f"found{toy}"
        environ = {**os.environ, "PYTHON": str(echo), "SKIP": "tests", "TOY": toy}
        subprocess.run(["bash", str(BENCHMARKS / "gpu.sh"), str(folder)], env=environ, check=True)
        logs = {path.stem: path.read_text() for path in folder.glob("*.log")}
        assert logs.keys() == PARTS and (folder / "gpu.tar.gz").is_file()
        for log in logs.values():
            program, *flags = log.splitlines()
            commands.append([str(BENCHMARKS.parent / program), *flags])
    command = [sys.executable, "-c", ARGUMENTS, json.dumps(commands)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [program for program, *_ in commands]
