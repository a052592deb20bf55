"""What stands on report.html. The page itself is `page.html.jinja`, which escapes every text."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jaxresnet.reporting.comparison import Words, flat
from jaxresnet.reporting.reproduction import Drawn
from jaxresnet.reporting.tables import Table, environment_table
from jaxresnet.results.schemas import measurement_path
from jaxresnet.results.store import Results

# What `report` writes itself: everything else of its kind in a folder is an extra.
OWN = ("figure.png", "summary.md", "reproduction.png", "reproduction.md")


class Extra(NamedTuple):
    """A Markdown text or a picture (PNG bytes) from a folder; the other is None."""

    name: str
    text: str | None = None
    png: bytes | None = None


@dataclass(frozen=True)
class Section:
    """What a page shows of the folder of a comparison, or of a measurement, which has neither results, words nor
    figure (PNG bytes)."""

    folder: Path
    title: str
    results: Results | None = None
    words: Words | None = None
    figure: bytes | None = None

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def measurement(self) -> str:
        return _read_text(measurement_path(self.folder))

    @property
    def extras(self) -> list[Extra]:
        """The texts (*.md) and pictures (*.png) of the folder beside those that every comparison has."""
        names = [path for kind in ("*.md", "*.png") for path in self.folder.glob(kind)]
        paths = sorted(path for path in names if path.name not in OWN and not path.name.startswith("."))
        return [
            Extra(path.name, png=path.read_bytes()) if path.suffix == ".png" else Extra(path.name, _read_text(path))
            for path in paths
        ]

    @property
    def settings(self) -> tuple[Table, Table]:
        """The settings in which the arms differ, and all of them."""
        assert self.results
        arms = {arm: flat(config) for arm, config in self.results.config["arms"].items()}
        names = dict.fromkeys(name for config in arms.values() for name in config)
        rows = [[name, *(str(config.get(name, "")) for config in arms.values())] for name in names]
        header = ["setting", *arms]
        return [header, *(row for row in rows if len(set(row[1:])) > 1)], [header, *rows]


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")


def make_page(section: Section) -> str:
    """report.html of one comparison or measurement."""
    return _template().render(title=section.title, own=section)


def make_tree_page(title: str, sections: Sequence[Section], skipped: Mapping[str, str], reproduction: Drawn) -> str:
    """report.html of a folder around several, with a table of contents. skipped: {name of a folder: why}."""
    return _template().render(title=title, sections=sections, skipped=skipped, reproduction=reproduction)


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    loader = PackageLoader("jaxresnet.reporting", ".")
    jinja = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    jinja.filters["environment_table"] = environment_table
    jinja.filters["markdown"] = markdown_to_html
    jinja.filters["data_uri"] = lambda png: f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return jinja.get_template("page.html.jinja")


def markdown_to_html(text: str) -> Any:
    """A text of a results folder as HTML, its "#" as <h3>, with markdown-it (the parser that rich uses).

    HTML in the text is shown and not obeyed. Images are left out (the page embeds the pictures of a folder itself), of
    links the text is kept.
    """
    from markdown_it import MarkdownIt
    from markupsafe import Markup

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 2)}"
    for kind in ("image", "link_open", "link_close"):
        markdown.add_render_rule(kind, lambda *_: "")
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return Markup(markdown.renderer.render(tokens, markdown.options, {}))
