"""A table, given as rows of text with the header first, for a terminal and for Markdown (for HTML see `page`)."""

import re
import textwrap
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from jaxresnet.results.statistics import mean_and_sd

Table = Sequence[Sequence[str]]

WIDTH = 120  # characters of a terminal that holds a table without breaking its lines


def mean_sd(values: Iterable[float]) -> str:
    """ "91.02 ± 0.14" (sample standard deviation), "91.02" for one value, "" for none."""
    values = list(values)
    if not values:
        return ""
    mean, sd = mean_and_sd(values)
    return f"{mean:.2f}" if sd is None else f"{mean:.2f} ± {sd:.2f}"


def from_columns(columns: Mapping[str, Sequence[str]]) -> list[list[str]]:
    """{header: cells} as a table."""
    return [list(columns), *map(list, zip(*columns.values(), strict=True))]


def without_columns(table: Table, headers: Collection[str]) -> list[list[str]]:
    kept = [i for i, header in enumerate(table[0]) if header not in headers]
    return [[row[i] for i in kept] for row in table]


def aligned(table: Table, spare: Sequence[str] = (), header_width: int = 18) -> str:
    """The table for a terminal: columns padded, long headers wrapped at `header_width` characters.

    spare: headers of columns that are left out, one after the other, while the table is wider than a terminal; the
    line below the table then says so.
    """
    left_out: list[str] = []
    lines = _padded(table, header_width)
    for header in spare:
        if max(map(len, lines)) <= WIDTH:
            break
        if header in table[0]:
            left_out.append(header)
            lines = _padded(without_columns(table, left_out), header_width)
    if left_out:
        lines.append(f"(too wide for a terminal, see report.html: {', '.join(left_out)})")
    return "\n".join(lines)


def _padded(table: Table, header_width: int) -> list[str]:
    header = [textwrap.wrap(cell, header_width) for cell in table[0]]
    height = max(map(len, header))
    lines = [*([cell[i] if i < len(cell) else "" for cell in header] for i in range(height)), *table[1:]]
    widths = [max(len(row[i]) for row in lines) for i in range(len(header))]
    text = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in lines]
    return [*text[:height], "-" * (sum(widths) + 2 * (len(widths) - 1)), *text[height:]]


def as_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table[0]), line(["---"] * len(table[0])), *map(line, table[1:])])


def as_bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(text)}" for text in texts)


def as_environment(values: Mapping[str, Any]) -> str:
    """A Markdown list of names and values; those that are None are left out."""
    shown = {
        name: " ".join(str(value).split("\n")).replace("`", "'") for name, value in values.items() if value is not None
    }
    return "\n".join(f"- {markdown_text(name)}: `{value}`" for name, value in shown.items())


def markdown_text(text: str) -> str:
    """`text` on one line of Markdown, without tags, pictures, links and definitions of links that it may hold."""
    text = " ".join(text.split("\n")).replace("<", "&lt;")
    return re.sub(r"\](?=[(:\[])", r"]\\", text)
