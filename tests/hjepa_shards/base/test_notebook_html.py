"""Pieces of HTML for notebooks: text in them is never more than text."""

import base64
from html.parser import HTMLParser

import pytest

from hjepa_shards.base.notebook_html import Figure, data_uri, facts, pictures, share_bar, table
from tests.hjepa_shards.reports.test_svg_bars import HOSTILE

PNG = b"\x89PNG not really"
_TAGS = {"div", "table", "thead", "tbody", "tr", "th", "td", "figure", "figcaption", "img"}
_ATTRIBUTES = {"style", "title", "alt", "src"}


class Parsed(HTMLParser):
    """Tags opened and closed in pairs, texts, and the values of attributes."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.feed(page)
        self.close()
        assert self.open == []
        assert set(self.tags) <= _TAGS
        assert {name for name, _ in self.attributes} <= _ATTRIBUTES
        assert all("url" not in str(value) for name, value in self.attributes if name == "style")
        assert all(str(value).startswith("data:image/") for name, value in self.attributes if name == "src")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag != "img":
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


@pytest.mark.parametrize("text", [*HOSTILE, "\x1b[31m", "\u202egnp"])
def test_text_stays_text(text: str) -> None:
    shown = text.replace("\x1b", "\\u001b").replace("\u202e", "\\u202e")
    lost, image = (Figure(image=data, line=text, title=text) for data in (b"", PNG))
    for page in (
        table(text, (text, text), [(text, text), (share_bar(0.5), text)], [text]),
        facts(text, {text: text}, [text]),
        pictures(text, [lost, image], [text]),
    ):
        parsed = Parsed(page)
        assert set(parsed.texts) == {shown}
        assert {value for name, value in parsed.attributes if name in ("title", "alt")} <= {shown}


def test_what_is_empty_is_no_fact_and_a_heading_without_names_is_left_out() -> None:
    parsed = Parsed(facts("t", {"licence": "", "upstream": "u"}))
    assert parsed.texts == ["t", "upstream", "u"]
    assert "th" not in parsed.tags


@pytest.mark.parametrize(("share", "width"), [(0.25, "25.00%"), (1.5, "100.00%"), (-1, "0.00%")])
def test_a_bar_is_as_long_as_its_share(share: float, width: str) -> None:
    assert f"width:{width}" in share_bar(share)


@pytest.mark.parametrize(("image", "kind"), [(PNG, "png"), (b"\xff\xd8\xff", "jpeg")])
def test_an_image_stands_in_its_address(image: bytes, kind: str) -> None:
    assert data_uri(image) == f"data:image/{kind};base64,{base64.b64encode(image).decode()}"
