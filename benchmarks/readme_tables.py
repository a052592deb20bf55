"""Print the tables of README.md and the pages in docs from the files under results/, so that none is typed by hand.

    python benchmarks/readme_tables.py

A test holds the README against this.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

import jaxresnet as jr
from jaxresnet.results.store import read_results

RESULTS = Path(__file__).resolve().parents[1] / "results"
FIRST_EPOCHS = "adam_lookahead-published-3-epochs-cpu"
BENCHMARK = "train_step-cpu.json"
PRECISIONS = ("precision-published-5-epochs-cpu", "precision-published-15000-images-5-epochs-cpu")

# Published test accuracy (%) after epochs 1, 2 and 3, read off the published logs (source: jr.SOURCE).
ARMS = {
    "Adam + Lookahead": ("adam_512", (39.67, 51.39, 58.19)),
    "Adam": ("adam_512_without_lookahead", (39.92, 51.38, 58.84)),
}

# The same of the runs in the other comparisons, after epochs 1 and 2 of 50,000 images.
FIRST_PUBLISHED = {
    "learning_rate": {
        "lr 1e-1": (28.14, 44.47),
        "lr 1e-2": (45.49, 58.58),
        "lr 1e-3": (57.29, 66.28),
        "lr 1e-6": (16.62, 22.13),
    },
    "schedulers-512": {"cosine": (39.92, 51.38), "OneCycle": (51.27, 62.97)},
    "schedulers-128": {"OneCycle": (61.74, 68.65)},
}


def results_table() -> str:
    """Published figures beside ours, an empty cell where nothing has been measured."""
    runs = read_results(RESULTS / FIRST_EPOCHS).runs
    lines = [
        "| | published, best of 51 epochs | published, epochs 1 / 2 / 3 | ours as published, epochs 1 / 2 / 3 | "
        "ours as published, 51 epochs | ours as intended, 51 epochs |",
        "|---|---|---|---|---|---|",
    ]
    for arm, (name, first) in ARMS.items():
        (run,) = runs[arm].values()
        ours = " / ".join(f"{row['test_accuracy']:.2f}" for row in run.rows[:3])
        theirs = " / ".join(f"{value:.2f}" for value in first)
        lines.append(f"| {arm} | {jr.published[name].best:.2f} | {theirs} | {ours} | | |")
    return "\n".join(lines)


def subset_table(comparison: str) -> str:
    """Two epochs on 10,000 images, beside the published first two on 50,000."""
    folder = f"{comparison}-{{}}10000-images-2-epochs-cpu"
    protocols = {"published": "as published", "": "as intended"}
    found = {key: RESULTS / folder.format(key + "-" * bool(key)) for key in protocols}
    runs = {protocols[key]: read_results(path).runs for key, path in found.items() if path.is_dir()}
    ours = []
    for name, arms in runs.items():
        (num_train,) = {run.scores["num_train"] for arm in arms.values() for run in arm.values() if run.scores}
        ours.append(f"ours {name}, epochs 1 / 2 of {num_train:,} images")
    header = ["", "published, epochs 1 / 2 of 50,000 images", *ours]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for arm in next(iter(runs.values())):
        cells = [" / ".join(f"{value:.2f}" for value in FIRST_PUBLISHED[comparison].get(arm, ()))]
        for arms in runs.values():
            (run,) = arms[arm].values()
            cells.append(" / ".join(f"{row['test_accuracy']:.2f}" for row in run.rows))
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def models_table() -> str:
    """What `experiments/model_parameters.py` counted and measured."""
    models = json.loads((RESULTS / "model_parameters" / "measurement.json").read_text())["models"]
    lines = [
        "| | blocks | width | shortcut | pool | parameters | multiply-adds | as published | here | step |",
        "|---" * 10 + "|",
    ]
    for name, one in models.items():
        model, seconds = one["model"], one["median_step_seconds"]
        kernel, pool = model["shortcut_kernel"], model["pool_size"]
        blocks = ",".join(map(str, model["stage_sizes"]))
        as_published = "fails" if one["problem_as_published"] else "runs"
        here = "refused" if one["problem_here"] else "runs"
        lines.append(
            f"| {name} | {blocks} | {model['width']} | {kernel}x{kernel} | {pool}x{pool} | {one['params']:,} "
            f"| {one['macs']:,} | {as_published} | {here} | {f'{seconds:.2f} s' if seconds else ''} |"
        )
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
    """What the parity tests noted: `pytest tests/test_parity_*.py --parity-report results/parity.json`."""
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


def fuzz_table() -> str:
    """What `benchmarks/fuzz_readers.py` gave to each reader, and what became of it."""
    readers = json.loads((RESULTS / "fuzz.json").read_text())["readers"]
    lines = ["| reader | inputs | accepted | refused | failures |", "|---|---|---|---|---|"]
    for name, count in readers.items():
        numbers = (count["inputs"], count["accepted"], count["refused"], len(count["failures"]))
        lines.append(f"| {name} | " + " | ".join(f"{n:,}" for n in numbers) + " |")
    return "\n".join(lines)


def fuzz_found() -> str:
    """What fuzzing found before it was mended, a line each."""
    return "\n".join(f"- {what}" for what in json.loads((RESULTS / "fuzz.json").read_text())["found_and_mended"])


def gpu_program_table() -> str:
    """What a step starts and moves on a GPU, as compiled, and without what was done for GPUs."""
    cases = json.loads((RESULTS / "gpu_program.json").read_text())["cases"]
    names = {"vectors": "the vectors", "batch_norm": "batch norm's gradient"}
    lines = [
        "| | batch | | started a step | of these for less than 1 MB | moved | floor | temporary memory |",
        "|---" * 8 + "|",
    ]
    for case in cases:
        left_out = " and ".join(names[name] for name in case["without"])
        lines.append(
            f"| {case['precision']} | {case['batch_size']} | {'without ' + left_out if left_out else 'as it is'} "
            f"| {case['started_a_step']} | {case['moving_less_than_a_megabyte']} | {case['bytes_a_step'] / 1e9:.2f} GB "
            f"| {1e3 * case['floor_seconds_a_step']:.2f} ms | {case['temporary_bytes'] / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def compiling_table() -> str:
    """What `benchmarks/compiling.py` found for the eleven published runs."""
    files = ("compiling-cpu.json", "compiling-cpu-bfloat16.json")
    found, in_bfloat16 = (json.loads((RESULTS / file).read_text())["passes"] for file in files)
    says = {
        "first": "eleven runs, nothing on disk",
        "other seed": "the same with another seed, in the same process",
        "second start": "the eleven in another process, with what the first left on disk",
    }
    lines = [
        "| | engines | programs of steps and evaluation | of these and small ones, read from disk | seconds in float32 "
        "| in bfloat16 |"
    ]
    lines.append("|---" * 6 + "|")
    for name, says_what in says.items():
        total, other = found[name]["total"], in_bfloat16[name]["total"]
        counts = [total[key] for key in ("engines", "programs", "from_disk")]
        assert counts == [other[key] for key in ("engines", "programs", "from_disk")]
        seconds = [f"{one['seconds']:.0f}" for one in (total, other)]
        lines.append(f"| {' | '.join(map(str, (says_what, *counts, *seconds)))} |")
    return "\n".join(lines)


def sweep_table() -> str:
    """What `benchmarks/sweep.py` found for a run on each of several virtual devices."""
    lines = [
        "| devices | seconds | runs a minute | times as fast as one | efficiency | CPU seconds | programs compiled |",
        "|---" * 7 + "|",
    ]
    for row in json.loads((RESULTS / "sweep-cpu.json").read_text())["devices"]:
        lines.append(
            f"| {row['devices']} | {row['median_seconds']:.1f} | {row['runs_per_minute']:.0f} "
            f"| {row['times_as_fast_as_one']:.2f} | {row['efficiency']:.2f} | {row['cpu_seconds']:.1f} "
            f"| {row['programs']} |"
        )
    return "\n".join(lines)


def cpu_profile_table(file: str = "profile_step-cpu.json") -> str:
    """What `benchmarks/profile_step.py` found of a step on a CPU, by kind of operation."""
    found = json.loads((RESULTS / file).read_text())
    lines = ["| | ms a step | share | floor, ms | floor / seen |", "|---" * 5 + "|"]
    for row in found["kinds"]:
        if row["share"] < 0.001:
            continue
        seconds, floor = row["seconds"], row["floor_seconds"]
        of_floor = f"{floor / seconds:.0%}" if floor else ""
        lines.append(f"| {row['kind']} | {1e3 * seconds:.0f} | {row['share']:.1%} | {1e3 * floor:.0f} | {of_floor} |")
    lines.append(f"| all | {1e3 * found['step_seconds']:.0f} | | {1e3 * found['floor_seconds_operations']:.0f} | |")
    return "\n".join(lines)


def cpu_options_table() -> str:
    """What `benchmarks/xla_options.py` found on a CPU."""
    lines = ["| precision | options | times as fast as none | range | temporary memory |", "|---" * 5 + "|"]
    for file in ("xla_options-cpu.json", "xla_options-cpu-bfloat16.json"):
        found = json.loads((RESULTS / file).read_text())
        precision = found["precision"]
        lines.append(f"| {precision} | none | 1 | | {found['none']['temporary_bytes'] / 2**20:.0f} MiB |")
        for row in found["candidates"]:
            names = ", ".join(f"`{name}={value}`" for name, value in row["options"].items()) or "none, again"
            low, high = row["times_as_fast_range"]
            cells = (precision, names, f"{row['times_as_fast']:.2f}", f"{low:.2f} to {high:.2f}")
            lines.append(f"| {' | '.join(cells)} | {row['temporary_bytes'] / 2**20:.0f} MiB |")
    return "\n".join(lines)


def cpu_pytorch_table() -> str:
    """What `benchmarks/compare_pytorch.py` found on a CPU."""
    lines = [
        "| batch | ours in | ours, images/s | PyTorch | images/s | ours against it | range | memory, ours and its |",
        "|---" * 8 + "|",
    ]
    files = {"float32": "compare_pytorch-cpu.json", "bfloat16": "compare_pytorch-cpu-bfloat16.json"}
    found = {precision: json.loads((RESULTS / file).read_text())["cases"] for precision, file in files.items()}
    for case in (case for precision, cases in found.items() for case in cases if case["precision"] == precision):
        ours = case["contenders"]["jaxresnet"]
        for name, against in case["against"].items():
            theirs = case["contenders"][name]
            memory = " / ".join(f"{one['peak_memory_bytes'] / 2**30:.1f} GiB" for one in (ours, theirs))
            low, high = against["range"]
            lines.append(
                f"| {case['batch_size']} | {case['precision']} | {ours['images_per_second']:.0f} | {name} "
                f"| {theirs['images_per_second']:.0f} | {against['speed']:.2f} x | {low:.2f} to {high:.2f} | {memory} |"
            )
    return "\n".join(lines)


def cpu_bfloat16_profile_table() -> str:
    return cpu_profile_table("profile_step-cpu-bfloat16.json")


def steps_per_dispatch_table() -> str:
    """What `benchmarks/steps_per_dispatch.py` found."""
    found = json.loads((RESULTS / "steps_per_dispatch-cpu.json").read_text())
    lines = [
        "| batch | steps a dispatch | ms a step | times as fast as one | quartiles | pages a step |",
        "|---" * 6 + "|",
    ]
    for case in found["cases"]:
        for row in case["dispatches"]:
            low, high = row["speed_against_1_quartiles"]
            lines.append(
                f"| {case['batch_size']} | {row['steps_per_dispatch']} | {1e3 * row['step_seconds']:.0f} "
                f"| {row['speed_against_1']:.2f} | {low:.2f} to {high:.2f} | {row['pages_a_step']:,.0f} |"
            )
    return "\n".join(lines)


def conv_passes_table() -> str:
    """What `benchmarks/conv_passes.py` found of the network's convolutions."""
    cases = json.loads((RESULTS / "conv_passes-cpu.json").read_text())["cases"]
    ways = [way for way in cases[0]["library_times_as_fast_as"] if way != "library"]
    lines = [f"| precision | images | stride | ms | GFLOP/s | {' | '.join(ways)} |", "|---" * (len(ways) + 5) + "|"]
    for case in cases:
        shape, against = "x".join(map(str, case["images"])), case["library_times_as_fast_as"]
        lines.append(
            f"| {case['precision']} | {shape} | {case['stride']} | {1e3 * case['seconds']['library']:.0f} "
            f"| {case['library_flops'] / 1e9:.0f} | {' | '.join(f'{against[way]:.2f}' for way in ways)} |"
        )
    return "\n".join(lines)


def precision_table(folder: str) -> str:
    """What `benchmarks/precision_training.py` found, by epoch, and seed by seed what bfloat16 changes."""
    runs = read_results(RESULTS / folder).runs
    lines = ["| seed | precision | test accuracy, %, by epoch | training loss, nats, by epoch |", "|---|---|---|---|"]

    def row(seed: int, what: str, curves: np.ndarray, sign: str = "") -> str:
        accuracies, losses = (
            " / ".join(f"{x:{sign}.{places}f}" for x in curve) for curve, places in zip(curves, (2, 3), strict=True)
        )
        return f"| {seed} | {what} | {accuracies} | {losses} |"

    for seed in sorted(runs["float32"]):
        by_arm = {arm: _curves(of_arm[seed].rows) for arm, of_arm in runs.items()}
        lines += [row(seed, arm, curves) for arm, curves in by_arm.items()]
        lines.append(row(seed, "difference", by_arm["bfloat16"] - by_arm["float32"], "+"))
    return "\n".join(lines)


def precision_spread_table(folder: str) -> str:
    """How far apart the curves of both precisions lie, and of two seeds."""
    runs = read_results(RESULTS / folder).runs
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


if __name__ == "__main__":
    print(results_table())
    for comparison in FIRST_PUBLISHED:
        print(f"\n{comparison}\n\n{subset_table(comparison)}")
    print(f"\n{models_table()}\n\n{benchmark_table()}")
    print(f"\n{parity_table()}\n\n{parity_training_table()}\n\n{parity_gradient_table()}")
    print(f"\n{interrupt_table()}\n\n{fuzz_table()}\n\n{fuzz_found()}")
    print(f"\n{compiling_table()}\n\n{gpu_program_table()}\n\n{sweep_table()}")
    print(f"\n{cpu_options_table()}\n\n{conv_passes_table()}\n\n{steps_per_dispatch_table()}")
    print(f"\n{cpu_profile_table()}\n\n{cpu_bfloat16_profile_table()}\n\n{cpu_pytorch_table()}")
    for folder in PRECISIONS:
        print(f"\n{folder}\n\n{precision_table(folder)}\n\n{precision_spread_table(folder)}")
