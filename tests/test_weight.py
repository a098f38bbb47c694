"""What the book's pages cost a reader before scrolling, in bytes and requests, and that nothing on them moves."""

from __future__ import annotations

import base64
import os
import re
import threading
from contextlib import closing

import pytest
from tools import pages, weight

PAGE = """<!DOCTYPE html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>A page</title><link rel="icon" href="data:,"><style>body {{ margin: 0 }}</style></head>
<body><p>Text.</p>{}</body></html>"""
PICTURE = '<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><desc>{}</desc></svg>'


@pytest.fixture
def weigh(tmp_path, browser):
    """The faults of a site of one page."""

    def weigh_page(body, **files):
        (tmp_path / "index.html").write_text(PAGE.format(body), encoding="utf8")
        for name, text in files.items():
            (tmp_path / f"{name}.svg").write_text(text, encoding="utf8")
        return weight.faults(weight.weigh(browser, tmp_path))

    return weigh_page


def noise(size):
    """A picture that no compression makes smaller than `size`."""
    return PICTURE.format(base64.b64encode(os.urandom(size)).decode())


def test_no_page_of_the_book_is_heavy_or_moves(built_book, browser):
    found = weight.faults(weight.weigh(browser, built_book))
    assert not found, "\n".join(["", *map(str, found)])


class _InTwo(pages._Handler):
    """Sends a page of the book up to a link in its first lines, and the rest when it is told."""

    page = "notebooks/foresight.html"
    whole = b""
    rest = threading.Event()

    def do_GET(self):
        if self.path != f"{pages.PREFIX}{self.page}":
            return super().do_GET()
        at = self.whole.index(b"xref", self.whole.index(b"<article"))
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(self.whole)))
        self.end_headers()
        self.wfile.write(self.whole[:at])
        self.wfile.flush()
        self.rest.wait(pages.LIMIT)
        self.wfile.write(self.whole[at:])


PAINTS = "performance.getEntriesByType('paint').length"


def test_nothing_is_painted_before_the_first_screen_is_there(built_book, browser):
    """On a slow line the first words moved as more of the page came in, in one of thirty tries."""
    page = (built_book / _InTwo.page).read_bytes()
    link = re.search(rb'<link[^>]*rel="expect"[^>]*>', page)[0]
    for _InTwo.whole, early in ((page, 0), (page.replace(link, b""), 1)):
        _InTwo.rest.clear()
        with pages.served(built_book, _InTwo) as address, closing(browser._chromium.new_context()) as session:
            session.set_default_timeout(pages.LIMIT * 1000)
            tab = session.new_page()
            tab.goto(address + _InTwo.page, wait_until="commit")
            tab.wait_for_function("document.querySelector('article h1')", polling=50)
            if early:
                tab.wait_for_function(f"{PAINTS} > 0", polling=50)
            else:
                tab.wait_for_timeout(500)
            assert (tab.evaluate(PAINTS) > 0) == early
            _InTwo.rest.set()
            tab.wait_for_load_state()
            tab.wait_for_function(f"{PAINTS} > 0", polling=50)


def test_a_heavy_picture_is_found(weigh):
    found = weigh('<img src="a.svg" alt="A" width="9" height="9">', a=noise(1000 * weight.KILOBYTES))
    assert [(fault.where, fault.kind) for fault in found] == [("index.html", weight.WEIGHT)]
    assert "kB before scrolling" in found[0].detail


def test_a_picture_far_below_is_fetched_by_who_comes_near_it(weigh):
    far = '<div style="height: 9000px"></div><img src="a.svg" alt="A" width="9" height="9" {}>'
    assert weigh(far.format('loading="lazy"'), a=noise(1000 * weight.KILOBYTES)) == []
    assert len(weigh(far.format(""))) == 1


def test_texts_are_weighed_as_they_are_sent(weigh):
    assert (
        weigh('<img src="a.svg" alt="A" width="9" height="9">', a=PICTURE.format("0" * 3000 * weight.KILOBYTES)) == []
    )


def test_many_requests_are_found(weigh):
    pictures = "".join(f'<img src="a.svg?{number}" alt="A" width="9" height="9">' for number in range(weight.REQUESTS))
    found = weigh(pictures, a=PICTURE.format(""))
    assert [fault.detail for fault in found] == [
        f"{weight.REQUESTS + 1} requests before scrolling, over {weight.REQUESTS}"
    ]


def test_what_moves_is_found(weigh):
    """A picture without its size pushes the text below it down once it is there."""
    picture = PICTURE.replace('"9"', '"300"').format("")
    late = "<script>onload = () => requestAnimationFrame(() => requestAnimationFrame(() => {{ {} }}))</script>"
    put = late.format("document.querySelector('img').src = 'a.svg'")
    found = weigh(f'<img alt="A"><p id="below">{"Text. " * 99}</p>{put}', a=picture)
    assert [fault.kind for fault in found] == [weight.SHIFT] and "below" in found[0].detail
    assert (
        weigh(
            f'<img alt="A" width="300" height="300" style="display: block"><p id="below">{"Text. " * 99}</p>{put}',
            a=picture,
        )
        == []
    )


def test_a_page_that_forwards_is_not_weighed(weigh):
    assert weigh('<meta http-equiv="refresh" content="0; url=https://example.org/">') == []
