"""Folders as a comparison leaves them behind, without training: learning curves drawn from a formula."""

import json
import math
import random
from pathlib import Path

from jaxresnet.comparison.model_costs import published_models
from jaxresnet.config import to_dict
from jaxresnet.files import write_json, write_rows
from jaxresnet.recipes import intended, published
from jaxresnet.results.store import config_path, rows_path, scores_path

LOOKAHEAD, ADAM = "Adam + Lookahead", "Adam"
PUBLISHED = {ADAM: {"best": 90.78, "source": "its notebook"}, LOOKAHEAD: {"best": 90.97, "source": "its notebook"}}


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
    """Write what a comparison leaves behind: learning curves of a plausible shape, a point apart from arm to arm."""
    config = {
        "name": "adam_lookahead",
        "protocol": "published" if selection == "test" else "intended",
        "dataset": {"name": "synthetic" if synthetic else "cifar10", "synthetic": synthetic, "num_test": 10000},
        "seeds": list(seeds),
        "arms": {arm: {"batch_size": 512} for arm in arms},
        "environment": {"jax": "0.10.2", "device": "cpu", "commit": None, "command": "python experiments/x.py"},
        **config,
    }
    write_json(config_path(folder), config)
    for index, arm in enumerate(arms):
        for seed in seeds:
            if (arm, seed) in not_begun:
                continue
            noise = random.Random(100 * index + seed)
            rows = []
            for epoch in range(num_epochs):
                learnt = 1 - math.exp(-(epoch + 1) / 4)
                accuracy = 45 + 40 * learnt - index + noise.gauss(0, 0.1)
                evaluated = {"loss": 1.6 - learnt + noise.gauss(0, 0.02), "accuracy": accuracy}
                rows.append(
                    {
                        "epoch": epoch,
                        "learning_rate": 0.01,
                        "train_loss": 1.7 - 1.2 * learnt,
                        "train_accuracy": 40 + 45 * learnt,
                        **{f"val_{k}": v if selection == "val" else None for k, v in evaluated.items()},
                        **{f"test_{k}": v if selection == "test" else None for k, v in evaluated.items()},
                    }
                )
            if (arm, seed) in unfinished:
                write_rows(rows_path(folder, arm, seed), rows[: num_epochs // 2])
                continue
            write_rows(rows_path(folder, arm, seed), rows)
            best = max(rows, key=lambda row: row[f"{selection}_accuracy"])
            scores = {
                "arm": arm,
                "seed": seed,
                "selection": selection,
                "weights": "slow" if arm == LOOKAHEAD else "fast",
                "best_epoch": best["epoch"],
                "test_accuracy": best[f"{selection}_accuracy"],
                "last_epoch": num_epochs - 1,
            }
            write_json(scores_path(folder, arm, seed), scores)
    return folder


def fake_measurement(folder, **other):
    """Write a measurement.json of three of the published configurations, the last of which does not run."""
    seconds = {"configuration 1": [0.2, 0.1, 0.3], "configuration 5": [0.1, 0.15, 0.05], "configuration 8": None}
    models = {
        name: {
            "model": to_dict(published_models[name]),
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
        **other,
    }
    write_json(Path(folder) / "measurement.json", measurement)
    return Path(folder)


def change_rows(folder, arm, seed, change):
    """Rewrite a run's rows: change(row) alters one in place."""
    path = rows_path(folder, arm, seed)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    write_rows(path, rows)


CIFAR10 = {"name": "cifar10", "synthetic": False, "num_train": 50000, "num_test": 10000, "crc32": 2599910517}


def fake_reproduction(
    folder, arms, protocol="published", dataset=CIFAR10, with_config=True, change=lambda config: config
):
    """A comparison of published runs: arms is {name of the published run: {seed: (score, last)}}, in percent.

    change(config) alters what was trained. with_config: each run says its config, as they do since version 0.1.
    """
    folder = Path(folder)
    as_protocol = intended if protocol == "intended" else lambda config: config
    configs = {name: change(as_protocol(published[name].config)) for name in arms}
    write_json(
        config_path(folder),
        {
            "name": folder.name,
            "protocol": protocol,
            "dataset": dataset,
            "seeds": sorted({seed for runs in arms.values() for seed in runs}),
            "arms": {arm: {k: v for k, v in to_dict(c).items() if k != "seed"} for arm, c in configs.items()},
            "environment": {"jax": "0.10.2", "device": "cpu", "commit": "abc", "command": "python experiments/x.py"},
        },
    )
    for arm, runs in arms.items():
        for seed, (score, last) in runs.items():
            row = {"epoch": 0, "train_loss": 1.0, "train_accuracy": 60.0, "test_loss": 1.0, "test_accuracy": last}
            write_rows(rows_path(folder, arm, seed), [row])
            selection = configs[arm].selection
            scores = {"arm": arm, "seed": seed, "selection": selection, "best_epoch": 0, "test_accuracy": score}
            if with_config:
                scores["config"] = {**to_dict(configs[arm]), "seed": seed}
                scores["environment"] = {"device": "one GPU"}
            write_json(scores_path(folder, arm, seed), scores)
    return folder
