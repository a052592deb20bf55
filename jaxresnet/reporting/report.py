"""Tables, verdicts, figures and pages from folders of results alone: nothing is trained to draw them again."""

from dataclasses import dataclass
from pathlib import Path

from jaxresnet.errors import ResultsError, StorageError, warn
from jaxresnet.files import local_path, write_json, write_text
from jaxresnet.reporting.comparison import describe_comparison, make_summary
from jaxresnet.reporting.evaluation import render_evaluation
from jaxresnet.reporting.figures import draw, make_curves
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
    folder = local_path(folder)
    table, html = render_models(folder), folder / "report.html"
    write_text(html, make_page(Section(folder, "measurement")))
    return table, html


def render_tree(root: str | Path) -> TreeReport:
    """Render every comparison and measurement in the folders of `root`, and write one page over all of them,
    report.html in `root`.

    Where a run repeats a published one, reproduction.json, .md and .png in `root` set the two side by side. Folders
    that are damaged or foreign are skipped and named. Raises ResultsError where `root` holds none, or is the folder of
    one itself.
    """
    root = local_path(root)
    if comparison_path(root).is_file() or measurement_path(root).is_file():
        raise ResultsError(f"{root}: is the folder of one comparison or measurement; give the folder around several")
    tree = read_tree(root)
    reports: dict[str, Report] = {}
    sections: dict[str, Section] = {}
    for name, results in tree.comparisons.items():
        reports[name], sections[name] = _render(results)
    for name, folder in tree.measurements.items():
        render_measurement(folder)
        sections[name] = Section(folder, "measurement")
    found = reproduce(tree.comparisons)
    shown = draw_reproduction(root, found)
    html = root / "report.html"
    in_order = [sections[name] for name in sorted(sections)]
    write_text(html, make_tree_page(f"Comparisons in {root.resolve().name}", in_order, tree.skipped, shown))
    narrow = [[name, *cells] for name, _, *cells in shown.table]  # without what it trains
    return TreeReport(html, reports, NOT_REPRODUCED if shown.empty else aligned(narrow), tree.skipped)


def _render(results: Results) -> tuple[Report, Section]:
    """Write everything of a comparison; return also its part of a page."""
    if evaluation_path(results.folder).is_file():
        try:
            render_evaluation(results.folder)
        except Exception as e:  # it costs the evaluation, not the comparison
            if isinstance(e, StorageError):
                raise
            damaged = f"{evaluation_path(results.folder)}: damaged ({e!r}); delete it and run the comparison again"
            warn(str(e) if isinstance(e, ResultsError) else damaged)
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
    write_json(report.summary_json, found.summary)
    png = draw(report.figure, lambda: make_curves(results, words.title))
    section = Section(results.folder, words.title, results, words, png)
    for path, make in (
        (report.summary_md, lambda: make_summary(results, words, has_figure=png is not None)),
        (report.html, lambda: make_page(section)),
    ):
        try:
            text = make()
        except Exception as e:  # a file that fails costs that file
            warn(f"{path}: not written ({e!r}); all else is there")
            path.unlink(missing_ok=True)
        else:
            write_text(path, text)
    return report, section
