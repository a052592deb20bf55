"""Results as comparisons leave them behind, without training: learning curves drawn from a formula."""

import hashlib
import math
import os
import random
from dataclasses import replace
from pathlib import Path

from jaxresnet.config import to_dict
from jaxresnet.files import write_json, write_rows
from jaxresnet.recipes import intended, published, published_networks
from jaxresnet.results.schemas import comparison_path, evaluation_path, measurement_path
from jaxresnet.results.store import CONFIG, HISTORY, RUNS, SCORES

LOOKAHEAD, ADAM = "Adam + Lookahead", "Adam"
PUBLISHED = {ADAM: {"best": 90.78, "source": "its notebook"}, LOOKAHEAD: {"best": 90.97, "source": "its notebook"}}
CIFAR10 = {"name": "cifar10", "synthetic": False, "num_train": 50000, "num_test": 10000, "crc32": 2599910517}
ENVIRONMENT = {"jax": "0.10.2", "device": "cpu", "commit": None, "command": "python experiments/x.py"}


def run_folder(folder, arm, seed):
    """Where the run of a comparison lies. The id is made of the folder's own path, so that no two tests share a run,
    whatever lies in the store beside their folders."""
    folder = Path(os.path.abspath(folder))
    return folder.parent / RUNS / hashlib.sha256(f"{folder} {arm} {seed}".encode()).hexdigest()[:12]


def write_comparison(folder, config):
    """comparison.json, with the ids of the runs, and the config.json of each."""
    runs = {arm: {str(seed): run_folder(folder, arm, seed).name for seed in config["seeds"]} for arm in config["arms"]}
    write_json(comparison_path(folder), {"environment": ENVIRONMENT, **config, "runs": runs})
    for arm, settings in config["arms"].items():
        for seed in config["seeds"]:
            run = {"config": {**settings, "seed": seed}, "data": config["dataset"]}
            write_json(run_folder(folder, arm, seed) / CONFIG, run)


def learning_curve(index, seed, num_epochs, selection):
    """The rows of a run: of a plausible shape, a point apart from one index of an arm to the next."""
    noise = random.Random(100 * index + seed)
    for epoch in range(num_epochs):
        learnt = 1 - math.exp(-(epoch + 1) / 4)
        yield {
            "epoch": epoch,
            "learning_rate": 0.01,
            "train_loss": 1.7 - 1.2 * learnt,
            "train_accuracy": 40 + 45 * learnt,
            **dict.fromkeys(("val_loss", "val_accuracy", "test_loss", "test_accuracy")),
            f"{selection}_loss": 1.6 - learnt + noise.gauss(0, 0.02),
            f"{selection}_accuracy": 45 + 40 * learnt - index + noise.gauss(0, 0.1),
        }


def fake_comparison(
    folder,
    arms=(LOOKAHEAD, ADAM),
    seeds=(0, 1, 2),
    num_epochs=6,
    selection="val",
    synthetic=False,
    unfinished=(),
    not_begun=(),
    **config,
):
    """Write what a comparison leaves behind."""
    config = {
        "name": "adam_lookahead",
        "protocol": "published" if selection == "test" else "intended",
        "dataset": {"name": "synthetic" if synthetic else "cifar10", "synthetic": synthetic, "num_test": 10000},
        "seeds": list(seeds),
        "arms": {arm: {"batch_size": 512} for arm in arms},
        **config,
    }
    write_comparison(folder, config)
    for index, arm, seed in ((index, arm, seed) for index, arm in enumerate(arms) for seed in seeds):
        rows = list(learning_curve(index, seed, num_epochs, selection))
        best = max(rows, key=lambda row: row[f"{selection}_accuracy"])
        scores = {
            "seed": seed,
            "selection": selection,
            "weights": "slow" if arm == LOOKAHEAD else "fast",
            "best_epoch": best["epoch"],
            "test_accuracy": best[f"{selection}_accuracy"],
            "last_epoch": num_epochs - 1,
        }
        if (arm, seed) in unfinished:
            write_rows(run_folder(folder, arm, seed) / HISTORY, rows[: num_epochs // 2])
        elif (arm, seed) not in not_begun:
            write_rows(run_folder(folder, arm, seed) / HISTORY, rows)
            write_json(run_folder(folder, arm, seed) / SCORES, scores)
    return folder


def fake_measurement(folder):
    """Write a measurement.json of three of the published configurations, the last of which does not run."""
    seconds = {"configuration 1": [0.2, 0.1, 0.3], "configuration 5": [0.1, 0.15, 0.05], "configuration 8": None}
    models = {
        name: {
            "model": to_dict(published_networks[name]),
            "params": 12_550_218 if name == "configuration 1" else 4_903_242,
            "macs": 605_754_368 if name == "configuration 1" else 253_432_832,
            "problem_as_published": None if name == "configuration 5" else "a reason",
            "problem_here": None if times else "pool_size=16: must be 4",
            "median_step_seconds": sorted(times)[1] if times else None,
            "step_seconds": times,
        }
        for name, times in seconds.items()
    }
    timing = {"what": "a step", "batch_size": 16, "precision": "float32", "rounds": 3, "steps_a_round": 2}
    measurement = {
        "name": "model_parameters",
        "demo": True,
        "timing": {**timing, "width": "a quarter"},
        "models": models,
        "environment": {"device": "a CPU", "jax": "0.10.2", "commit": None},
    }
    write_json(measurement_path(folder), measurement)
    return Path(folder)


def fake_reproduction(folder, arms, protocol="published", dataset=CIFAR10, change=None):
    """A comparison of published runs: arms is {name of the published run: {seed: (score, last)}}, in percent.

    change: fields in which what was trained differs.
    """
    as_protocol = intended if protocol == "intended" else lambda config: config
    configs = {name: replace(as_protocol(published[name].config), **(change or {})) for name in arms}
    config = {
        "name": Path(folder).name,
        "protocol": protocol,
        "dataset": dataset,
        "seeds": sorted({seed for runs in arms.values() for seed in runs}),
        "arms": {arm: {k: v for k, v in to_dict(c).items() if k != "seed"} for arm, c in configs.items()},
    }
    write_comparison(folder, config)
    for arm, runs in arms.items():
        for seed, (score, last) in runs.items():
            row = {"epoch": 0, "train_loss": 1.0, "train_accuracy": 60.0, "test_loss": 1.0, "test_accuracy": last}
            write_rows(run_folder(folder, arm, seed) / HISTORY, [row])
            scores = {"seed": seed, "selection": configs[arm].selection, "best_epoch": 0, "test_accuracy": score}
            write_json(run_folder(folder, arm, seed) / SCORES, {**scores, "environment": {"device": "one GPU"}})
    return folder


def fake_evaluation(folder, **other):
    """Write an evaluation.json of three classes, the last without images, and two seeds, which recorded 90 and 94 %."""

    def scored(recorded, *accuracies):
        classes = [{"n": 100, "accuracy": accuracy, "low": 70.0, "high": 96.3} for accuracy in accuracies]
        classes.append({"n": 0, "accuracy": None, "low": None, "high": None})
        return {"test_accuracy": sum(accuracies) / 2, "recorded_test_accuracy": recorded, "classes": classes}

    mistakes = [
        {"image": 3, "true": 0, "predicted": 1, "probability": 0.999},
        {"image": 1, "true": 0, "predicted": 2, "probability": 0.75},
    ]
    evaluation = {
        "title": "final_model: intended protocol, synthetic data, not CIFAR-10",
        "selection": "best epoch on the validation set",
        "class_names": ["cat", "dog", "frog"],
        "num_test": 200,
        "seeds": [0, 4],
        "seeds_without_checkpoint": [7],
        "runs": {"0": scored(90.0, 80.0, 100.0), "4": scored(94.0, 90.0, 100.0)},
        "mean_over_seeds": {**scored(None, 85.0, 100.0), "interval_95": [88.0, 95.5]},
        "confusion_summed_over_seeds": [[170, 29, 1], [0, 200, 0], [0, 0, 0]],
        "mistakes": {"seed": 0, "worst_first": mistakes},
        "environment": ENVIRONMENT,
        **other,
    }
    write_json(evaluation_path(folder), evaluation)
    return Path(folder)


def fake_fit(config, data, workdir, *, on_epoch, num_epochs=2, **_):
    """Stands in for `fit` in `comparison.executors`: the curves and the scores of a run, and a checkpoint of it."""
    from jaxresnet.training.fit import Result

    rows = []
    for epoch in range(num_epochs):
        accuracy = 50.0 + epoch + config.seed + config.optim.learning_rate
        scored = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "accuracy")]
        rows.append({"epoch": epoch, "learning_rate": 0.01, **dict.fromkeys(scored, accuracy / 50)})
        (workdir / "1").mkdir(parents=True, exist_ok=True)
        (workdir / "1" / "weights").write_text(f"of epoch {epoch}")
        on_epoch(list(rows))
    last = {"best_epoch": num_epochs - 1, "last_epoch": num_epochs - 1, "test_accuracy": accuracy}
    return Result(rows, {"seed": config.seed, "selection": config.selection, "weights": "slow", **last}, None, None)
