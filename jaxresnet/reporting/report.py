"""Tables, verdicts, figures and pages from folders of results alone: nothing is trained to draw them again."""

from dataclasses import dataclass
from pathlib import Path

from jaxresnet.comparison.evaluation import render_evaluation
from jaxresnet.comparison.model_costs import render_models
from jaxresnet.errors import ResultsError
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.reporting import page
from jaxresnet.reporting.figure_reproduction import draw_reproduction
from jaxresnet.reporting.figures import draw_figure
from jaxresnet.reporting.tables import aligned, as_bullets, as_html, as_markdown, markdown_text, without_columns
from jaxresnet.results.findings import AS_PUBLISHED, EPOCH, PER_SEED, SYNTHETIC, Findings, findings
from jaxresnet.results.reproduction import READING, SPARE, WHAT_COLUMNS, Reproduction, reproduce
from jaxresnet.results.schemas import comparison_path, evaluation_path, measurement_path
from jaxresnet.results.store import Results, read_results
from jaxresnet.results.tree import read_tree

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
    have written; and from evaluation.json, where there is one, what `render_evaluation` writes.

    An incomplete comparison is rendered as far as it goes, and says which runs are missing.
    Raises ResultsError for a folder that is damaged or not a comparison's.
    """
    report, title, body = _render(read_results(folder))
    write_text(report.html, page.document(title, [body]))
    return report


def render_measurement(folder: str | Path) -> tuple[str, Path]:
    """Draw table and figure of the measurement in `folder` again, and write its report.html.

    Returns the table, as text to print, and the path of the page. Raises ResultsError for a damaged measurement.
    """
    table, body = render_models(folder), page.measurement(Path(folder))
    html = Path(folder) / "report.html"
    write_text(html, page.document(f"{Path(folder).resolve().name}: measurement", [body]))
    return table, html


def render_tree(root: str | Path) -> TreeReport:
    """Render every comparison and measurement in the folders of `root`, and write one page over all of them,
    report.html in `root`.

    Where a run repeats a published one, reproduction.json, .md and .png in `root` set the two side by side. Folders
    that are damaged or foreign are skipped and named. Raises ResultsError where `root` holds none, or is the folder of
    one itself.
    """
    root = Path(root)
    if comparison_path(root).is_file() or measurement_path(root).is_file():
        raise ResultsError(f"{root}: is the folder of one comparison or measurement; give the folder around several")
    tree = read_tree(root)
    skipped = dict(tree.skipped)
    reports: dict[str, Report] = {}
    entries: dict[str, page.Entry] = {}
    for name, results in tree.comparisons.items():
        try:
            report, title, body = _render(results)
        except ResultsError as error:  # of what was added to it
            skipped[name] = str(error)
            continue
        write_text(report.html, page.document(title, [body]))
        reports[name], entries[name] = report, page.Entry(name, title, body)
    for name, folder in tree.measurements.items():
        render_measurement(folder)
        entries[name] = page.Entry(name, "measurement", page.measurement(folder))
    reproduction = reproduce(tree.comparisons)
    in_order = [entries[name] for name in sorted(entries)]
    parts = [
        page.contents(in_order),
        *(page.warning(f"Skipped {name}: {reason}") for name, reason in skipped.items()),
        _reproduction(root, reproduction),
        *map(page.section, in_order),
    ]
    html = root / "report.html"
    write_text(html, page.document(f"Comparisons in {root.resolve().name}", parts))
    table = aligned(reproduction.table, SPARE, 16) if reproduction.num_runs else NOT_REPRODUCED
    return TreeReport(html, reports, list(tree.measurements), reproduction, table, skipped)


def _render(results: Results) -> tuple[Report, str, str]:
    """Write everything but the page; return the report, the title, and the HTML of the page's body."""
    if evaluation_path(results.folder).is_file():
        render_evaluation(results.folder)
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
    notes = [f"Data: {dataset}{', ' + SYNTHETIC if results.synthetic else ''}.", *found.notes]
    title = markdown_text(found.title)
    blocks = [
        f"# {title}",
        "  \n".join(map(markdown_text, found.brief)),
        as_markdown(found.table),
        f"![{title}](figure.png)",
        "\n".join(f"- {markdown_text(note)}" for note in notes),
        "## Environment",
        as_bullets(results.config["environment"]),
    ]
    if found.brief != found.verdicts:
        blocks[5:5] = ["## Each pair", "\n".join(f"- {markdown_text(verdict)}" for verdict in found.verdicts)]
    return "\n\n".join(blocks) + "\n"


def _reproduction(root: Path, reproduction: Reproduction) -> str:
    """Write the reproduction's files into `root`, or remove those of an earlier one; return its part of the page."""
    heading = "<h2>The published runs and ours</h2>"
    json_file, png_file, text_file = (root / f"reproduction.{kind}" for kind in ("json", "png", "md"))
    if not reproduction.num_runs:
        for path in (json_file, png_file, text_file):
            path.unlink(missing_ok=True)
        return f"{heading}\n<p>{NOT_REPRODUCED}</p>\n{page.bullets(reproduction.notes)}"
    png = draw_reproduction(reproduction)
    caption = "Test accuracy of our runs minus the published best, in percentage points"
    notes = [*READING, *reproduction.notes]
    write_json(json_file, reproduction.to_json())
    write_bytes(png_file, png)
    blocks = [
        "# The published runs and ours",
        as_markdown(reproduction.table),
        f"![{caption}]({png_file.name})",
        "\n".join(f"- {note}" for note in notes),
    ]
    write_text(text_file, "\n\n".join(blocks) + "\n")
    table = as_html(without_columns(reproduction.table, WHAT_COLUMNS))
    what = page.details("What each published run trains", as_html([row[:3] for row in reproduction.table]))
    return "\n".join([heading, table, what, page.picture(png, caption), page.bullets(notes)])
