"""Markdown texts of the results folders as HTML, with markdown-it (the parser that rich uses)."""

from jaxresnet.reporting.tables import is_short


def markdown_to_html(text: str, top: int = 1) -> str:
    """top: the level of heading that "#" becomes, 1 to 6; "##" becomes the next.

    HTML in the text is shown and not obeyed. Images are left out (the page embeds the pictures of a folder itself), of
    links the text is kept.
    """
    from markdown_it import MarkdownIt

    markdown = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = markdown.parse(text)
    for i, token in enumerate(tokens):
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, top + int(token.tag[1]) - 1)}"
        if token.type == "td_open" and is_short(tokens[i + 1].content):
            token.attrSet("class", "short")  # as `tables.as_html`
    for kind in ("image", "link_open", "link_close"):
        markdown.add_render_rule(kind, lambda *_: "")
    markdown.add_render_rule("table_open", lambda *_: '<div class="wide"><table>\n')
    markdown.add_render_rule("table_close", lambda *_: "</table></div>\n")
    return markdown.renderer.render(tokens, markdown.options, {})
