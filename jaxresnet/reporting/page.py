"""report.html: one file with everything in it, which a browser opens from disk. No script, nothing from the network."""

import base64
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

from jaxresnet.reporting.markdown import markdown_to_html
from jaxresnet.reporting.tables import Table, as_html
from jaxresnet.results.findings import Findings
from jaxresnet.results.store import Results

# What `report` writes itself: everything else of its kind in a folder is an extra, shown below.
OWN = ("figure.png", "summary.md", "reproduction.png", "reproduction.md")
LARGEST = 4_000_000  # bytes of an extra picture or text that the page still takes in

_STYLE = """
:root { color-scheme: light; }
body { background: #fff; color: #1a1a1a; font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 64rem;
  padding: 1rem; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.35rem; } h3 { font-size: 1.1rem; }
section { border-top: 2px solid #ccc; margin-top: 2.5rem; }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .875rem; font-variant-numeric: tabular-nums; }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .7rem .3rem 0; text-align: left; vertical-align: top; }
th { border-bottom: 2px solid #888; vertical-align: bottom; }
th, td { overflow-wrap: normal; } td { min-width: 12rem; } td.short { min-width: 0; white-space: nowrap; }
img { max-width: 100%; height: auto; }
figure { margin: 1rem 0; } figcaption { color: #555; font-size: .875rem; }
pre, code { background: #f4f4f4; font-size: .85rem; } pre { padding: .6rem; }
.verdict { border-left: 4px solid #0072b2; padding-left: .8rem; } .verdict p { margin: .35rem 0; }
.warning { border-left: 4px solid #d55e00; padding-left: .8rem; }
.notes { color: #333; font-size: .9rem; }
details { margin: .6rem 0; } summary { cursor: pointer; color: #0050a0; }
@media (max-width: 45rem) { .figure { overflow-x: auto; } .figure img { max-width: none; width: 44rem; } }
@media print { body { font-size: 10pt; max-width: none; padding: 0; } .wide { overflow: visible; }
  .figure, tr { break-inside: avoid; } h2, h3 { break-after: avoid; } td.short { white-space: normal; } }
"""


class Entry(NamedTuple):
    """A line of the table of contents and the section that it leads to."""

    name: str
    what: str
    section: str


def document(title: str, parts: Iterable[str]) -> str:
    """The whole file. `parts` are HTML, `title` is text."""
    # The policy forbids everything but the page's own style and embedded pictures, should a text ever get through.
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return "\n".join(
        [
            "<!DOCTYPE html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{html.escape(title)}</title>",
            f"<style>{_STYLE}</style>",
            "</head>",
            "<body>",
            f"<h1>{html.escape(title)}</h1>",
            *parts,
            "</body>",
            "</html>",
            "",
        ]
    )


def comparison(results: Results, found: Findings, figure: bytes) -> str:
    """A comparison: verdicts, table, figure, notes, what else its folder holds, settings, environment."""
    used = results.config["environment"]
    made = [f"{name} {used[name]}" for name in ("device", "jax", "commit") if used.get(name)]
    dataset = ", ".join(f"{key} {value}" for key, value in results.config["dataset"].items())
    parts = [
        warning("Incomplete: some runs have not finished.") if results.missing else "",
        _verdicts(found),
        as_html(found.table),
        picture(figure, f"{found.title}: loss and accuracy over the epochs"),
        bullets([f"Data: {dataset}.", *found.notes]),
        extras(results.folder),
        _settings(results.config["arms"]),
        details("Environment", _environment(used)),
        f'<p class="notes">{html.escape(", ".join(made))}</p>',
    ]
    return "\n".join(part for part in parts if part)


def measurement(folder: Path) -> str:
    """A folder without a comparison: its texts and pictures, and the measurement as it was written."""
    text = _read_text(folder / "measurement.json")
    return "\n".join([extras(folder), details("measurement.json", f'<pre class="wide">{html.escape(text)}</pre>')])


def contents(entries: Sequence[Entry]) -> str:
    """The table of contents. The names lead to the sections that `section` makes of the same entries."""
    lines = [
        f'<tr><td><a href="#s-{quote(entry.name)}">{html.escape(entry.name)}</a></td>'
        f"<td>{html.escape(entry.what)}</td></tr>"
        for entry in entries
    ]
    return '<nav class="wide"><table>\n' + "\n".join(lines) + "\n</table></nav>"


def section(entry: Entry) -> str:
    return (
        f'<section id="s-{html.escape(entry.name)}">\n<h2>{html.escape(entry.name)}</h2>\n'
        f"<p>{html.escape(entry.what)}</p>\n{entry.section}\n</section>"
    )


def warning(text: str) -> str:
    return f'<p class="warning">{html.escape(text)}</p>'


def bullets(texts: Iterable[str]) -> str:
    return '<ul class="notes">\n' + "\n".join(f"<li>{html.escape(text)}</li>" for text in texts) + "\n</ul>"


def details(summary: str, body: str, is_open: bool = False) -> str:
    return f"<details{' open' if is_open else ''}><summary>{html.escape(summary)}</summary>\n{body}\n</details>"


def picture(png: bytes, caption: str) -> str:
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    text = html.escape(caption)
    return (
        f'<figure><div class="figure"><img alt="{text}" src="{source}"></div><figcaption>{text}</figcaption></figure>'
    )


def extras(folder: Path) -> str:
    """The texts (*.md) and pictures (*.png) of a folder beside those that every comparison has."""
    parts = []
    for path in sorted(path for kind in ("*.md", "*.png") for path in folder.glob(kind) if path.name not in OWN):
        if path.name.startswith("."):
            continue
        if path.stat().st_size > LARGEST:
            parts.append(warning(f"{path.name} is left out: larger than {LARGEST // 1_000_000} MB."))
        elif path.suffix == ".png":
            parts.append(picture(path.read_bytes(), path.name))
        else:
            parts.append(markdown_to_html(_read_text(path), top=3))
    return "\n".join(parts)


def _verdicts(found: Findings) -> str:
    text = '<div class="verdict">\n' + "\n".join(f"<p>{html.escape(text)}</p>" for text in found.brief) + "\n</div>"
    if found.brief == found.verdicts:
        return text
    return text + "\n" + details(f"Each of the {len(found.verdicts)} pairs", bullets(found.verdicts))


def _settings(arms: Mapping[str, Any]) -> str:
    """The settings in which the arms differ, in sight; all of them behind a click."""
    flat = {arm: _flat(config) for arm, config in arms.items()}
    names = list(dict.fromkeys(name for config in flat.values() for name in config))
    rows = [[name, *(config.get(name, "") for config in flat.values())] for name in names]
    header = ["setting", *arms]
    differing = [row for row in rows if len(set(row[1:])) > 1]
    parts = [details("All settings", as_html([header, *rows]))]
    if differing:
        parts.insert(0, details("Settings in which the arms differ", as_html([header, *differing]), is_open=True))
    return "\n".join(parts)


def _flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    flat: dict[str, str] = {}
    for name, value in config.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: str(value)}
    return flat


def _environment(used: Mapping[str, Any]) -> str:
    table: Table = [["name", "value"], *([name, str(value)] for name, value in used.items() if value is not None)]
    return as_html(table)


def _read_text(path: Path) -> str:
    return path.read_text("utf-8", errors="replace")
