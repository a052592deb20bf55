"""The tables of the README and of the pages in docs are those that benchmarks/readme_tables.py makes of results/."""

import json
import re

import pytest
import readme_tables


@pytest.mark.parametrize("page", readme_tables.PAGES, ids=lambda page: page.name)
def test_every_table_of_a_page_comes_from_results(page):
    text = page.read_text()
    assert readme_tables.filled(text) == text, "run python benchmarks/readme_tables.py"


def test_every_table_stands_in_its_page():
    found = {page.name: re.findall("<!-- table: (.*) -->", page.read_text()) for page in readme_tables.PAGES}
    assert found == {
        "README.md": ["results"],
        "parity.md": ["parity", "parity_training", "parity_gradients"],
        "performance.md": ["train_step", "compare_pytorch", "precision", "startup"],
        "robustness.md": ["interrupt"],
        "scaling.md": [],
    }
    assert {name for names in found.values() for name in names} == set(readme_tables.TABLES)


@pytest.mark.parametrize("file", sorted(readme_tables.RESULTS.glob("*.json")), ids=lambda path: path.stem)
def test_a_page_links_each_result_and_names_the_commit_that_was_measured(file):
    commit = json.loads(file.read_text())["environment"]["commit"]
    (page,) = (page for page in readme_tables.PAGES if f"(../results/{file.name})" in page.read_text())
    assert commit[:7] in page.read_text() and not commit.endswith("-dirty")


def test_a_typed_number_is_replaced():
    table = readme_tables.TABLES["interrupt"]()
    page = "# Title\n\n<!-- table: interrupt -->\n\n{}\n\nText | with a bar.\n"
    assert readme_tables.filled(page.replace("{}\n\n", "")) == page.format(table), "a new marker"
    assert readme_tables.filled(page.format("| a |\n|---|\n| typed |")) == page.format(table)
    assert readme_tables.filled(page.format(table)) == page.format(table)


def test_nothing_was_left_when_killing_and_parity_were_written_down():
    soak = json.loads((readme_tables.RESULTS / "interrupt.json").read_text())
    assert soak["identical"] == soak["kills"] == sum(row["kills"] for row in soak["table"])
    assert sum(row["kills"] for row in soak["table"] if row["signal"] == "SIGKILL") >= 50
    rows = json.loads((readme_tables.RESULTS / "parity.json").read_text())["quantities"]
    assert {row["against"] for row in rows} == {"golden", "live", "NumPy"}
    assert all(row["error"] <= row["tolerance"] for row in rows)
