"""What the results of a comparison say: its numbers, its table, its verdicts, and what a reader must know of them."""

from dataclasses import asdict, dataclass
from typing import Any

from jaxresnet.reporting.tables import mean_sd
from jaxresnet.results.statistics import Pair, describe, pairwise
from jaxresnet.results.store import Results, Run

SYNTHETIC = "synthetic data, not CIFAR-10"
AS_PUBLISHED = "best epoch on the test set (as published)"
SELECTED_ON = {"val": "best epoch on the validation set", "test": AS_PUBLISHED, "last": "last epoch"}
PER_SEED, EPOCH = "per seed (%)", "epoch (from 0)"  # headers of the columns that a narrow terminal can do without
MANY_PAIRS, MANY_TOLD_APART = 3, 6  # up to here a sentence each is bearable


@dataclass(frozen=True)
class Findings:
    """title: one line. summary: the contents of summary.json. table: rows of text, the header first.

    verdicts: a sentence a pair of arms, those told apart first. brief: the same for a terminal, a line each, where of
    many pairs only those told apart get a sentence. notes: a sentence each.
    """

    title: str
    summary: dict[str, Any]
    table: list[list[str]]
    verdicts: list[str]
    brief: list[str]
    notes: list[str]


def findings(results: Results) -> Findings:
    """Accuracies in percent, differences in percentage points of test accuracy."""
    scores = {arm: results.scores(arm, "test_accuracy") for arm in results.runs}
    pairs = pairwise({arm: values for arm, values in scores.items() if values})
    labels = [SYNTHETIC] * results.synthetic + [AS_PUBLISHED] * ("test" in results.selections)
    label = f" [{'; '.join(labels)}]" if labels else ""
    summary = _summary(results, pairs, label)
    if pairs:
        verdicts = [pair.verdict + label for pair in sorted(pairs, key=lambda pair: not pair.told_apart)]
        brief = verdicts
        if len(pairs) > MANY_PAIRS and (shortened := [line + label for line in _brief(pairs)]) != verdicts:
            brief = [*shortened, "each pair with its interval: summary.md, report.html"]
    else:
        verdicts = brief = [summary["comparison"]["verdict"]]
    return Findings(title(results), summary, _table(results, summary), verdicts, brief, _notes(results, summary))


def title(results: Results) -> str:
    """The line above every table and figure: name, protocol, data set, and what a reader must not overlook."""
    text = f"{results.config['name']}: {results.config['protocol']} protocol, "
    text += SYNTHETIC if results.synthetic else results.config["dataset"]["name"]
    arms = results.config["arms"].values()
    sizes = list(dict.fromkeys(arm.get("train_size") for arm in arms))
    held_out = list(dict.fromkeys(arm.get("val_size") or 0 for arm in arms))
    lengths = {arm.get("num_epochs") for arm in arms}
    if sizes != [None]:
        text += f", {' or '.join('all' if n is None else f'first {n:,}' for n in sizes)} training images"
        if any(held_out):
            text += f", {' or '.join(f'{n:,}' for n in held_out)} of them held out"
    if len(lengths) == 1 and lengths != {None}:
        text += f", {_epochs(lengths.pop())}"
    if results.missing:
        count = len(results.config["arms"]) * len(results.config["seeds"])
        failed = f", {len(results.failures)} failed" if results.failures else ""
        text += f" (incomplete: {count - len(results.missing)} of {count} runs{failed})"
    return text


def _epochs(count: Any) -> str:
    return f"{count} epoch{'' if str(count) == '1' else 's'}"


def _brief(pairs: list[Pair]) -> list[str]:
    """A sentence for each pair told apart, or a line for all where these are many too; a line for each reason why
    others are not."""
    told = [pair for pair in pairs if pair.told_apart]
    others: dict[str, list[str]] = {}
    for pair in pairs:
        if not pair.told_apart:
            tested = pair.p_holm is not None
            why = "not distinguished" if tested else f"no test ({pair.difference.test.removeprefix('none: ')})"
            others.setdefault(why, []).append(f"{pair.name_a} and {pair.name_b}")
    lines = [pair.verdict for pair in told]
    if len(told) > MANY_TOLD_APART:
        lines = [
            f"told apart after Holm's correction (the better first, points): {'; '.join(map(_better_first, told))}"
        ]
    for why, names in others.items():
        which = f"all {len(names)} pairs of arms" if len(names) == len(pairs) else "; ".join(names)
        lines.append(f"{why}: {which}")
    return lines


def _better_first(pair: Pair) -> str:
    mean = pair.difference.mean or 0.0
    better, worse = (pair.name_a, pair.name_b) if mean >= 0 else (pair.name_b, pair.name_a)
    return f"{better} over {worse} by {abs(mean):.2f}"


# -------------------------------------------------------------------------------------------------------- numbers


def _summary(results: Results, pairs: list[Pair], label: str) -> dict[str, Any]:
    if pairs:
        verdict = "\n".join(pair.verdict + label for pair in pairs)
    elif len(results.runs) == 1:
        verdict = "one arm: nothing to compare"
    else:
        verdict = "fewer than two arms have a finished run: nothing to compare yet"
    return {
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
            "correction": "Holm" if len(pairs) > 1 else None,
            "pairs": [
                {"a": p.name_a, "b": p.name_b, **asdict(p.difference), "p_holm": p.p_holm, "verdict": p.verdict + label}
                for p in pairs
            ],
            "verdict": verdict,
        },
        "dataset": results.config["dataset"],
        "environment": results.config["environment"],
    }


def _arm(results: Results, arm: str) -> dict[str, Any]:
    finished = results.finished(arm)
    values = results.scores(arm, "test_accuracy")
    selections = sorted(set(results.scores(arm, "selection").values()))
    last = {run.seed: value for run in finished if (value := last_test(run)) is not None}
    best = {run.seed: found for run in finished if (found := best_test(run))}
    return {
        "n": len(values),
        "mean": describe(values.values()).mean if values else None,
        "sd": describe(values.values()).sd if values else None,
        "values": {str(seed): value for seed, value in values.items()},
        "selection": [SELECTED_ON[selection] for selection in selections],
        "epochs": {str(seed): epoch for seed, epoch in results.scores(arm, "best_epoch").items()},
        "weights": sorted({run.scores.get("weights", "fast") for run in finished if run.scores}),
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


# --------------------------------------------------------------------------------------------------- table, notes


def _table(results: Results, summary: dict[str, Any]) -> list[list[str]]:
    """A header and a row an arm. A column that no arm can fill is left out."""
    chosen = ", ".join(SELECTED_ON[selection] for selection in results.selections)
    lasts = [p for p in results.published.values() if "last" in p]
    header = [
        "arm",
        "n",
        f"test accuracy (%), {chosen}" if chosen else "test accuracy (%)",
        PER_SEED,
        EPOCH,
        "last epoch, test (%)",
        f"{AS_PUBLISHED} (%)",
        "published best / last (%)" if lasts else "published (%)",
    ]
    rows = [header]
    for name, arm in summary["arms"].items():
        as_published = [best["test_accuracy"] for best in arm[AS_PUBLISHED].values()]
        rows.append(
            [
                name,
                str(arm["n"]),
                mean_sd(arm["values"].values()),
                _per_seed(results, arm["values"], "{:.2f}"),
                _per_seed(results, arm["epochs"], "{}"),
                mean_sd(arm["last_epoch_test_accuracy"].values()),
                "" if results.selections == ["test"] else mean_sd(as_published),
                _published(arm["published"]),
            ]
        )
    filled = [i for i in range(len(header)) if i < 5 or any(row[i] for row in rows[1:])]
    return [[row[i] for i in filled] for row in rows]


def _published(entry: dict[str, Any] | None) -> str:
    values = [entry[key] for key in ("best", "last") if key in entry] if entry else []
    return " / ".join(f"{value:.2f}" for value in values)


def _per_seed(results: Results, values: dict[str, Any], form: str) -> str:
    """The values in the order of the seeds, with a dash for a run that has not finished."""
    seeds = [str(seed) for seed in results.config["seeds"]]
    return ", ".join(form.format(values[seed]) if seed in values else "-" for seed in seeds)


def _notes(results: Results, summary: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the numbers, a sentence a line."""
    seeds = ", ".join(map(str, summary["seeds"]))
    notes = [_settings(results)]
    if len(summary["seeds"]) == 1:
        notes.append(f"One seed ({seeds}): no deviation, no interval.")
    else:
        notes.append(
            f"± is the sample standard deviation over seeds; per seed and epoch in the order of seeds {seeds}."
        )
    notes += [f"Failed: {arm} seed {seed}: {reason}." for (arm, seed), reason in results.failures.items()]
    notes += [note for arm in results.runs for run in results.finished(arm) for note in _incidents(run)]
    if results.missing:
        missing = ", ".join(f"{arm} seed {seed}" for arm, seed in results.missing)
        failed = ", after what the failed ones ask for" if results.failures else ""
        notes.append(f"Incomplete, missing: {missing}. Run the same command again to finish{failed}.")
    if results.selections == ["test"] and all(arm.get("val_size") == 0 for arm in results.config["arms"].values()):
        notes.append("No column for an epoch chosen on validation: the runs held no images out to choose on.")
    weights = {name: " and ".join(arm["weights"]) for name, arm in summary["arms"].items() if arm["weights"]}
    if len(weights) > 1 and set(weights.values()) == {"slow"}:
        notes.append("Evaluated weights: slow.")
    elif any(kind != "fast" for kind in weights.values()):
        notes.append("Evaluated weights: " + ", ".join(f"{name} {kind}" for name, kind in weights.items()) + ".")
    if len(used := _environments(results)) > 1:
        notes.append("Runs come from different environments: " + "; ".join(used) + ".")
    sources: dict[str, list[str]] = {}  # one note a source, not one an arm
    for name, arm in summary["arms"].items():
        if arm["published"]:
            sources.setdefault(arm["published"].get("source", "no source given"), []).append(name)
    notes += [f"Published, {', '.join(names)}: {AS_PUBLISHED}, {source}." for source, names in sources.items()]
    return notes


def _incidents(run: Run) -> list[str]:
    """What a finished run went through that another of its config would not."""
    scores, name = run.scores or {}, f"{run.arm} seed {run.seed}"
    notes = []
    if skipped := scores.get("skipped_steps"):
        notes.append(f"Skipped: {name}: {skipped} step{'s' * (skipped > 1)} whose numbers were not finite.")
    used = [*(scores.get("earlier_backends") or []), scores.get("environment", {})]
    if len(used) > 1:
        parts = [f"jax {b.get('jax')} on {b.get('num_devices')} x {b.get('device')}" for b in used]
        notes.append(f"Continued elsewhere: {name}: {', then '.join(parts)}; the same to rounding, not bit for bit.")
    return notes


def _settings(results: Results) -> str:
    """What was trained, in a sentence: the settings that say most, each once where the arms agree."""
    arms = results.config["arms"].values()

    def of(section: str | None, name: str) -> str:
        values = [(arm.get(section) or {} if section else arm).get(name) for arm in arms]
        return " / ".join(dict.fromkeys(str(v) for v in values))

    size = of(None, "train_size")
    images = f"{size} training images" if size != "None" else "all training images"
    return (
        f"Each run: {_epochs(of(None, 'num_epochs'))}, batch {of(None, 'batch_size')}, {images}, of them "
        f"{of(None, 'val_size')} held out; width {of('model', 'width')}, stages {of('model', 'stage_sizes')}, "
        f"{of('model', 'precision')}."
    )


def _environments(results: Results) -> list[str]:
    """What the runs say of where they were made, each different one once."""
    names = ("jax", "device", "num_devices", "commit")
    made = [e for arm in results.runs for e in results.environments(arm)]
    return sorted({", ".join(f"{name} {e.get(name)}" for name in names) for e in made})
