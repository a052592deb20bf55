"""What a comparison says, in numbers: each arm over its seeds, each pair of arms, and the contents of summary.json."""

from dataclasses import asdict, dataclass
from typing import Any

from jaxresnet.results.statistics import CONFIDENCE, Pair, mean_and_sd, pairwise
from jaxresnet.results.store import Results, Run

SYNTHETIC = "synthetic data, not CIFAR-10"
AS_PUBLISHED = "best epoch on the test set (as published)"
SELECTED_ON = {"val": "best epoch on the validation set", "test": AS_PUBLISHED, "last": "last epoch"}


@dataclass(frozen=True)
class Findings:
    """pairs: of the arms that have a finished run, on test accuracy in percentage points.

    label: what every verdict must carry, " [synthetic data, not CIFAR-10]" for example; often empty.
    verdicts: a labelled sentence a pair, those told apart first; without a pair one that says why.
    summary: the contents of summary.json, accuracies in percent.
    """

    pairs: list[Pair]
    label: str
    verdicts: list[str]
    summary: dict[str, Any]


def findings(results: Results) -> Findings:
    scores = {arm: results.scores(arm, "test_accuracy") for arm in results.runs}
    pairs = pairwise({arm: values for arm, values in scores.items() if values})
    labels = [SYNTHETIC] * results.synthetic + [AS_PUBLISHED] * ("test" in results.selections)
    label = f" [{'; '.join(labels)}]" if labels else ""
    verdicts = [pair.verdict + label for pair in sorted(pairs, key=lambda pair: not pair.told_apart)]
    if not pairs:
        few = "one arm" if len(results.runs) == 1 else "fewer than two arms have a finished run"
        verdicts = [f"{few}: nothing to compare"]
    summary = {
        "name": results.config["name"],
        "protocol": results.config["protocol"],
        "complete": not results.missing,
        "missing": [
            {"arm": arm, "seed": seed}
            | ({"error": results.failures[arm, seed]} if (arm, seed) in results.failures else {})
            for arm, seed in results.missing
        ],
        "seeds": results.config["seeds"],
        "metric": "test_accuracy",
        "unit": "%",
        "arms": {arm: _arm(results, arm) for arm in results.runs},
        "comparison": {
            "unit": "percentage points",
            "confidence": CONFIDENCE,
            "correction": "Holm" if len(pairs) > 1 else None,
            "pairs": [
                {"a": p.name_a, "b": p.name_b, **asdict(p.difference), "p_holm": p.p_holm, "verdict": p.verdict + label}
                for p in pairs
            ],
            "verdict": "\n".join(verdicts),
        },
        "dataset": results.config["dataset"],
        "environment": results.config["environment"],
    }
    return Findings(pairs, label, verdicts, summary)


def _arm(results: Results, arm: str) -> dict[str, Any]:
    finished = results.finished(arm)
    values = results.scores(arm, "test_accuracy")
    mean, sd = mean_and_sd(values.values()) if values else (None, None)
    last = {run.seed: value for run in finished if (value := last_test(run)) is not None}
    best = {run.seed: found for run in finished if (found := best_test(run))}
    return {
        "n": len(values),
        "mean": mean,
        "sd": sd,
        "values": {str(seed): value for seed, value in values.items()},
        "selection": [SELECTED_ON[selection] for selection in sorted(set(results.scores(arm, "selection").values()))],
        "epochs": {str(seed): epoch for seed, epoch in results.scores(arm, "best_epoch").items()},
        "weights": sorted({run.scores.get("weights") or "fast" for run in finished if run.scores}),
        "last_epoch_test_accuracy": {str(seed): value for seed, value in last.items()},
        AS_PUBLISHED: {str(seed): {"epoch": epoch, "test_accuracy": value} for seed, (epoch, value) in best.items()},
        "published": results.published.get(arm),
    }


def last_test(run: Run) -> float | None:
    """Test accuracy after the run's last epoch, in percent; None where it was not measured."""
    return run.rows[-1].get("test_accuracy") if run.rows else None


def best_test(run: Run) -> tuple[int, float] | None:
    """(epoch, percent) of the row with the highest test accuracy, the earliest of equals; None without any."""
    tested = [row for row in run.rows if row.get("test_accuracy") is not None]
    if not tested:
        return None
    row = max(tested, key=lambda row: row["test_accuracy"])
    return row["epoch"], row["test_accuracy"]
