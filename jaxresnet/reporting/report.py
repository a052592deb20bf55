"""Tables, verdicts, figures and pages from folders of results alone: nothing is trained to draw them again."""

from dataclasses import dataclass
from pathlib import Path

from jaxresnet.errors import ResultsError
from jaxresnet.files import write_bytes, write_json, write_text
from jaxresnet.reporting.comparison import describe_comparison, make_summary
from jaxresnet.reporting.evaluation import render_evaluation
from jaxresnet.reporting.figures import make_curves, to_png
from jaxresnet.reporting.models import render_models
from jaxresnet.reporting.page import Section, make_page, make_tree_page
from jaxresnet.reporting.reproduction import NOT_REPRODUCED, draw_reproduction
from jaxresnet.reporting.tables import aligned
from jaxresnet.results.findings import findings
from jaxresnet.results.reproduction import reproduce
from jaxresnet.results.schemas import comparison_path, evaluation_path, measurement_path
from jaxresnet.results.store import Results, read_results
from jaxresnet.results.tree import read_tree


@dataclass(frozen=True)
class Report:
    """What `render` wrote, and what a script prints at its end.

    table: aligned text with the title above it and the notes below. verdict: a sentence a pair of arms, a line each; of
    many pairs a line for those told apart and one for the others.
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

    reports: {name of the folder: the report of its comparison}. table: the published runs beside ours, aligned, or a
    sentence where none was repeated. skipped: {name: reason}.
    """

    html: Path
    reports: dict[str, Report]
    table: str
    skipped: dict[str, str]


def render(folder: str | Path) -> Report:
    """Write summary.json, summary.md, figure.png and report.html of the comparison in `folder`, from what its runs
    have written; and evaluation.md and confusion.png, where there is an evaluation.json.

    An incomplete comparison is rendered as far as it goes, and says which runs are missing.
    Raises ResultsError for a folder that is damaged or not a comparison's.
    """
    report, _ = _render(read_results(folder))
    return report


def render_measurement(folder: str | Path) -> tuple[str, Path]:
    """Draw table and figure of the measurement in `folder` again, and write its report.html.

    Returns the table, as text to print, and the path of the page. Raises ResultsError for a damaged measurement.
    """
    table, html = render_models(folder), Path(folder) / "report.html"
    write_text(html, make_page(Section(Path(folder), "measurement")))
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
    sections: dict[str, Section] = {}
    for name, results in tree.comparisons.items():
        try:
            reports[name], sections[name] = _render(results)
        except ResultsError as error:  # of its evaluation
            skipped[name] = str(error)
    for name, folder in tree.measurements.items():
        render_measurement(folder)
        sections[name] = Section(folder, "measurement")
    found = reproduce(tree.comparisons)
    shown = draw_reproduction(root, found)
    html = root / "report.html"
    in_order = [sections[name] for name in sorted(sections)]
    write_text(html, make_tree_page(f"Comparisons in {root.resolve().name}", in_order, skipped, shown))
    narrow = [[name, *cells] for name, _, *cells in shown.table]  # without what it trains
    return TreeReport(html, reports, aligned(narrow) if shown.figure else NOT_REPRODUCED, skipped)


def _render(results: Results) -> tuple[Report, Section]:
    """Write everything of a comparison; return also its part of a page."""
    if evaluation_path(results.folder).is_file():
        render_evaluation(results.folder)
    found = findings(results)
    words = describe_comparison(results, found)
    report = Report(
        summary_json=results.folder / "summary.json",
        summary_md=results.folder / "summary.md",
        figure=results.folder / "figure.png",
        html=results.folder / "report.html",
        table="\n".join([words.title, "", aligned(words.table), "", *words.notes]),
        verdict="\n".join(words.brief),
        complete=not results.missing,
    )
    png = to_png(lambda: make_curves(results, words.title))
    section = Section(results.folder, words.title, results, words, png)
    write_json(report.summary_json, found.summary)
    write_bytes(report.figure, png)
    write_text(report.summary_md, make_summary(results, words))
    write_text(report.html, make_page(section))
    return report, section
