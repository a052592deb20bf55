"""Print the README's tables from the files under results/, so that no figure in it is typed by hand.

    python benchmarks/readme_tables.py

A test holds the README against this.
"""

import json
from pathlib import Path

import jaxresnet as jr
from jaxresnet.results import read_results

RESULTS = Path(__file__).resolve().parents[1] / "results"
FIRST_EPOCHS = "adam_lookahead-published-3-epochs-cpu"
BENCHMARK = "train_step-cpu.json"

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


if __name__ == "__main__":
    print(results_table())
    for comparison in FIRST_PUBLISHED:
        print(f"\n{comparison}\n\n{subset_table(comparison)}")
    print(f"\n{models_table()}\n\n{benchmark_table()}")
