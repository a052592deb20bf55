"""The tables of the pages in docs are those that benchmarks/readme_tables.py makes of results/."""

from pathlib import Path

import pytest
from readme_tables import TABLES

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("page", [page for page in TABLES if page.startswith("docs/")])
def test_every_table_of_a_page_comes_from_results(page):
    text = (ROOT / page).read_text()
    for table in TABLES[page]:
        assert table() in text, table.__name__
