"""report.html: one file that needs nothing else, in which every text from a results folder is escaped."""

import base64
import io
import re
from html.parser import HTMLParser

import pytest
from PIL import Image
from support.fake_results import ADAM, LOOKAHEAD, fake_comparison

from jaxresnet.reporting import page
from jaxresnet.reporting.report import render

VOID = {"meta", "img", "br"}


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
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.shown.append(data)


def read(path):
    return Reader(path.read_text())


def test_a_comparison_has_everything_in_one_file(tmp_path):
    report = render(fake_comparison(tmp_path, arms=(LOOKAHEAD, ADAM)))
    read_page = read(report.html)
    shown = " ".join(read_page.shown)
    for text in (
        "adam_lookahead: intended protocol, cifar10",
        report.verdict,
        "best epoch on the validation set",
        "Evaluated weights: Adam + Lookahead slow, Adam fast.",
        "Data: name cifar10, synthetic False, num_test 10000.",
        "python experiments/x.py",
    ):
        assert text in shown
    (source,) = read_page.loads
    assert base64.b64decode(source.removeprefix("data:image/png;base64,")) == report.figure.read_bytes()
    assert read_page.tags.count("details") == 2  # settings, in which the arms do not differ, and the environment


def test_nothing_is_loaded_and_nothing_runs(tmp_path):
    text = render(fake_comparison(tmp_path)).html.read_text()
    read_page = Reader(text)
    assert not {"script", "link", "iframe", "object", "form"} & set(read_page.tags)
    assert all(source.startswith("data:image/png;base64,") for source in read_page.loads)
    assert "default-src 'none'" in text and "http://" not in text and "https://" not in text
    assert "@import" not in text and "url(" not in text
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text and "@media print" in text


def test_settings_in_which_the_arms_differ_are_open():
    arms = {"A": {"batch_size": 128, "optim": {"b1": 0.9}}, "B": {"batch_size": 128, "optim": {"b1": 0.95}}}
    html = page._settings(arms)
    first, second = html.split("</details>")[:2]
    assert first.startswith("<details open><summary>Settings in which the arms differ") and "batch_size" not in first
    assert re.search(r"optim\.b1</td><td class=short>0\.9</td><td class=short>0\.95<", first)
    assert "<details><summary>All settings" in second and "batch_size" in second


@pytest.mark.parametrize("evil", ["<script>alert(1)</script>", '"><img src=http://x onerror=alert(1)>', "a & b"])
def test_text_from_the_folder_is_escaped(tmp_path, evil):
    fake_comparison(
        tmp_path,
        arms=(f"A {evil}", "B"),
        name=evil,
        environment={"device": evil, "command": evil, evil: 1},
        published={"B": {"best": 90.0, "source": evil}},
    )
    (tmp_path / "notes.md").write_text(f"# {evil}\n\n| {evil} |\n|---|\n| {evil} |\n")
    read_page = read(render(tmp_path).html)
    assert "script" not in read_page.tags and len(read_page.loads) == 1
    assert sum(evil in text for text in "".join(read_page.shown).split("\n")) >= 6


def test_extras_are_texts_and_pictures_that_are_not_the_reports_own(tmp_path):
    for name in ("figure.png", "confusion.png", ".hidden.png"):
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    (tmp_path / "summary.md").write_text("# Mine")
    (tmp_path / "evaluation.md").write_bytes(b"# Per class\n\ncaf\xe9\n")  # not UTF-8
    (tmp_path / "notes.txt").write_text("no")
    html = page.extras(tmp_path)
    assert "<h3>Per class</h3>" in html and "Mine" not in html and html.count("<img") == 1
    assert html.index("confusion.png") < html.index("Per class")  # in the order of their names
    source = re.search(r"base64,([^\"]+)", html)[1]
    assert Image.open(io.BytesIO(base64.b64decode(source))).size == (4, 4)


def test_an_extra_that_is_too_large_is_named(tmp_path):
    (tmp_path / "huge.png").write_bytes(bytes(page.LARGEST + 1))
    assert "huge.png is left out: larger than 4 MB." in page.extras(tmp_path)


@pytest.mark.parametrize("name", ["adam", "k=5, β=0.5", 'a "b" <c>', "100 %", "a#b"])
def test_the_table_of_contents_leads_to_the_sections(name):
    entry = page.Entry(name, "what it is", "<p>body</p>")
    read_page = Reader(page.document("title", [page.contents([entry]), page.section(entry)]))
    from urllib.parse import unquote

    assert [unquote(link) for link in read_page.links] == [f"#{name}" for name in read_page.ids] == [f"#s-{name}"]
