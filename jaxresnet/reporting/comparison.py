"""A comparison in words: its title, table, verdicts and notes, and summary.md."""

from dataclasses import dataclass
from typing import Any

from jaxresnet.reporting.tables import (
    as_bullets,
    as_environment,
    as_markdown,
    from_columns,
    markdown_text,
    mean_sd,
    without_columns,
)
from jaxresnet.results.findings import AS_PUBLISHED, SELECTED_ON, SYNTHETIC, Findings
from jaxresnet.results.statistics import Pair
from jaxresnet.results.store import Results, Run

PER_SEED, EPOCH = "per seed (%)", "epoch (from 0)"  # columns that a narrow terminal can do without
MANY_PAIRS = 3  # up to here each pair has its sentence on a terminal


@dataclass(frozen=True)
class Words:
    """title: one line. table: rows of text, the header first. verdicts: a sentence a pair of arms.

    brief: the verdicts for a terminal, where many pairs share a line. notes: a sentence or two each.
    """

    title: str
    table: list[list[str]]
    verdicts: list[str]
    brief: list[str]
    notes: list[str]


def describe_comparison(results: Results, found: Findings) -> Words:
    brief = found.verdicts if len(found.pairs) <= MANY_PAIRS else _brief(found)
    return Words(make_title(results), _table(results, found), found.verdicts, brief, _notes(results, found))


def make_title(results: Results) -> str:
    """The line above every table and figure: name, protocol, data set, and what a reader must not overlook."""
    config = results.config
    data = SYNTHETIC if results.synthetic else config["dataset"]["name"]
    parts = [f"{config['name']}: {config['protocol']} protocol", data]
    sizes, lengths = _distinct(results, "train_size"), _distinct(results, "num_epochs")
    held_out = [n or 0 for n in _distinct(results, "val_size")]
    if sizes != [None]:
        parts.append(f"{' or '.join('all' if n is None else f'first {n:,}' for n in sizes)} training images")
        if any(held_out):
            parts.append(f"{' or '.join(f'{n:,}' for n in held_out)} of them held out")
    if len(lengths) == 1 and lengths != [None]:
        parts.append(_epochs(lengths))
    title = ", ".join(parts)
    if results.missing:
        count = len(config["arms"]) * len(config["seeds"])
        failed = f", {len(results.failures)} failed" if results.failures else ""
        title += f" (incomplete: {count - len(results.missing)} of {count} runs{failed})"
    return title


def make_summary(results: Results, words: Words) -> str:
    """The text of summary.md."""
    title = markdown_text(words.title)
    blocks = [
        f"# {title}",
        "  \n".join(map(markdown_text, words.brief)),
        as_markdown(words.table),
        f"![{title}](figure.png)",
        as_bullets(words.notes),
    ]
    if words.brief != words.verdicts:
        blocks += ["## Each pair", as_bullets(words.verdicts)]
    runs = [run for of_arm in results.runs.values() for run in of_arm.values()]
    rows = [[run.arm, str(run.seed), run.id] for run in runs]
    blocks += ["## Runs", as_markdown([["arm", "seed", "run"], *rows])]
    blocks += ["## Environment", as_environment(results.config["environment"])]
    return "\n\n".join(blocks) + "\n"


def flat(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting of an arm by its full name, "model.width" for example."""
    settings: dict[str, Any] = {}
    for name, value in config.items():
        settings |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return settings


def _distinct(results: Results, name: str) -> list[Any]:
    """The values that a setting has in the arms, each once."""
    values = [flat(arm).get(name) for arm in results.config["arms"].values()]
    return [value for i, value in enumerate(values) if value not in values[:i]]


def _epochs(counts: list[Any]) -> str:
    return f"{' / '.join(map(str, counts))} epoch{'s' * (counts != [1])}"


def _brief(found: Findings) -> list[str]:
    """A line for the pairs that are told apart, and one for each reason why others are not."""
    told = [pair for pair in found.pairs if pair.told_apart]
    others: dict[str, list[str]] = {}
    for pair in found.pairs:
        if not pair.told_apart:
            untested = f"no test ({pair.difference.test.removeprefix('none: ')})"
            why = untested if pair.p_holm is None else "not told apart"
            others.setdefault(why, []).append(f"{pair.name_a} and {pair.name_b}")
    lines = [f"told apart (the better first, in points): {'; '.join(map(_better_first, told))}"] if told else []
    for why, names in others.items():
        which = f"all {len(names)} pairs of arms" if len(names) == len(found.pairs) else "; ".join(names)
        lines.append(f"{why}: {which}")
    return [*(line + found.label for line in lines), "each pair with its interval: summary.md, report.html"]


def _better_first(pair: Pair) -> str:
    mean = pair.difference.mean or 0.0
    better, worse = (pair.name_a, pair.name_b) if mean >= 0 else (pair.name_b, pair.name_a)
    return f"{better} over {worse} by {abs(mean):.2f}"


# ---------------------------------------------------------------------------------------------------------- table


def _table(results: Results, found: Findings) -> list[list[str]]:
    """A row an arm. A column after the first five that no arm can fill is left out."""
    arms = found.summary["arms"].values()
    chosen = "".join(f", {SELECTED_ON[selection]}" for selection in results.selections)
    best_on_test = f"{AS_PUBLISHED} (%)"
    columns = {
        "arm": list(results.runs),
        "n": [str(arm["n"]) for arm in arms],
        f"test accuracy (%){chosen}": [mean_sd(arm["values"].values()) for arm in arms],
        PER_SEED: [_per_seed(results, arm["values"], "{:.2f}") for arm in arms],
        EPOCH: [_per_seed(results, arm["epochs"], "{}") for arm in arms],
        "last epoch, test (%)": [mean_sd(arm["last_epoch_test_accuracy"].values()) for arm in arms],
        best_on_test: [mean_sd(best["test_accuracy"] for best in arm[AS_PUBLISHED].values()) for arm in arms],
        "published best / last (%)": [_published(arm["published"]) for arm in arms],
    }
    left_out = [header for header, cells in list(columns.items())[5:] if not any(cells)]
    left_out += [best_on_test] * (results.selections == ["test"])  # the third column shows it
    return without_columns(from_columns(columns), left_out)


def _published(entry: dict[str, Any] | None) -> str:
    return " / ".join(f"{entry[key]:.2f}" if key in entry else "-" for key in ("best", "last")) if entry else ""


def _per_seed(results: Results, values: dict[str, Any], form: str) -> str:
    """The values in the order of the seeds, with a dash for a run that has not finished."""
    seeds = [str(seed) for seed in results.config["seeds"]]
    return ", ".join(form.format(values[seed]) if seed in values else "-" for seed in seeds)


# ---------------------------------------------------------------------------------------------------------- notes


def _notes(results: Results, found: Findings) -> list[str]:
    """What a reader has to know to read the numbers."""
    arms = found.summary["arms"]
    seeds = ", ".join(map(str, results.config["seeds"]))
    dataset = [f"{key} {value}" for key, value in results.config["dataset"].items() if key != "synthetic"]
    notes = [f"Data: {', '.join([*dataset, *[SYNTHETIC] * results.synthetic])}.", _settings(results)]
    if len(results.config["seeds"]) == 1:
        notes.append(f"One seed ({seeds}): no deviation, no interval.")
    else:
        notes.append(
            f"± is the sample standard deviation over seeds. Values per seed are in the order of seeds {seeds}."
        )
    notes += [f"Failed: {arm} seed {seed}: {reason}." for (arm, seed), reason in results.failures.items()]
    notes += [note for arm in results.runs for run in results.finished(arm) for note in _incidents(run)]
    if results.missing:
        missing = ", ".join(f"{arm} seed {seed}" for arm, seed in results.missing)
        first = "Mend what made runs fail, then run" if results.failures else "Run"
        notes.append(f"Incomplete, missing: {missing}. {first} the same command again to finish.")
    weights = {name: " and ".join(arm["weights"]) for name, arm in arms.items() if arm["weights"]}
    if any(kind != "fast" for kind in weights.values()):
        notes.append("Evaluated weights: " + ", ".join(f"{name} {kind}" for name, kind in weights.items()) + ".")
    names = ("jax", "device", "num_devices", "commit")
    made = [environment for arm in results.runs for environment in results.environments(arm)]
    used = sorted({", ".join(f"{name} {one.get(name)}" for name in names) for one in made})
    if len(used) > 1:
        notes.append(f"Runs come from different environments: {'; '.join(used)}.")
    sources: dict[str, list[str]] = {}  # one note a source, not one an arm
    for name, arm in arms.items():
        if arm["published"]:
            sources.setdefault(arm["published"].get("source", "no source given"), []).append(name)
    notes += [f"Published, {', '.join(names)}: {AS_PUBLISHED}, {source}." for source, names in sources.items()]
    return notes


def _settings(results: Results) -> str:
    """What was trained: the settings that say most, each once where the arms agree."""

    def of(name: str) -> str:
        return " / ".join(map(str, _distinct(results, name)))

    images = of("train_size").replace("None", "all")
    return (
        f"Each run: {_epochs(_distinct(results, 'num_epochs'))}, batch {of('batch_size')}, {images} training images, "
        f"{of('val_size')} of them held out; width {of('model.width')}, stages {of('model.stage_sizes')}, "
        f"{of('model.precision')}."
    )


def _incidents(run: Run) -> list[str]:
    """What a finished run went through that another of its config would not."""
    scores, name = run.scores or {}, f"{run.arm} seed {run.seed}"
    notes = []
    if skipped := scores.get("skipped_steps"):
        notes.append(f"Skipped: {name}: {skipped} step{'s' * (skipped > 1)} whose numbers were not finite.")
    used = [*(scores.get("earlier_backends") or []), scores.get("environment", {})]
    if len(used) > 1:
        parts = [f"jax {b.get('jax')} on {b.get('num_devices')} x {b.get('device')}" for b in used]
        notes.append(f"Continued elsewhere: {name}: {', then '.join(parts)}. The same to rounding, not bit for bit.")
    return notes
