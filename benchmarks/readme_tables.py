"""Write the tables of README.md and of the pages in docs from the files under results/, so that none is typed by hand.

    python benchmarks/readme_tables.py

A table is what follows its marker, the line `<!-- table: NAME -->`. A test holds the pages against this.
"""

import json
import re
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import jaxresnet as jr
from jaxresnet.results.store import read_results

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
FIRST_EPOCHS = "adam_lookahead-published-3-epochs-cpu"
BENCHMARK = "train_step-cpu.json"
PRECISIONS = "precision-published-5-epochs-cpu"

# Published accuracy (%) after epochs 1, 2 and 3, read off the published logs (source: jaxresnet.recipes.SOURCE).
FIRST_PUBLISHED = {
    "adam_512": {"test": (39.67, 51.39, 58.19), "train": (34.69, 52.28, 62.02)},
    "adam_512_without_lookahead": {"test": (39.92, 51.38, 58.84), "train": (30.58, 46.05, 55.65)},
}


def results_table() -> str:
    """Published figures beside ours, a column an arm."""
    runs = {arm: next(iter(seeds.values())) for arm, seeds in read_results(RESULTS / FIRST_EPOCHS).runs.items()}
    published = dict(zip(runs, FIRST_PUBLISHED, strict=True))

    def line(what: str, cells: Iterable[Iterable[float]]) -> str:
        return f"| {what} | " + " | ".join(" / ".join(f"{value:.2f}" for value in cell) for cell in cells) + " |"

    lines = ["| | " + " | ".join(runs) + " |", "|---" * (len(runs) + 1) + "|"]
    best = ([jr.published[name].best] for name in published.values())
    lines.append(line("published, test, best of 51 epochs", best))
    for split, name in {"test": "test", "train": "training"}.items():
        theirs = (FIRST_PUBLISHED[published[arm]][split] for arm in runs)
        ours = ([row[f"{split}_accuracy"] for row in run.rows] for run in runs.values())
        lines.append(line(f"published, {name}, epochs 1 / 2 / 3", theirs))
        lines.append(line(f"**ours**, {name}, epochs 1 / 2 / 3", ours))
    return "\n".join(lines)


def benchmark_table() -> str:
    """What `benchmarks/train_step.py` measured."""
    cases = json.loads((RESULTS / BENCHMARK).read_text())["cases"]
    lines = [
        "| batch | precision | images/s | an epoch | against a plain Flax + Optax step | compile | peak memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        lines.append(
            f"| {case['batch_size']} | {case['precision']} | {case['images_per_second']:.0f} "
            f"| {case['seconds_per_epoch'] / 60:.0f} min | {case['speed_against_plain']:.2f} x "
            f"| {case['compile_seconds']:.0f} s | {case['peak_memory_bytes'] / 2**30:.1f} GiB |"
        )
    return "\n".join(lines)


def parity_table() -> str:
    """What the parity tests noted: `pytest tests/*/test_parity_*.py --parity-report results/parity.json`."""
    quantities: dict[str, dict[str, dict]] = {}
    for row in json.loads((RESULTS / "parity.json").read_text())["quantities"]:
        quantities.setdefault(row["quantity"], {})[row["against"]] = row
    lines = [
        "| quantity | arrays compared | largest error | against the goldens | tolerance |",
        "|---|---|---|---|---|",
    ]
    for quantity, against in quantities.items():
        live = against.get("live") or against["NumPy"]
        error = f"{live['error']:.1e}" + (" (NumPy)" if "NumPy" in against else "")
        golden = f"{against['golden']['error']:.1e}" if "golden" in against else ""
        lines.append(f"| {quantity} | {live['comparisons']} | {error} | {golden} | {live['tolerance']:.0e} |")
    return "\n".join(lines)


PARITY_TRAININGS = {
    "adam_128, float64": "parity-training-adam_128-float64.json",
    "adam_128, float64, width 8": "parity-training-adam_128-float64-width-8.json",
    "adam_128, float32": "parity-training-adam_128-float32.json",
    "sgd_128, float32": "parity-training-sgd_128-float32.json",
}
PARITY_STEPS = ("1", "5", "10", "20", "50", "100", "200")


def parity_training_table() -> str:
    """What `benchmarks/parity_training.py` measured: the largest difference of the loss so far."""
    lines = [
        f"| run | against PyTorch | {' | '.join(f'step {n}' for n in PARITY_STEPS)} | the end | first beyond 1e-3 |",
        "|---" * (len(PARITY_STEPS) + 4) + "|",
    ]
    for name, file in PARITY_TRAININGS.items():
        measured = json.loads((RESULTS / file).read_text())
        for side, found in measured["against_pytorch"].items():
            until = found["largest_relative_loss_difference_until_step"]
            cells = [f"{until[n]:.0e}" if n in until else "" for n in PARITY_STEPS]
            last = max(until, key=int)
            cells.append(f"{until[last]:.0e} ({last})")
            first = found["first_step_beyond_1e-3"]
            cells.append("none" if first is None else f"step {first}")
            lines.append(f"| {name} | {side} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def parity_gradient_table() -> str:
    """What `benchmarks/parity_gradients.py` found of float32 gradients, against PyTorch's in float64."""
    errors = json.loads((RESULTS / "parity-gradients.json").read_text())["errors"]
    lines = ["| float32 gradients of | smallest error | median | largest | batches |", "|---|---|---|---|---|"]
    for side, found in errors.items():
        numbers = f"{min(found):.0e} | {statistics.median(found):.0e} | {max(found):.0e}"
        lines.append(f"| {side} | {numbers} | {len(found)} |")
    return "\n".join(lines)


def interrupt_table() -> str:
    """What `benchmarks/interrupt.py` did to a training process, and whether it ended in the same bytes."""
    rows = json.loads((RESULTS / "interrupt.json").read_text())["table"]
    lines = ["| signal | instant | times | left half-written | finished with identical bytes |", "|---" * 5 + "|"]
    for row in rows:
        lines.append(
            f"| {row['signal']} | {row['instant']} | {row['kills']} | {row['half_written']} "
            f"| {row['identical']} of {row['kills']} |"
        )
    for signal in dict.fromkeys(row["signal"] for row in rows):
        of = [row for row in rows if row["signal"] == signal]
        kills, half, same = (sum(row[key] for row in of) for key in ("kills", "half_written", "identical"))
        lines.append(f"| {signal} | all | {kills} | {half} | **{same} of {kills}** |")
    return "\n".join(lines)


def cpu_pytorch_table() -> str:
    """What `benchmarks/compare_pytorch.py` found on a CPU, against the best rival in each precision."""
    lines = [
        "| batch | ours in | images/s | best PyTorch | images/s | ours against it | range | memory, both | commit |",
        "|---" * 9 + "|",
    ]
    for precision, file in {"float32": "compare_pytorch-cpu", "bfloat16": "compare_pytorch-cpu-bfloat16"}.items():
        found = json.loads((RESULTS / f"{file}.json").read_text())
        for case in (case for case in found["cases"] if case["precision"] == precision):
            ours = case["contenders"]["jaxresnet"]
            for _, name in sorted(case["best_rival"].items(), reverse=True):
                theirs, against = case["contenders"][name], case["against"][name]
                memory = " / ".join(f"{one['peak_memory_bytes'] / 2**30:.1f} GiB" for one in (ours, theirs))
                low, high = against["range"]
                lines.append(
                    f"| {case['batch_size']} | {precision} | {ours['images_per_second']:.0f} | {name} "
                    f"| {theirs['images_per_second']:.0f} | {against['speed']:.2f} x | {low:.2f} to {high:.2f} "
                    f"| {memory} | {found['environment']['commit'][:7]} |"
                )
    return "\n".join(lines)


def precision_table() -> str:
    """How far apart the curves of training in float32 and bfloat16 lie, and those of two seeds."""
    runs = read_results(RESULTS / PRECISIONS).runs
    curves = {(arm, seed): _curves(run.rows) for arm, of_arm in runs.items() for seed, run in of_arm.items()}
    pairs = list(combinations(curves, 2))
    lines = ["| between | test accuracy, points: largest, rms | training loss, nats: largest, rms |", "|---|---|---|"]
    for name, same in (("both precisions, the same seed", 1), ("two seeds, the same precision", 0)):
        apart = np.stack([curves[a] - curves[b] for a, b in pairs if a[same] == b[same]])
        largest, rms = np.abs(apart).max((0, 2)), np.sqrt(np.square(apart).mean((0, 2)))
        lines.append(f"| {name} | {largest[0]:.2f}, {rms[0]:.2f} | {largest[1]:.3f}, {rms[1]:.3f} |")
    return "\n".join(lines)


def _curves(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(2, epochs): test accuracy in percent, training loss in nats."""
    return np.array([[row[name] for row in rows] for name in ("test_accuracy", "train_loss")])


def startup_table() -> str:
    """What `benchmarks/startup.py` measured."""
    lines = [
        "| | importing | until the first step | compiling | programs compiled | read from disk | for another seed "
        "| peak memory |",
        "|---" * 8 + "|",
    ]
    (case,) = json.loads((RESULTS / "startup-cpu.json").read_text())["cases"]
    for name, what in (("nothing on disk", "empty cache"), ("the next start", "second start")):
        row = case[what]
        lines.append(
            f"| {name} | {row['import_seconds']:.1f} s | {row['first_step_seconds']:.1f} s "
            f"| {row['compile_seconds']:.1f} s | {row['compiled']:.0f} | {row['from_disk']:.0f} "
            f"| {row['compiled_again']:.0f} | {row['peak_memory_bytes'] / 2**30:.1f} GiB |"
        )
    return "\n".join(lines)


TABLES: dict[str, Callable[[], str]] = {
    "results": results_table,
    "train_step": benchmark_table,
    "compare_pytorch": cpu_pytorch_table,
    "startup": startup_table,
    "precision": precision_table,
    "parity": parity_table,
    "parity_training": parity_training_table,
    "parity_gradients": parity_gradient_table,
    "interrupt": interrupt_table,
}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def filled(text: str) -> str:
    """`text` of a page, the lines of a table after each marker replaced by what its function makes."""
    marker = r"(<!-- table: ([\w-]+) -->\n)(?:\n?(?:\|.*\n)+)?"
    return re.sub(marker, lambda found: f"{found[1]}\n{TABLES[found[2]]()}\n", text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(filled(page.read_text()))
