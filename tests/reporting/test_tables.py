"""One table, three ways to print it."""

import pytest

from jaxresnet.reporting.tables import WIDTH, aligned, as_html, as_markdown, mean_sd, without_columns

TABLE = [
    ["arm", "test accuracy (%), best epoch", "per seed (%)"],
    ["A | B", "91.02 ± 0.14", "91.10, 90.94"],
    ["<C>", "", "-"],
]


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([91.0], "91.00"), ([90.0, 91.0, 92.0], "91.00 ± 1.00"), (iter([1.0, 3.0]), "2.00 ± 1.41")],
)
def test_mean_sd(values, text):
    assert mean_sd(values) == text


def test_aligned():
    assert aligned(TABLE).splitlines() == [
        "arm    test accuracy (%),  per seed (%)",
        "       best epoch",
        "---------------------------------------",
        "A | B  91.02 ± 0.14        91.10, 90.94",
        "<C>                        -",
    ]


def test_a_table_too_wide_for_a_terminal_loses_its_spare_columns_in_order_and_says_so():
    wide = [["arm", "n", "a", "b"], ["x" * 40, "3", "y" * 50, "z" * 60]]
    text = aligned(wide, spare=("missing", "b", "a"))
    assert "z" * 60 not in text and "y" * 50 in text and max(map(len, text.splitlines())) <= WIDTH
    assert text.endswith("(too wide for a terminal, see report.html: b)")
    assert "z" * 60 in aligned(wide) and aligned(TABLE, spare=("per seed (%)",)) == aligned(TABLE)


def test_without_columns():
    assert without_columns(TABLE, ["per seed (%)", "arm"])[1:] == [["91.02 ± 0.14"], [""]]


def test_as_markdown_escapes_what_would_end_a_cell():
    lines = as_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- | --- |" and lines[2] == "| A \\| B | 91.02 ± 0.14 | 91.10, 90.94 |"


def test_as_html_escapes_every_cell():
    text = as_html([["<h>"], ["<script>alert(1)</script>"], ["short & sweet"]])
    assert "<th>&lt;h&gt;</th>" in text and "<script" not in text
    assert "<td class=short>short &amp; sweet</td>" in text and "<td class=short>&lt;script" in text
