"""Two processes, as a scheduler starts them: one speaks and writes, they stop together, and train what one would."""

import json
import re
import signal

import numpy as np
from support.cluster import ends, start
from support.tiny import contents

from jaxresnet.results.store import read_results

SCRIPT = """
import jaxresnet as jr
jr.run_experiment(jr.Experiment("", {"one": {"A": jr.published["adam_512"].config}}, demo_images=2560))
"""
NETWORK = ["--stage-sizes", "1", "--pool-size", "32", "--width", "4", "--num-epochs", "3", "--batch-size", "128"]
COMMAND = ["-c", SCRIPT, "--demo", "--seeds", "0", *NETWORK]
EPOCH_LINE = re.compile(r"^A, seed 0: epoch (\d)/3 .* left$", re.MULTILINE)

CALLS = """
import json
from dataclasses import replace
from pathlib import Path
import jax
from support.fake_results import fake_fit
from support.tiny import RUN, make_tiny_data
from jaxresnet.cli.exits import exit_status
from jaxresnet.comparison import compare, executors
from jaxresnet.distributed import check_same, distributed, from_main
from jaxresnet.errors import NonFiniteError, UserError

def fit(config, data, workdir, **kwargs):  # trains nothing; process 1 would write into a folder of its own
    if config.batch_size == 32:
        raise NonFiniteError(f"seed {config.seed}: the loss stopped being finite")
    return fake_fit(config, data, Path("1") if jax.process_index() else workdir, **kwargs)

def attempt(fn, *args):
    try:
        return fn(*args)
    except UserError as e:
        return f"{type(e).__name__}: {e}"

def told_of(arms, seeds):
    made = compare.compare(arms, seeds, make_tiny_data(), "out")
    return [str(made.report.html), made.report.verdict, made.report.complete, [run.name for run in made.runs.values()]]

def refuse():
    raise UserError("known to process 0 alone")

executors.fit = fit
with exit_status(), distributed():
    arms = {"A": RUN, "fails": replace(RUN, batch_size=32)}
    told = [attempt(told_of, *asked) for asked in (({"A": RUN}, (0, 1)), (arms, (0, 1)), ({"A": RUN}, (0,)))]
    told.append(attempt(check_same, "a run", {"seed": jax.process_index()}))
    Path(f"told{jax.process_index()}.json").write_text(json.dumps(told))
    from_main(refuse)
"""


def test_two_processes_stop_together_and_continue_to_the_results_of_one(tmp_path):
    processes, before = start(tmp_path / "two", COMMAND), ""
    for line in processes[0].stdout:
        before += line
        if EPOCH_LINE.match(line):
            processes[1].send_signal(signal.SIGTERM)
            break
    (out, err), (other_out, _) = ends(processes, 75)
    assert ": 2 devices that share batches, in 2 processes | " in before
    assert "The same command continues" in err and "seed 0" not in other_out, "one process speaks"
    done = EPOCH_LINE.findall(before + out)
    assert 0 < len(done) < 3
    (out, _), _ = ends(start(tmp_path / "two", COMMAND), 0)
    assert done + EPOCH_LINE.findall(out) == ["1", "2", "3"]

    ends(start(tmp_path / "one", COMMAND, processes=1, devices_per_process=2), 0)
    two, one = (read_results(tmp_path / n / "out/one-demo").runs["A"][0] for n in ("two", "one"))
    assert (one.scores["environment"]["num_processes"], two.scores["environment"]["num_processes"]) == (1, 2)
    for row, other in zip(one.rows, two.rows, strict=True):
        np.testing.assert_allclose(other["train_loss"], row["train_loss"], rtol=1e-4)


def test_both_processes_are_told_the_same_and_only_one_writes_and_speaks(tmp_path):
    (_, err), (_, other_err) = ends(start(tmp_path, ["-c", CALLS], devices_per_process=2), 2)
    assert "error: known to process 0 alone" in err and "error: " not in other_err
    told, other = (json.loads((tmp_path / f"told{i}.json").read_text()) for i in range(2))
    assert told[:3] == other[:3]
    (html, _, complete, runs), failed, dropped, _ = told
    assert (html, complete, len(runs)) == ("out/comparison/report.html", True, 2)
    assert failed.startswith("RunsFailed: ") and "fails seed 1: the loss stopped being finite" in failed
    assert dropped.startswith("ResultsError: ") and "also holds arm 'fails', seed 1" in dropped
    assert all(each[3].startswith("ConfigError: a run must be the same in all processes") for each in (told, other))
    written = contents(tmp_path / "out")
    assert {f"runs/{run}/scores.json" for run in runs} <= written.keys()
    assert sum(path.endswith("failed.json") for path in written) == 2
