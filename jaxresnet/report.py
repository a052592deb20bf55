"""Tables, verdict and figure of a comparison, from its folder alone: nothing is trained to draw them again."""

import textwrap
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jaxresnet.figure import draw_figure
from jaxresnet.results import Results, Run, read_results, write_bytes, write_json, write_text
from jaxresnet.stats import ArmSummary, describe, pairwise

SYNTHETIC = "synthetic data, not CIFAR-10"
AS_PUBLISHED = "best epoch on the test set (as published)"
SELECTED_ON = {"val": "best epoch on the validation set", "test": AS_PUBLISHED, "last": "last epoch"}


@dataclass(frozen=True)
class Report:
    """What `render` wrote, and what a script prints at its end.

    table: aligned text with the title above it and the notes below.
    verdict: one sentence a pair of arms, a line each.
    """

    summary_json: Path
    summary_md: Path
    figure: Path
    table: str
    verdict: str
    complete: bool


def render(folder: str | Path) -> Report:
    """Write summary.json, summary.md and figure.png of the comparison in `folder`, from what its runs have written.

    An incomplete comparison is rendered as far as it goes, and says which runs are missing.
    Raises ResultsError for a folder that is damaged or not a comparison's.
    """
    results = read_results(folder)
    summary = summarise(results)
    table = _table(results, summary)
    verdict = summary["comparison"]["verdict"]
    notes = _notes(results, summary)
    report = Report(
        summary_json=results.folder / "summary.json",
        summary_md=results.folder / "summary.md",
        figure=results.folder / "figure.png",
        table="\n".join([title(results), "", *_aligned(table), "", *notes]),
        verdict=verdict,
        complete=summary["complete"],
    )
    write_json(report.summary_json, summary)
    write_bytes(report.figure, draw_figure(results, title(results), AS_PUBLISHED))
    write_text(report.summary_md, _markdown(results, table, verdict, notes))
    return report


def title(results: Results) -> str:
    """The line above every table and figure: name, protocol, data set, and what a reader must not overlook."""
    dataset = SYNTHETIC if results.synthetic else results.config["dataset"]["name"]
    text = f"{results.config['name']}: {results.config['protocol']} protocol, {dataset}"
    if results.missing:
        count = len(results.config["arms"]) * len(results.config["seeds"])
        text += f" (incomplete: {count - len(results.missing)} of {count} runs)"
    return text


def summarise(results: Results) -> dict[str, Any]:
    """The contents of summary.json. Accuracies in percent, differences in percentage points of test accuracy."""
    scores = {arm: results.scores(arm, "test_accuracy") for arm in results.runs}
    pairs = pairwise({arm: values for arm, values in scores.items() if values})
    labels = [SYNTHETIC] * results.synthetic + [AS_PUBLISHED] * ("test" in results.selections)
    label = f" [{'; '.join(labels)}]" if labels else ""
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
        "missing": [{"arm": arm, "seed": seed} for arm, seed in results.missing],
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
    last = {run.seed: run.rows[-1]["test_accuracy"] for run in finished if _has_test(run.rows[-1:])}
    best = {run.seed: _best_test(run) for run in finished if _has_test(run.rows)}
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


def _has_test(rows: list[dict[str, Any]]) -> bool:
    return any(row.get("test_accuracy") is not None for row in rows)


def _best_test(run: Run) -> tuple[int, float]:
    """(epoch, percent) of the row with the highest test accuracy, the earliest of equals."""
    row = max((row for row in run.rows if row.get("test_accuracy") is not None), key=lambda row: row["test_accuracy"])
    return row["epoch"], row["test_accuracy"]


# --------------------------------------------------------------------------------------------------- table, notes


def _table(results: Results, summary: dict[str, Any]) -> list[list[str]]:
    """A header and a row an arm. A column that no arm can fill is left out."""
    chosen = ", ".join(SELECTED_ON[selection] for selection in results.selections)
    header = [
        "arm",
        "n",
        f"test accuracy (%), {chosen}" if chosen else "test accuracy (%)",
        "per seed (%)",
        "epoch (from 0)",
        "last epoch, test (%)",
        f"{AS_PUBLISHED} (%)",
        "published (%)",
    ]
    rows = [header]
    for name, arm in summary["arms"].items():
        values = arm["values"].values()
        as_published = [best["test_accuracy"] for best in arm[AS_PUBLISHED].values()]
        published = arm["published"]
        rows.append(
            [
                name,
                str(arm["n"]),
                _mean_sd(values),
                _per_seed(results, arm["values"], "{:.2f}"),
                _per_seed(results, arm["epochs"], "{}"),
                _mean_sd(arm["last_epoch_test_accuracy"].values()),
                "" if results.selections == ["test"] else _mean_sd(as_published),
                f"{published['best']:.2f}" if published else "",
            ]
        )
    filled = [i for i in range(len(header)) if i < 5 or any(row[i] for row in rows[1:])]
    return [[row[i] for i in filled] for row in rows]


def _per_seed(results: Results, values: dict[str, Any], form: str) -> str:
    """The values in the order of the seeds, with a dash for a run that has not finished."""
    seeds = [str(seed) for seed in results.config["seeds"]]
    return ", ".join(form.format(values[seed]) if seed in values else "-" for seed in seeds)


def _mean_sd(values: Any) -> str:
    if not values:
        return ""
    arm: ArmSummary = describe(values)
    return f"{arm.mean:.2f}" if arm.sd is None else f"{arm.mean:.2f} ± {arm.sd:.2f}"


def _notes(results: Results, summary: dict[str, Any]) -> list[str]:
    """What a reader has to know to read the numbers, a sentence a line."""
    seeds = ", ".join(map(str, summary["seeds"]))
    notes = [f"± is the sample standard deviation over seeds; per seed and epoch in the order of seeds {seeds}."]
    if len(summary["seeds"]) == 1:
        notes = [f"One seed ({seeds}): no deviation, no interval."]
    if results.missing:
        missing = ", ".join(f"{arm} seed {seed}" for arm, seed in results.missing)
        notes.append(f"Incomplete, missing: {missing}. Run the same command again to finish.")
    weights = {name: " and ".join(arm["weights"]) for name, arm in summary["arms"].items() if arm["weights"]}
    if any(kind != "fast" for kind in weights.values()):
        notes.append("Evaluated weights: " + ", ".join(f"{name} {kind}" for name, kind in weights.items()) + ".")
    notes.insert(0, _settings(results))
    if len(used := _environments(results)) > 1:
        notes.append("Runs come from different environments: " + "; ".join(used) + ".")
    for name, arm in summary["arms"].items():
        if arm["published"]:
            source = arm["published"].get("source", "no source given")
            notes.append(f"Published, {name}: {AS_PUBLISHED}, {source}.")
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
        f"Each run: {of(None, 'num_epochs')} epochs, batch {of(None, 'batch_size')}, {images}, of them "
        f"{of(None, 'val_size')} held out; width {of('model', 'width')}, stages {of('model', 'stage_sizes')}, "
        f"{of('model', 'precision')}."
    )


def _environments(results: Results) -> list[str]:
    """What the runs say of where they were made, each different one once."""
    names = ("jax", "device", "num_devices", "commit")
    made = [e for arm in results.runs for e in results.environments(arm)]
    return sorted({", ".join(f"{name} {e.get(name)}" for name in names) for e in made})


def _aligned(table: list[list[str]]) -> list[str]:
    """The table for a terminal: columns padded, long headers wrapped."""
    header = [textwrap.wrap(cell, 18) for cell in table[0]]
    height = max(map(len, header))
    lines = [[cell[i] if i < len(cell) else "" for cell in header] for i in range(height)] + table[1:]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]
    return [*text[:height], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[height:]]


def _markdown(results: Results, table: list[list[str]], verdict: str, notes: list[str]) -> str:
    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    dataset = ", ".join(f"{key} {value}" for key, value in results.config["dataset"].items() if key != "synthetic")
    environment = [f"- {key}: `{value}`" for key, value in results.config["environment"].items() if value is not None]
    blocks = [
        f"# {title(results)}",
        verdict.replace("\n", "  \n"),
        "\n".join([line(table[0]), line(["---"] * len(table[0])), *map(line, table[1:])]),
        f"![{title(results)}](figure.png)",
        "\n".join(f"- {note}" for note in [f"Data: {dataset}{', ' + SYNTHETIC if results.synthetic else ''}.", *notes]),
        "## Environment",
        "\n".join(environment),
    ]
    return "\n\n".join(blocks) + "\n"
