"""One table, two ways to print it as text."""

import pytest

from jaxresnet.reporting.tables import (
    WIDTH,
    aligned,
    as_bullets,
    as_environment,
    as_markdown,
    from_columns,
    mean_sd,
    without_columns,
)

TABLE = from_columns(
    {
        "arm": ["A | B", "<C>"],
        "test accuracy (%), best epoch": ["91.02 ± 0.14", ""],
        "per seed (%)": ["91.10, 90.94", "-"],
    }
)


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
    assert without_columns(TABLE, ["per seed (%)", "arm"])[1:] == [["91.02 ± 0.14"], [""]]


def test_a_table_too_wide_for_a_terminal_loses_its_spare_columns_in_order_and_says_so():
    wide = [["arm", "n", "a", "b"], ["x" * 40, "3", "y" * 50, "z" * 60]]
    text = aligned(wide, spare=("missing", "b", "a"))
    assert "z" * 60 not in text and "y" * 50 in text and max(map(len, text.splitlines())) <= WIDTH
    assert text.endswith("(too wide for a terminal, see report.html: b)")
    assert "z" * 60 in aligned(wide) and aligned(TABLE, spare=("per seed (%)",)) == aligned(TABLE)


def test_markdown_stays_in_its_cell_and_obeys_nothing():
    lines = as_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- | --- |" and lines[2] == "| A \\| B | 91.02 ± 0.14 | 91.10, 90.94 |"
    assert lines[3].startswith("| &lt;C> |")
    assert as_bullets(["two\nlines", "[a](http://x)"]) == "- two lines\n- [a]\\(http://x)"
    assert as_environment({"device": "a `CPU`\n", "commit": None}) == "- device: `a 'CPU' `"
