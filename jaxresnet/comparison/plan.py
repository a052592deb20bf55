"""What a comparison is to train: arms x seeds as runs of a store, checked before anything is written."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax

from jaxresnet.config import TrainConfig, arm_dict, differing_fields, to_dict, with_new_fields
from jaxresnet.data.dataset import Dataset, as_dataset, check_data, fingerprint
from jaxresnet.distributed import check_same, from_main, several
from jaxresnet.errors import ConfigError, ResultsError, short
from jaxresnet.files import is_name, local_path
from jaxresnet.hardware import num_cores, resolved, some_devices
from jaxresnet.results.schemas import comparison_path, read_comparison
from jaxresnet.results.store import RUNS, is_finished, read_run, run_id
from jaxresnet.training.engine import check_devices, check_moves

Spread = Literal["data", "runs"]
_ELSEWHERE = "choose another name (--name) or output folder (--out)"


class PlannedRun(NamedTuple):
    """config: with the seed, and the precision that "auto" stands for. id: its folder in the store. done: finished
    before this comparison begins."""

    arm: str
    seed: int
    config: TrainConfig
    id: str
    done: bool


class Plan(NamedTuple):
    """A comparison that can be run: `run_plan` trains what is missing.

    folder: of the comparison. store: of the runs. arms: with the precision that "auto" stands for. dataset: the
    fingerprint of `data`. runs: each seed runs every arm before the next seed starts, so that an unfinished comparison
    holds pairs. teams: the devices of each run; as many train at a time as there are teams.
    """

    folder: Path
    store: Path
    protocol: str
    arms: dict[str, TrainConfig]
    seeds: tuple[int, ...]
    published: dict[str, dict[str, Any]]
    data: Dataset
    dataset: dict[str, Any]
    runs: tuple[PlannedRun, ...]
    teams: tuple[tuple[jax.Device, ...], ...]

    def to_json(self) -> dict[str, Any]:
        """The contents of comparison.json, but for the environment."""
        return {
            "name": self.folder.name,
            "protocol": self.protocol,
            "dataset": self.dataset,
            "seeds": list(self.seeds),
            "arms": {arm: arm_dict(config) for arm, config in self.arms.items()},
            "published": self.published,
            "runs": {arm: {str(run.seed): run.id for run in self.runs if run.arm == arm} for arm in self.arms},
        }


def prepare(
    arms: Mapping[str, TrainConfig],
    seeds: Sequence[int],
    data: Dataset,
    out: str | Path,
    *,
    name: str = "comparison",
    protocol: str = "intended",
    published: Mapping[str, Mapping[str, Any]] | None = None,
    devices: Sequence[jax.Device] | None = None,
    spread: Spread | None = None,
) -> Plan:
    """The plan of a comparison; for the arguments see `compare`. Nothing is written, and no image is copied.

    Raises all that can be refused before a run: ConfigError and DataError for arms, seeds, data and devices that
    cannot work together; ResultsError where `out`/`name` holds another comparison, or a file of a run is damaged.
    """
    check_arms(arms, seeds)
    data = as_dataset(data)
    if not is_name(name) or "/" in name or name.strip()[:1] in ("", ".", "_") or name == RUNS or len(name) > 100:
        raise ConfigError(
            f"name={short(name)}: names the folder of the comparison; choose letters and digits, and not "
            f"{RUNS!r}, where the runs are"
        )
    check_same("a comparison", {"name": name, "protocol": protocol, "arms": list(arms), "seeds": list(seeds)})
    teams = _teams(devices, spread, len(arms) * len(seeds))
    out = local_path(out)
    if out.is_file():
        raise ResultsError(f"{out}: is a file; give a folder for the results (--out)")
    if comparison_path(out).exists():
        raise ResultsError(
            f"{out}: is the folder of one comparison; give the one around it as the output folder (--out)"
        )
    begun = from_main(lambda: read_begun(out / name))
    arms = _with_precision(arms, begun["arms"] if begun else {}, teams[0][0])
    for config in arms.values():
        images = check_data(config, data)
        check_devices(config, images, len(teams[0]))
        check_moves(config, images)
    dataset = fingerprint(data)
    configs = [(arm, replace(config, seed=seed)) for seed in seeds for arm, config in arms.items()]
    ids: dict[str, str] = {}
    for arm, config in configs:
        if (twin := ids.setdefault(run_id(config, dataset), arm)) != arm:
            raise ConfigError(f"arms {twin!r} and {arm!r} have the same config: leave one of them out")
    runs = [PlannedRun(arm, config.seed, config, id, False) for id, (arm, config) in zip(ids, configs, strict=True)]
    given = {arm: dict(figures) for arm, figures in (published or {}).items()}
    plan = Plan(out / name, out / RUNS, protocol, arms, tuple(seeds), given, data, dataset, tuple(runs), teams)
    check_begun(begun, plan)
    done = from_main(lambda: [_is_done(plan, run) for run in runs])
    return plan._replace(runs=tuple(run._replace(done=is_done) for run, is_done in zip(runs, done, strict=True)))


def _is_done(plan: Plan, run: PlannedRun) -> bool:
    folder = plan.store / run.id
    read_run(folder, run.arm, run.seed, to_dict(run.config), plan.dataset)  # raises what is wrong with its files
    return is_finished(folder)


def _teams(given: Sequence[jax.Device] | None, spread: str | None, num_runs: int) -> tuple[tuple[jax.Device, ...], ...]:
    """A CPU that is one device takes as many programs at a time as it has cores."""
    devices = some_devices(given)
    a_cpu = len(devices) == 1 and devices[0].platform == "cpu"
    if spread is None:
        spread = "runs" if a_cpu and given is None and num_runs > 1 and not several() else "data"
    if spread not in ("data", "runs"):
        raise ConfigError(f"spread={spread!r}: must be 'data' or 'runs'")
    if spread == "runs" and several():
        raise ConfigError(
            "a run a device (--devices runs) needs one process that has all devices: start one process; on several "
            "machines give each its own seeds and comparison, and the same output folder"
        )
    if spread == "data":
        return (devices,)
    return (devices,) * min(num_cores(), num_runs) if a_cpu else tuple((device,) for device in devices)


def check_arms(arms: Mapping[str, TrainConfig], seeds: Sequence[int]) -> None:
    """Raise ConfigError for arms and seeds that `prepare` refuses whatever the data: before they are downloaded."""
    if not isinstance(arms, Mapping) or not arms:
        raise ConfigError("arms: is empty or no dictionary; give {name: config}, with one arm at least")
    if not isinstance(seeds, Sequence) or isinstance(seeds, str):
        raise ConfigError(f"seeds={short(seeds)}: give several whole numbers, as [0, 1, 2]")
    if not seeds or len(set(seeds)) != len(seeds):
        raise ConfigError(f"seeds={list(seeds)}: at least one is needed, and none twice")
    for arm, config in arms.items():
        if not is_name(arm) or not arm.strip():
            raise ConfigError(f"arm name {short(arm)}: must be a text that can be printed, and not too long")
        for seed in seeds:
            replace(config, seed=seed)  # refuses a seed out of range


def _with_precision(
    arms: Mapping[str, TrainConfig], begun: Mapping[str, Any], device: jax.Device
) -> dict[str, TrainConfig]:
    """`arms` with the precision that "auto" stands for: the arm's own where the comparison was begun, maybe on another
    device; for a new arm that of all others, where they have one; else that which suits `device`."""
    recorded = {arm: with_new_fields(config)["model"]["precision"] for arm, config in begun.items()}
    common = recorded.popitem()[1] if len(set(recorded.values())) == 1 else "auto"

    def settled(arm: str, config: TrainConfig) -> TrainConfig:
        if config.model.precision == "auto":
            config = replace(config, model=replace(config.model, precision=recorded.get(arm, common)))
        return resolved(config, device)

    return {arm: settled(arm, config) for arm, config in arms.items()}


# ------------------------------------------------------------------------------------- a comparison that was begun


def read_begun(folder: Path) -> dict[str, Any] | None:
    """The comparison.json in `folder`, None where nothing is yet. Raises ResultsError for a folder of other things."""
    if comparison_path(folder).exists():
        return read_comparison(folder)
    if folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ResultsError(f"{folder}: holds other files and no comparison.json; {_ELSEWHERE}")
    return None


def check_begun(begun: Mapping[str, Any] | None, plan: Plan) -> None:
    """Raise ResultsError unless `plan` continues the comparison that was begun in its folder: it may add arms and
    seeds, and changes and drops none."""
    if begun is None:
        return
    mine = plan.to_json()
    both = [arm for arm in begun["arms"] if arm in mine["arms"]]
    changed = [
        line for key in ("protocol", "dataset") for line in differing_fields({key: begun[key]}, {key: mine[key]})
    ]
    of_arms = {arm: differing_fields(with_new_fields(begun["arms"][arm]), mine["arms"][arm]) for arm in both}
    common = set.intersection(*map(set, of_arms.values())) if len(both) > 1 else set()
    changed += [f"in every arm {line}" for line in sorted(common)]  # said once
    changed += [f"arms.{arm}.{line}" for arm, lines in of_arms.items() for line in lines if line not in common]
    if changed:
        field, value = re.findall(r"(\w+): .* -> (.*)$", changed[0])[0]
        own = re.sub(r"[^\w.]+", "-", f"{plan.folder.name}-{field}-{value}").strip("-")[:60]
        raise ResultsError(
            f"{plan.folder}: holds another comparison ({'; '.join(changed)}). Give this one a name of its own (--name "
            f"{own}), use the old settings, or choose another output folder (--out)"
        )
    dropped = [f"arm {arm!r}" for arm in begun["arms"] if arm not in plan.arms]
    dropped += [f"seed {seed}" for seed in begun["seeds"] if seed not in plan.seeds]
    if dropped:
        raise ResultsError(
            f"{plan.folder}: also holds {', '.join(dropped)}; name all of them, as a comparison only grows, or "
            f"{_ELSEWHERE}"
        )
