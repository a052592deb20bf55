"""One table, two ways to print it as text."""

from jaxresnet.reporting.tables import aligned, as_bullets, as_markdown, environment_table, from_columns, mean_sd

TABLE = from_columns(
    {
        "arm": ["A | B", "<C>"],
        "test accuracy (%), best epoch": ["91.02 ± 0.14", ""],
        "per seed (%)": ["91.10, 90.94", "90.10, 90.20, 90.30, 90.40"],
    }
)


def test_mean_sd():
    assert list(map(mean_sd, ([], [91.0], iter([1.0, 3.0])))) == ["", "91.00", "2.00 ± 1.41"]


def test_aligned():
    assert aligned(TABLE).splitlines() == [
        "arm    test accuracy  per seed (%)",
        "       (%), best",
        "       epoch",
        "------------------------------------------",
        "A | B  91.02 ± 0.14   91.10, 90.94",
        "<C>                   90.10, 90.20, 90.30,",
        "                      90.40",
    ]


def test_markdown_stays_in_its_cell_and_obeys_nothing():
    lines = as_markdown(TABLE).splitlines()
    assert lines[1] == "| --- | --- | --- |" and lines[2] == "| A \\| B | 91.02 ± 0.14 | 91.10, 90.94 |"
    assert lines[3].startswith("| &lt;C> |")
    assert as_bullets(["two\nlines", "[a](http://x)"]) == "- two lines\n- [a]\\(http://x)"
    assert environment_table({"device": "a CPU", "commit": None}) == [["name", "value"], ["device", "a CPU"]]
