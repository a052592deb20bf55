"""The part of Markdown that results folders use, as HTML; everything else as the text that it is."""

from jaxresnet.reporting.markdown import markdown_to_html

TEXT = """# Title

Some **bold** text
with `a < b` & <script>alert(1)</script>.
## Numbers
| arm | n \\| m |
|---|---:|
| **A** | 1 |
| only one |

![figure](figure.png)

- first
  goes on
- second, see [the page](http://example.org)

```
x < y   # kept
```
"""


def test_every_element():
    html = markdown_to_html(TEXT, top=3)
    assert "<h3>Title</h3>" in html and "<h4>Numbers</h4>" in html
    assert "<p>Some <strong>bold</strong> text\nwith <code>a &lt; b</code> &amp; &lt;script&gt;alert(1)" in html
    assert "<th>arm</th>" in html and "n | m</th>" in html
    assert '<td class="short"><strong>A</strong></td>' in html
    assert '<td class="short">only one</td>' in html
    assert '<div class="wide"><table>' in html and "</table></div>" in html
    assert "<li>first\ngoes on</li>" in html and "<li>second, see the page</li>" in html
    assert "x &lt; y   # kept" in html and "<pre>" in html
    assert "figure.png" not in html and "http" not in html and "<script" not in html


def test_text_that_only_looks_like_markdown_is_shown_and_obeys_nothing():
    for odd in ("|", "| a |", "```", "``` \nnever closed", "- ", "#", "####### seven", "| a\n| b", "*", "||\n|-|"):
        assert markdown_to_html(odd).count("<table>") <= 1
    assert markdown_to_html("| a | b |\nno rule") == "<p>| a | b |\nno rule</p>\n"
    assert markdown_to_html("") == ""
    assert "<img" not in markdown_to_html('<img src="http://example.org/x.png">')
    assert "javascript" not in markdown_to_html("[a](javascript:alert(1))").replace("[a](javascript:alert(1))", "")
