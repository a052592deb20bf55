"""benchmarks/startup.py: what it counts is what a start does."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "startup.py"


def test_the_second_start_reads_what_the_first_compiled_and_another_seed_compiles_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    monkeypatch.setenv("XLA_FLAGS", "")  # one device
    out = tmp_path / "out.json"
    command = [sys.executable, str(PROGRAM), str(out), "--width", "4", "--stage-sizes", "1", "--rounds", "1"]
    subprocess.run(command, check=True, capture_output=True)
    (case,) = json.loads(out.read_text())["cases"]
    first, second = case["empty cache"], case["second start"]
    assert first["from_disk"] == 0 < first["compiled"] and second["from_disk"] >= first["compiled"] - 2
    assert second["compiled"] < first["compiled"] and second["compile_seconds"] < first["compile_seconds"]
    assert first["compiled_again"] == second["compiled_again"] == 0
    for start in (first, second):
        assert min(start["import_seconds"], start["first_step_seconds"]) > 0 and start["peak_memory_bytes"] > 2**27
