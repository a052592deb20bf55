"""report.html: one file that needs nothing else, in which every text from a results folder is escaped."""

import base64
import re
import tomllib
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

from PIL import Image
from support.fake_results import fake_comparison

import jaxresnet.reporting
from jaxresnet.reporting.comparison import describe_comparison
from jaxresnet.reporting.page import Section, make_page, make_tree_page, markdown_to_html
from jaxresnet.reporting.report import render
from jaxresnet.reporting.reproduction import Drawn
from jaxresnet.results.findings import findings
from jaxresnet.results.store import read_results


class Reader(HTMLParser):
    """Checks that tags close in order, and gathers what a browser would load and show."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.loads, self.ids, self.links, self.shown = [], [], [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        attributes = dict(attributes)
        self.loads += [attributes[name] for name in ("src", "srcset", "data", "poster") if name in attributes]
        self.links += [attributes["href"]] if "href" in attributes else []
        self.ids += [attributes["id"]] if "id" in attributes else []
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.shown.append(data)


def read(path):
    return Reader(path.read_text())


def test_a_comparison_has_everything_in_one_file(tmp_path):
    report = render(fake_comparison(tmp_path))
    text = report.html.read_text()
    page = Reader(text)
    shown = " ".join(page.shown)
    for expected in (
        "adam_lookahead: intended protocol, cifar10",
        report.verdict,
        "Evaluated weights: Adam + Lookahead slow, Adam fast.",
        "python experiments/x.py",
    ):
        assert expected in shown
    (source,) = page.loads
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == report.figure.read_bytes()
    assert page.tags.count("details") == 2  # settings, in which the arms do not differ, and the environment
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not {"script", "link", "iframe", "object", "form"} & set(page.tags) and "default-src 'none'" in text
    assert not re.search(r"https?://|@import|url\(", text)
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text and "@media print" in text


def test_settings_in_which_the_arms_differ_are_open(tmp_path):
    results = read_results(fake_comparison(tmp_path, arms=("A", "B")))
    results.config["arms"] = {name: {"batch_size": 128, "optim": {"b1": b1}} for name, b1 in (("A", 0.9), ("B", 0.95))}
    text = make_page(Section(tmp_path, "title", results, describe_comparison(results, findings(results)), b""))
    first, second, _ = re.findall(r"<details.*?</details>", text, re.DOTALL)
    assert first.startswith("<details open><summary>Settings in which the arms differ") and "batch_size" not in first
    assert re.search(r"optim\.b1</td><td>0\.9</td><td>0\.95<", first)
    assert second.startswith("<details><summary>All settings") and "batch_size" in second


def test_text_from_the_folder_is_escaped(tmp_path):
    evil = '"><script>alert(1)</script><img src=http://x onerror=alert(1)> & b'
    environment = {"device": evil, "command": evil, evil: 1}
    published = {"B": {"best": 90.0, "source": evil}}
    fake_comparison(tmp_path, (f"A {evil}", "B"), name=evil, environment=environment, published=published)
    (tmp_path / "notes.md").write_text(f"# {evil}\n\n| {evil} |\n|---|\n| {evil} |\n")
    page = read(render(tmp_path).html)
    assert "script" not in page.tags and len(page.loads) == 1
    assert sum(evil in text for text in "".join(page.shown).split("\n")) >= 6


def test_extras_are_texts_and_pictures_that_are_not_the_reports_own(tmp_path):
    for name in ("figure.png", "confusion.png", ".hidden.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "summary.md").write_text("# Mine")
    (tmp_path / "evaluation.md").write_bytes(b"# Per class\n\ncaf\xe9\n")  # not UTF-8
    (tmp_path / "measurement.json").write_text("{}")
    text = make_page(Section(tmp_path, "measurement"))
    assert "<h3>Per class</h3>" in text and "Mine" not in text and text.count("<img") == 1
    assert text.index("confusion.png") < text.index("Per class")  # in the order of their names
    source = re.search(r"base64,([^\"]+)", text)[1]
    assert base64.b64decode(source) == (tmp_path / "confusion.png").read_bytes()


def test_the_table_of_contents_leads_to_the_sections(tmp_path):
    folder = tmp_path / 'k=5, β=0.5 % a#"b" <c>'
    folder.mkdir()
    (folder / "measurement.json").write_text("{}")
    text = make_tree_page(
        "title", [Section(folder, "what it is")], {"bad <b>": "cut off"}, Drawn([], None, ["a note"], empty=True)
    )
    page = Reader(text)
    assert [unquote(link) for link in page.links] == [f"#{name}" for name in page.ids] == [f"#s-{folder.name}"]
    assert "Skipped bad <b>: cut off" in page.shown and page.shown.count("what it is") == 2


def test_the_template_is_part_of_the_package():
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    (pattern,) = pyproject["tool"]["setuptools"]["package-data"]["jaxresnet.reporting"]
    assert [path.name for path in Path(jaxresnet.reporting.__path__[0]).glob(pattern)] == ["page.html.jinja"]


TEXT = """# Title

Some **bold** text with `a < b` & <script>alert(1)</script>.
| arm | n \\| m |
|---|---:|
| **A** | 1 |

![figure](figure.png)

- see [the page](http://example.org)
"""


def test_markdown_is_shown_and_loads_nothing():
    html = markdown_to_html(TEXT)
    assert "<h3>Title</h3>" in html and "<strong>bold</strong>" in html
    assert "with <code>a &lt; b</code> &amp; &lt;script&gt;alert(1)" in html
    assert '<div class="wide"><table>' in html and "</table></div>" in html
    assert "n | m</th>" in html and "<td><strong>A</strong></td>" in html and "<li>see the page</li>" in html
    assert "figure.png" not in html and "http" not in html and "<script" not in html
