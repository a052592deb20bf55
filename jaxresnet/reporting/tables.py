"""A table, given as rows of text with the header first, for a terminal and for Markdown (for HTML see `page`)."""

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from jaxresnet.results.statistics import mean_and_sd

Table = Sequence[Sequence[str]]

HEADER, CELL = 14, 24  # characters on a line of a column, on a terminal


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


def environment_table(values: Mapping[str, Any]) -> list[list[str]]:
    """Names and values; those that are None are left out."""
    return [["name", "value"], *([name, str(value)] for name, value in values.items() if value is not None)]


def aligned(table: Table) -> str:
    """The table for a terminal: columns padded, headers and long cells on several lines."""

    def lines_of(row: Sequence[str], width: int) -> list[tuple[str, ...]]:
        bound = [cell.replace(" ± ", "_±_") for cell in row]  # a mean and its deviation stay on one line
        cells = [textwrap.wrap(cell, width, break_long_words=False) for cell in bound]
        lines = list(zip_longest(*cells, fillvalue="")) or [("",) * len(row)]
        return [tuple(part.replace("_±_", " ± ") for part in line) for line in lines]

    rows = [lines_of(table[0], HEADER), *(lines_of(row, CELL) for row in table[1:])]
    widths = [max(map(len, column)) for column in zip(*(line for lines in rows for line in lines), strict=True)]
    texts = [["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines] for lines in rows]
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([*texts[0], rule, *(line for lines in texts[1:] for line in lines)])


def as_markdown(table: Table) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(markdown_text(cell).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(table[0]), line(["---"] * len(table[0])), *map(line, table[1:])])


def as_bullets(texts: Iterable[str]) -> str:
    return "\n".join(f"- {markdown_text(text)}" for text in texts)


def markdown_text(text: str) -> str:
    """`text` on one line of Markdown, without tags, pictures, links and definitions of links that it may hold."""
    text = " ".join(text.split("\n")).replace("<", "&lt;")
    return re.sub(r"\](?=[(:\[])", r"]\\", text)
