"""A comparison in words: its title, table, verdicts and notes, and summary.md."""

from dataclasses import dataclass
from typing import Any

from jaxresnet.reporting.tables import (
    as_bullets,
    as_markdown,
    environment_table,
    from_columns,
    markdown_text,
    mean_sd,
)
from jaxresnet.results.findings import AS_PUBLISHED, SELECTED_ON, SYNTHETIC, Findings
from jaxresnet.results.store import Results, Run

MANY_PAIRS = 3  # up to here each pair has its sentence on a terminal

SETTINGS = {  # those of an arm that say most, as a note names them
    "epochs": "num_epochs",
    "batch": "batch_size",
    "training images": "train_size",
    "held out": "val_size",
    "width": "model.width",
    "stages": "model.stage_sizes",
    "precision": "model.precision",
}


@dataclass(frozen=True)
class Words:
    """title: one line. table: rows of text, the header first. verdicts: a sentence a pair of arms.

    brief: the verdicts for a terminal: of many pairs those that are told apart. notes: a sentence or two each.
    """

    title: str
    table: list[list[str]]
    verdicts: list[str]
    brief: list[str]
    notes: list[str]


def describe_comparison(results: Results, found: Findings) -> Words:
    brief = found.verdicts
    if len(found.pairs) > MANY_PAIRS:
        told = sum(pair.told_apart for pair in found.pairs)  # whose verdicts come first
        count = f"{told} of {len(found.pairs)} pairs of arms are told apart"
        brief = [*brief[:told], f"{count} (each pair: summary.md, report.html){found.label}"]
    return Words(make_title(results), _table(results, found), found.verdicts, brief, _notes(results, found))


def make_title(results: Results) -> str:
    """The line above every table and figure: name, protocol, data set, and what a reader must not overlook."""
    config = results.config
    parts = [f"{config['protocol']} protocol"] * (config["protocol"] not in config["name"])
    parts.append(SYNTHETIC if results.synthetic else config["dataset"]["name"])
    size, epochs = _setting(results, "train_size"), _setting(results, "num_epochs")
    if size not in ("", "all"):
        parts.append(f"{size} training images")
    if epochs:
        parts.append(f"{epochs} epoch{'s' * (epochs != '1')}")
    title = f"{config['name']}: {', '.join(parts)}"
    if results.missing:
        count = len(config["arms"]) * len(config["seeds"])
        failed = f", {len(results.failures)} failed" if results.failures else ""
        title += f" (incomplete: {count - len(results.missing)} of {count} runs{failed})"
    return title


def make_summary(results: Results, words: Words, has_figure: bool = True) -> str:
    """The text of summary.md."""
    title = markdown_text(words.title)
    blocks = [
        f"# {title}",
        "  \n".join(map(markdown_text, words.brief)),
        as_markdown(words.table),
        *[f"![{title}](figure.png)"] * has_figure,
        as_bullets(words.notes),
    ]
    if words.brief != words.verdicts:
        blocks += ["## Each pair", as_bullets(words.verdicts)]
    runs = [[run.arm, str(run.seed), run.id] for of_arm in results.runs.values() for run in of_arm.values()]
    blocks += ["## Runs", as_markdown([["arm", "seed", "run"], *runs])]
    blocks += ["## Environment", as_markdown(environment_table(results.config["environment"]))]
    return "\n\n".join(blocks) + "\n"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of an arm by its full name, "model.width" for example."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        settings |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return settings


def _setting(results: Results, name: str) -> str:
    """The values that a setting has in the arms, each once: "10,000 / all". Empty where no arm has it."""
    arms = [flat(arm) for arm in results.config["arms"].values()]
    values = [arm[name] for arm in arms if name in arm]
    texts = ["all" if value is None else f"{value:,}" if isinstance(value, int) else str(value) for value in values]
    return " / ".join(dict.fromkeys(texts))


# ---------------------------------------------------------------------------------------------------------- table


def _table(results: Results, found: Findings) -> list[list[str]]:
    """A row an arm. A column of the last three that no arm can fill is left out."""
    arms = found.summary["arms"].values()
    seeds = [str(seed) for seed in results.config["seeds"]]
    chosen = "".join(f", {SELECTED_ON[selection]}" for selection in results.selections)
    columns = {
        "arm": list(results.runs),
        "n": [str(arm["n"]) for arm in arms],
        f"test accuracy (%){chosen}": [mean_sd(arm["values"].values()) for arm in arms],
        "per seed (%)": [
            ", ".join(f"{arm['values'][seed]:.2f}" if seed in arm["values"] else "-" for seed in seeds) for arm in arms
        ],
    }
    others = {"last epoch, test (%)": [mean_sd(arm["last_epoch_test_accuracy"].values()) for arm in arms]}
    if results.selections != ["test"]:  # else the third column shows it
        best = [[best["test_accuracy"] for best in arm[AS_PUBLISHED].values()] for arm in arms]
        others[f"{AS_PUBLISHED} (%)"] = [mean_sd(values) for values in best]
    others["published best / last (%)"] = [_published(arm["published"]) for arm in arms]
    return from_columns(columns | {header: cells for header, cells in others.items() if any(cells)})


def _published(entry: dict[str, Any] | None) -> str:
    return " / ".join(f"{entry[key]:.2f}" if entry.get(key) else "-" for key in ("best", "last")) if entry else ""


# ---------------------------------------------------------------------------------------------------------- notes


def _notes(results: Results, found: Findings) -> list[str]:
    """What a reader has to know to read the numbers."""
    arms, finished = found.summary["arms"], [run for arm in results.runs for run in results.finished(arm)]
    seeds = ", ".join(map(str, results.config["seeds"]))
    dataset = [f"{key} {value}" for key, value in results.config["dataset"].items() if key != "synthetic"]
    trained = "; ".join(f"{what} {text}" for what, name in SETTINGS.items() if (text := _setting(results, name)))
    notes = [f"Data: {', '.join([*dataset, *[SYNTHETIC] * results.synthetic])}.", f"Each run: {trained}."]
    if len(results.config["seeds"]) == 1:
        notes.append(f"One seed ({seeds}): no deviation, no interval.")
    else:
        notes.append(
            f"± is the sample standard deviation over seeds. Values per seed are in the order of seeds {seeds}."
        )
    notes += [f"Failed: {arm} seed {seed}: {reason}." for (arm, seed), reason in results.failures.items()]
    for run in finished:
        if skipped := (run.scores or {}).get("skipped_steps"):
            notes.append(f"Skipped steps, whose numbers were not finite: {skipped}, of {run.arm} seed {run.seed}.")
    if results.missing:
        missing = ", ".join(f"{arm} seed {seed}" for arm, seed in results.missing)
        first = "Mend what made runs fail, then run" if results.failures else "Run"
        pairs = "Two arms are compared over the seeds that both have."
        notes.append(f"Incomplete, missing: {missing}. {pairs} {first} the same command again to finish.")
    if any(arm["weights"] not in ([], ["fast"]) for arm in arms.values()):
        weights = [f"{name} {' and '.join(arm['weights'])}" for name, arm in arms.items() if arm["weights"]]
        notes.append(f"Evaluated weights: {', '.join(weights)}.")
    made = sorted({text for run in finished for text in _environments(run)})
    if len(made) > 1:
        notes.append(f"Runs come from different environments: {'; '.join(made)}.")
    sources: dict[str, list[str]] = {}  # one note a source, not one an arm
    for name, arm in arms.items():
        if arm["published"]:
            sources.setdefault(arm["published"].get("source") or "no source given", []).append(name)
    notes += [f"Published, {', '.join(names)}: {AS_PUBLISHED}, {source}." for source, names in sources.items()]
    return notes


def _environments(run: Run) -> list[str]:
    """Where a finished run was made: several where it went on elsewhere."""
    scores, names = run.scores or {}, ("jax", "device", "num_devices", "commit")
    used = [*(scores.get("earlier_backends") or []), scores.get("environment") or {}]
    return [", ".join(f"{name} {one[name]}" for name in names if one.get(name)) for one in used if one]
