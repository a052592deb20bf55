"""The published runs beside ours: which finished runs repeat them, as published or as intended, and what came of it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.config import TrainConfig, from_dict
from jaxresnet.errors import ConfigError, ResultsError
from jaxresnet.recipes import SOURCE, Published, intended_run, published, published_run
from jaxresnet.reporting.tables import Table, mean_sd
from jaxresnet.results.findings import AS_PUBLISHED, SELECTED_ON, best_test, last_test
from jaxresnet.results.statistics import prediction_interval
from jaxresnet.results.store import Results, Run
from jaxresnet.results.tree import read_tree

CONFIDENCE = 0.95
WHAT_COLUMNS = ("what it trains", "epochs")
# Headers of columns that a narrow terminal can do without, in the order in which it does.
LAST_AS_PUBLISHED = "ours as published: last epoch (n)"
LAST_AS_INTENDED, BEST_AS_INTENDED = "ours as intended: last epoch (n)", f"ours as intended: {AS_PUBLISHED} (n)"
SPARE = (*WHAT_COLUMNS, LAST_AS_PUBLISHED, LAST_AS_INTENDED, BEST_AS_INTENDED)
# The whole of CIFAR-10, as every published run had it.
CIFAR10: dict[str, Any] = {"name": "cifar10", "synthetic": False, "num_train": 50_000, "num_test": 10_000}

_BY_CHANCE = 1 - CONFIDENCE ** len(published)  # that a row or more is "outside" though every published run was repeated
# How the table is to be read, a sentence each.
READING = (
    f"Published: {SOURCE}. Its best epoch was chosen on the test set.",
    "As published: schedules, scored weights and choice of the epoch as the notebooks had them. As intended: the "
    "schedule moves every step over the run's length, Lookahead's slow weights are scored, and the epoch is chosen "
    "on 5,000 training images held out; what choosing it on the test set would have given stands beside.",
    "The run adam is as intended when it is as long as sgd_128, to which it was compared: "
    f"{published['sgd_128'].config.num_epochs} epochs.",
    "± is the sample standard deviation, n the number of seeds. Spread: where one more run as published would fall "
    f"with probability {100 * CONFIDENCE:g} % (t prediction interval).",
    f"Each of {len(published)} rows is outside by chance alone with probability {100 * (1 - CONFIDENCE):.0f} %, so "
    f"about one in two such tables has a row outside (probability {_BY_CHANCE:.2f}).",
)


class Score(NamedTuple):
    """One finished run, in percent. test: accuracy at the epoch that its protocol chooses; last: after the last epoch;
    best_on_test: at the epoch that is best on the test set, each of these two None where it was not measured.
    folder, arm: where it lies. made: device and arithmetic."""

    test: float
    last: float | None
    best_on_test: float | None
    folder: str
    arm: str
    made: str


@dataclass(frozen=True)
class Row:
    """A published run, and ours that repeat it as {seed: score}."""

    name: str
    published: Published
    as_published: dict[int, Score] = field(default_factory=dict)
    as_intended: dict[int, Score] = field(default_factory=dict)

    @property
    def spread(self) -> tuple[float, float] | None:
        """(low, high) in percent, where one more run as published would fall with probability `CONFIDENCE`."""
        interval = prediction_interval([score.test for score in self.as_published.values()], CONFIDENCE)
        return interval and (max(0.0, interval[0]), min(100.0, interval[1]))

    @property
    def verdict(self) -> str:
        """Whether the published best lies inside our spread: "inside (89.80 to 91.90)", or why that cannot be said."""
        if len(self.as_published) < 2:
            return "one run: cannot tell" if self.as_published else "not run yet"
        if self.spread is None:
            return "all runs equal: cannot tell"
        low, high = self.spread
        return f"{'inside' if low <= self.published.best <= high else 'outside'} ({low:.2f} to {high:.2f})"


class Reproduction(NamedTuple):
    """rows: one a published run, in the order of `published`. notes: a sentence each, on what was counted and what
    was not; `READING` says how to read the table."""

    rows: list[Row]
    notes: list[str]

    @property
    def num_runs(self) -> int:
        return sum(len(row.as_published) + len(row.as_intended) for row in self.rows)

    @property
    def table(self) -> Table:
        """Rows of text, the header first. Accuracies in percent of the test set."""
        header = [
            "published run",
            *WHAT_COLUMNS,
            "published best / last (one seed)",
            f"ours as published: {AS_PUBLISHED} (n)",
            LAST_AS_PUBLISHED,
            f"ours as intended: {SELECTED_ON['val']} (n)",
            LAST_AS_INTENDED,
            BEST_AS_INTENDED,
            "published best inside our spread?",
        ]
        return [header, *(_cells(row) for row in self.rows)]

    def to_json(self) -> dict[str, Any]:
        """JSON types: every counted run, and what the table says of it."""
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
                    "verdict": row.verdict,
                }
                for row in self.rows
            },
            "notes": [*READING, *self.notes],
        }


def read_reproduction(root: str | Path) -> Reproduction:
    """What the comparisons in `root`, or `root` itself as one comparison, reproduce of the published runs.

    Raises ResultsError where there is no comparison. Folders that are damaged or foreign are named in the notes.
    """
    tree = read_tree(root)
    if not tree.comparisons:
        raise ResultsError(f"{root}: holds measurements and no comparison; run one of the experiments first")
    found = reproduce(tree.comparisons)
    return found._replace(notes=[*found.notes, *(f"Skipped {name}: {why}" for name, why in tree.skipped.items())])


def reproduce(comparisons: Mapping[str, Results]) -> Reproduction:
    """Every finished run on CIFAR-10 that repeats a published one, once for each seed and protocol.

    comparisons: {name: results}; of a run that lies in several the first counts. Runs with fewer epochs or images, or
    another setting, repeat none.
    """
    rows = {name: Row(name, run) for name, run in published.items()}
    twice = differing = others = 0
    unreadable: list[str] = []
    for folder, results in comparisons.items():
        if any(results.config["dataset"].get(key) != value for key, value in CIFAR10.items()):
            others += sum(len(results.finished(arm)) for arm in results.runs)
            continue
        for run in (run for arm in results.runs for run in results.finished(arm)):
            try:
                config = _config(results, run)
            except ConfigError as error:
                unreadable.append(f"{folder}, {run.arm} seed {run.seed} ({error})")
                continue
            if found := published_run(config):
                scores = rows[found[0]].as_published
            elif found := intended_run(config):
                scores = rows[found[0]].as_intended
            else:
                others += 1
                continue
            score = _score(folder, run, config)
            first = scores.setdefault(run.seed, score)
            twice += first is not score
            differing += (first.test, first.last) != (score.test, score.last)
    for row in rows.values():  # by seed, wherever each was found
        for scores in (row.as_published, row.as_intended):
            scores.update({seed: scores.pop(seed) for seed in sorted(scores)})
    counted = Reproduction(list(rows.values()), [])
    return counted._replace(notes=_notes(counted, others, twice, differing, unreadable))


def _config(results: Results, run: Run) -> TrainConfig:
    """What the run says it was run with; before runs said so, its arm in config.json and its seed.

    Raises ConfigError where this version cannot read it."""
    scores = run.scores or {}
    return from_dict(TrainConfig, scores.get("config") or {**results.config["arms"][run.arm], "seed": run.seed})


def _score(folder: str, run: Run, config: TrainConfig) -> Score:
    scores = run.scores or {}
    device = scores.get("environment", {}).get("device")
    made = ", ".join([*([str(device)] if device else []), config.model.precision])
    _, best = best_test(run) or (None, None)
    return Score(scores["test_accuracy"], last_test(run), best, folder, run.arm, made)


def _cells(row: Row) -> list[str]:
    def cell(measured: list[float | None]) -> str:
        values = [value for value in measured if value is not None]
        return f"{mean_sd(values)} ({len(values)})" if values else ""

    as_published, as_intended = row.as_published.values(), row.as_intended.values()
    return [
        row.name,
        _what(row.published.config),
        str(row.published.config.num_epochs),
        f"{row.published.best:.2f} / {row.published.last:.2f}",
        cell([score.test for score in as_published]),
        cell([score.last for score in as_published]),
        cell([score.test for score in as_intended]),
        cell([score.last for score in as_intended]),
        cell([score.best_on_test for score in as_intended]),
        row.verdict,
    ]


def _what(config: TrainConfig) -> str:
    optim = config.optim
    parts = [optim.optimizer.upper() if optim.optimizer == "sgd" else optim.optimizer.capitalize()]
    parts += ["Lookahead"] * optim.lookahead
    return f"{' + '.join(parts)}, {optim.schedule}, lr {optim.learning_rate:g}, batch {config.batch_size}"


def _notes(found: Reproduction, others: int, twice: int, differing: int, unreadable: list[str]) -> list[str]:
    notes = [f"Counted: {found.num_runs} finished runs on CIFAR-10."]
    every = [s for row in found.rows for scores in (row.as_published, row.as_intended) for s in scores.values()]
    made = {made: sum(score.made == made for score in every) for made in sorted({score.made for score in every})}
    if made:
        notes.append("Made on: " + "; ".join(f"{name} ({count} runs)" for name, count in made.items()) + ".")
    if twice:
        same = f"{differing} of them with another result" if differing else "with the same results"
        notes.append(f"Found again in another comparison and counted once: {twice} runs, {same}.")
    if others:
        notes.append(
            f"Not counted: {others} finished runs that repeat no published run (fewer epochs or images, other settings "
            "or synthetic data)."
        )
    notes += [f"Not counted, as this version cannot read its config: {where}." for where in unreadable]
    return notes
