"""Markdown as DOM nodes: what it becomes, and that hostile text stays inert."""

import pytest
from driver import say

pytestmark = pytest.mark.browser


def test_hostile_markdown_is_inert(open_page):
    page = open_page()
    say(page, "hostile <img src=x onerror=window.bad=1>")
    say(page, "hostile code")
    page.wait_for_timeout(200)
    assert page.evaluate("window.bad") is None
    tags = "img, script, iframe, svg, b, i, u, style, object, embed, form, input"
    assert page.locator(tags).and_(page.locator("#log *")).count() == 0
    links = page.locator("#log a")
    assert [links.nth(i).get_attribute("href") for i in range(links.count())] == [
        "https://example.org/ok",
        "https://example.org/pixel.png",
        "https://example.org/",
    ]
    assert all("noopener" in links.nth(i).get_attribute("rel") for i in range(links.count()))
    assert "<script>window.bad=1</script>" in page.locator("#log .code code").inner_text()
    assert page.foreign == []


def test_markdown_becomes_elements(open_page):
    page = open_page()
    say(page, "markdown")
    body = page.locator(".body")
    for selector in ("strong", "em", "ol > li > ul > li", "blockquote p", ".code .copy"):
        assert body.locator(selector).count() == 1, selector
    assert body.locator(".code code").inner_text() == "print('hi')"
