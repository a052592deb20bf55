"""Real processes, killed and asked to stop: the short version of benchmarks/interrupt.py."""

import json
import runpy
import signal
import subprocess
import sys

from watched import ROOT, differing

BENCHMARKS = ROOT / "benchmarks"


def test_killed_at_random_instants_the_same_command_ends_in_the_same_bytes(tmp_path):
    """The whole program, with three of its kills and one request: of a seed that has all of them in one folder."""
    argv = [
        str(BENCHMARKS / "interrupt.py"),
        "--kills",
        "3",
        "--sigterm",
        "1",
        "--seed",
        "174",
        str(tmp_path / "a.json"),
    ]
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 of 4 kills ended in identical bytes" in done.stdout
    written = json.loads((tmp_path / "a.json").read_text())
    assert {"config.json", "figure.png", "report.html", "summary.json"} < set(written["compared"])
    assert sum(name.startswith("weights of ") for name in written["compared"]) == 3
    assert [(row["kills"], row["identical"]) for row in written["table"]] == [(1, 1)] * 4
    for record in written["records"]:
        assert record["exit_status"] == {"SIGKILL": -9, "SIGTERM": 75}[record["signal"]]
        assert record["differing"] == [] and record["seconds_after_start"] > 0
        assert record["then_said"][0].startswith(("expect about", "all 3 runs are finished"))
    (asked,) = (record for record in written["records"] if record["signal"] == "SIGTERM")
    assert asked["half_written"] == [] and asked["seconds_to_end"] < 60


def test_what_differs_is_named():
    assert differing({"a": b"1", "b": b"2", "c": "3"}, {"a": b"1", "b": b"0", "d": "3"}) == ["b", "c", "d"]


def test_a_kill_that_changed_the_results_or_went_unheard_does_not_pass():
    program = runpy.run_path(str(BENCHMARKS / "interrupt.py"), run_name="imported")
    passed, good = program["passed"], {"signal": "SIGKILL", "exit_status": -9, "differing": []}
    assert passed(good)
    assert not passed({**good, "differing": ["figure.png"]})
    assert not passed({**good, "exit_status": 2})
    asked = {**good, "signal": "SIGTERM", "exit_status": 75}
    assert passed(asked)
    assert not passed({**asked, "exit_status": -signal.SIGTERM})


def test_every_kind_of_instant_has_its_share():
    program = runpy.run_path(str(BENCHMARKS / "interrupt.py"), run_name="imported")
    counts = {"epoch printed": 6, "checkpoint begun": 6}
    planned = program["plan"](50, 10, 0, counts)
    kinds = [kill.kind for kill in planned if kill.signum == signal.SIGKILL]
    assert {kinds.count(kind) for kind in program["KINDS"]} == {5} and len(planned) == 60
    assert {kill.nth for kill in planned if kill.kind == "in the steps of an epoch"} == {1, 2, 3}
    assert planned == program["plan"](50, 10, 0, counts) != program["plan"](50, 10, 1, counts)
