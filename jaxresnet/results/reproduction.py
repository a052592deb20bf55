"""The published runs beside ours: which finished runs repeat them, and where one more run of ours would fall."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.errors import ConfigError
from jaxresnet.recipes import SOURCE, Published, intended_run, published, published_run
from jaxresnet.results.findings import best_test, last_test
from jaxresnet.results.statistics import CONFIDENCE, prediction_interval
from jaxresnet.results.store import Results, Run

# The whole of CIFAR-10, as every published run had it.
CIFAR10: dict[str, Any] = {"name": "cifar10", "synthetic": False, "num_train": 50_000, "num_test": 10_000}


class Score(NamedTuple):
    """One finished run, in percent of the test set.

    test: at the epoch that its protocol chooses. last: after the last epoch. best_on_test: at the epoch that is best on
    the test set. The last two are None where they were not measured. folder, arm: of its comparison. made: device and
    arithmetic.
    """

    test: float
    last: float | None
    best_on_test: float | None
    folder: str
    arm: str
    made: str


@dataclass(frozen=True)
class PublishedRow:
    """A published run, and ours that repeat it, as {seed: score}: as published, and as intended."""

    name: str
    published: Published
    as_published: dict[int, Score] = field(default_factory=dict)
    as_intended: dict[int, Score] = field(default_factory=dict)

    @property
    def scores(self) -> list[Score]:
        return [*self.as_published.values(), *self.as_intended.values()]

    @property
    def spread(self) -> tuple[float, float] | None:
        """(low, high) in percent: where one more run as published falls with probability `CONFIDENCE`.

        None for fewer than two runs and where all are equal."""
        interval = prediction_interval(score.test for score in self.as_published.values())
        return interval and (max(0.0, interval[0]), min(100.0, interval[1]))

    @property
    def inside(self) -> bool | None:
        """Whether the published best lies in our spread; None where there is none."""
        return self.spread and self.spread[0] <= self.published.best <= self.spread[1]


@dataclass(frozen=True)
class Reproduction:
    """rows: one a published run, in the order of `published`.

    unreadable: the runs whose config this version cannot read, each with the reason.
    """

    rows: list[PublishedRow]
    unreadable: tuple[str, ...] = ()

    @property
    def num_runs(self) -> int:
        return sum(len(row.scores) for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        """JSON types: every counted run, and whether the published best lies in the spread of ours."""
        return {
            "source": SOURCE,
            "unit": "% of the test set",
            "confidence": CONFIDENCE,
            "runs": {
                row.name: {
                    "published": {"best": row.published.best, "last": row.published.last},
                    "as_published": {str(seed): score._asdict() for seed, score in row.as_published.items()},
                    "as_intended": {str(seed): score._asdict() for seed, score in row.as_intended.items()},
                    "spread": row.spread,
                    "inside": row.inside,
                }
                for row in self.rows
            },
        }


def reproduce(comparisons: Mapping[str, Results]) -> Reproduction:
    """Every finished run on CIFAR-10 that repeats a published one, once for each seed and protocol.

    comparisons: {name: results}. Of several runs that are the same but for the arithmetic, the first counts. A run with
    fewer epochs or images, or another setting, repeats none.
    """
    rows = {name: PublishedRow(name, run) for name, run in published.items()}
    unreadable: list[str] = []
    for folder, results in comparisons.items():
        if any(results.config["dataset"].get(key) != value for key, value in CIFAR10.items()):
            continue
        for run in (run for arm in results.runs for run in results.finished(arm)):
            try:
                config = from_dict(TrainConfig, {**results.config["arms"][run.arm], "seed": run.seed})
            except ConfigError as error:
                unreadable.append(f"{folder}, {run.arm} seed {run.seed} ({error})")
                continue
            if found := published_run(config):
                rows[found[0]].as_published.setdefault(run.seed, _score(folder, run, config))
            elif found := intended_run(config):
                rows[found[0]].as_intended.setdefault(run.seed, _score(folder, run, config))
    for row in rows.values():  # by seed, wherever each was found
        for scores in (row.as_published, row.as_intended):
            scores.update({seed: scores.pop(seed) for seed in sorted(scores)})
    return Reproduction(list(rows.values()), tuple(unreadable))


def _score(folder: str, run: Run, config: TrainConfig) -> Score:
    assert run.scores is not None
    device = run.scores.get("environment", {}).get("device")
    made = ", ".join([*([str(device)] if device else []), config.model.precision])
    _, best = best_test(run) or (None, None)
    return Score(run.scores["test_accuracy"], last_test(run), best, folder, run.arm, made)
