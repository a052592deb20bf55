"""Tables, verdicts, figures and pages from folders of results alone: nothing is trained to draw them again."""

from dataclasses import dataclass
from pathlib import Path

from jaxresnet import page
from jaxresnet.errors import ResultsError
from jaxresnet.figure import draw_figure
from jaxresnet.figure_reproduction import draw_reproduction
from jaxresnet.findings import AS_PUBLISHED, EPOCH, PER_SEED, SYNTHETIC, Findings, findings
from jaxresnet.reproduction import EPOCHS, WHAT, Reproduction, reproduce
from jaxresnet.results import Results, config_path, read_results, write_bytes, write_json, write_text
from jaxresnet.tables import aligned, as_html, as_markdown, without_columns
from jaxresnet.tree import read_tree

NOT_REPRODUCED = "No finished run here repeats a published run on the whole of CIFAR-10."


@dataclass(frozen=True)
class Report:
    """What `render` wrote, and what a script prints at its end.

    table: aligned text with the title above it and the notes below.
    verdict: a sentence a pair of arms, a line each; of many pairs only those told apart, and the others by name.
    """

    summary_json: Path
    summary_md: Path
    figure: Path
    html: Path
    table: str
    verdict: str
    complete: bool


@dataclass(frozen=True)
class TreeReport:
    """What `render_tree` wrote, and what a script prints at its end.

    reports: {name of the folder: the report of its comparison}. measurements: names of the folders that hold one.
    table: the published runs beside ours, aligned, or a sentence where none was repeated. skipped: {name: reason}.
    """

    html: Path
    reports: dict[str, Report]
    measurements: list[str]
    reproduction: Reproduction
    table: str
    skipped: dict[str, str]


def render(folder: str | Path) -> Report:
    """Write summary.json, summary.md, figure.png and report.html of the comparison in `folder`, from what its runs
    have written.

    An incomplete comparison is rendered as far as it goes, and says which runs are missing.
    Raises ResultsError for a folder that is damaged or not a comparison's.
    """
    report, title, body = _render(read_results(folder))
    write_text(report.html, page.document(title, [body]))
    return report


def render_tree(root: str | Path) -> TreeReport:
    """Render every comparison in the folders of `root`, and write one page over all of them, report.html in `root`.

    Where a run repeats a published one, reproduction.json, .md and .png in `root` set the two side by side. Folders
    that are damaged or foreign are skipped and named. Raises ResultsError where `root` holds no comparison, or is one.
    """
    root = Path(root)
    if config_path(root).is_file():
        raise ResultsError(f"{root}: is the folder of one comparison; give the folder around several")
    tree = read_tree(root)
    reports: dict[str, Report] = {}
    entries: dict[str, page.Entry] = {}
    for name, results in tree.comparisons.items():
        report, title, body = _render(results)
        write_text(report.html, page.document(title, [body]))
        reports[name], entries[name] = report, page.Entry(name, title, body)
    for name, folder in tree.measurements.items():
        entries[name] = page.Entry(name, "measurement", page.measurement(folder))
    reproduction = reproduce(tree.comparisons)
    in_order = [entries[name] for name in sorted(entries)]
    parts = [
        page.contents(in_order),
        *(page.warning(f"Skipped {name}: {reason}") for name, reason in tree.skipped.items()),
        _reproduction(root, reproduction),
        *map(page.section, in_order),
    ]
    html = root / "report.html"
    write_text(html, page.document(f"Comparisons in {root.resolve().name}", parts))
    table = aligned(reproduction.table, (WHAT, EPOCHS), 16) if reproduction.num_runs else NOT_REPRODUCED
    return TreeReport(html, reports, list(tree.measurements), reproduction, table, tree.skipped)


def _render(results: Results) -> tuple[Report, str, str]:
    """Write everything but the page; return the report, the title, and the HTML of the page's body."""
    found = findings(results)
    report = Report(
        summary_json=results.folder / "summary.json",
        summary_md=results.folder / "summary.md",
        figure=results.folder / "figure.png",
        html=results.folder / "report.html",
        table="\n".join([found.title, "", aligned(found.table, (PER_SEED, EPOCH), 14), "", *found.notes]),
        verdict="\n".join(found.brief),
        complete=not results.missing,
    )
    write_json(report.summary_json, found.summary)
    png = draw_figure(results, found.title, AS_PUBLISHED)
    write_bytes(report.figure, png)
    write_text(report.summary_md, _markdown(results, found))
    return report, found.title, page.comparison(results, found, png)


def _markdown(results: Results, found: Findings) -> str:
    dataset = ", ".join(f"{key} {value}" for key, value in results.config["dataset"].items() if key != "synthetic")
    environment = [f"- {key}: `{value}`" for key, value in results.config["environment"].items() if value is not None]
    notes = [f"Data: {dataset}{', ' + SYNTHETIC if results.synthetic else ''}.", *found.notes]
    blocks = [
        f"# {found.title}",
        "  \n".join(found.brief),
        as_markdown(found.table),
        f"![{found.title}](figure.png)",
        "\n".join(f"- {note}" for note in notes),
        "## Environment",
        "\n".join(environment),
    ]
    if found.brief != found.verdicts:
        blocks[5:5] = ["## Each pair", "\n".join(f"- {verdict}" for verdict in found.verdicts)]
    return "\n\n".join(blocks) + "\n"


def _reproduction(root: Path, reproduction: Reproduction) -> str:
    """Write the reproduction's files into `root`; return its part of the page."""
    heading = "<h2>The published runs and ours</h2>"
    if not reproduction.num_runs:
        return f"{heading}\n<p>{NOT_REPRODUCED}</p>\n{page.bullets(reproduction.notes[3:])}"
    png = draw_reproduction(reproduction)
    caption = "Test accuracy of our runs minus the published best, in percentage points"
    write_json(root / "reproduction.json", reproduction.to_json())
    write_bytes(root / "reproduction.png", png)
    blocks = [
        "# The published runs and ours",
        as_markdown(reproduction.table),
        f"![{caption}](reproduction.png)",
        "\n".join(f"- {note}" for note in reproduction.notes),
    ]
    write_text(root / "reproduction.md", "\n\n".join(blocks) + "\n")
    table = as_html(without_columns(reproduction.table, (WHAT, EPOCHS)))
    what = page.details("What each published run trains", as_html([row[:3] for row in reproduction.table]))
    return "\n".join([heading, table, what, page.picture(png, caption), page.bullets(reproduction.notes)])
