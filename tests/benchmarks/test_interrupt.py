"""Real processes, killed and asked to stop: the short version of benchmarks/interrupt.py."""

import json
import runpy
import signal
import subprocess
import sys

from support.watched import ROOT, differing

PROGRAM = ROOT / "benchmarks" / "interrupt.py"


def test_killed_at_random_instants_the_same_command_ends_in_the_same_bytes(tmp_path):
    """The whole program, with three of its kills and one request: of a seed that has all of them in one folder."""
    flags = ["--kills", "3", "--sigterm", "1", "--seed", "174"]
    command = [sys.executable, str(PROGRAM), *flags, str(tmp_path / "a.json")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 kills ended in identical bytes" in done.stdout
    written = json.loads((tmp_path / "a.json").read_text())
    drawn = {f"num_epochs-demo/{name}" for name in ("comparison.json", "figure.png", "report.html", "summary.json")}
    assert drawn < set(written["compared"])
    assert sum(name.startswith("weights of ") for name in written["compared"]) == 3
    assert [(row["kills"], row["identical"]) for row in written["table"]] == [(1, 1)] * 4
    for record in written["records"]:
        assert record["exit_status"] == {"SIGKILL": -9, "SIGTERM": 75}[record["signal"]]
        assert record["differing"] == [] and record["seconds_after_start"] > 0
    (asked,) = (record for record in written["records"] if record["signal"] == "SIGTERM")
    assert asked["half_written"] == [] and asked["seconds_to_end"] < 60


def test_a_kill_that_changed_the_results_or_went_unheard_does_not_pass():
    assert differing({"a": b"1", "b": b"2", "c": "3"}, {"a": b"1", "b": b"0", "d": "3"}) == ["b", "c", "d"]
    passed = runpy.run_path(str(PROGRAM), run_name="imported")["passed"]
    good = {"signal": "SIGKILL", "exit_status": -9, "differing": []}
    asked = {**good, "signal": "SIGTERM", "exit_status": 75}
    assert passed(good) and passed(asked)
    assert not passed({**good, "differing": ["figure.png"]})
    assert not passed({**good, "exit_status": 2})
    assert not passed({**asked, "exit_status": -signal.SIGTERM})
