"""Keyboard, screen reader, phone, input methods."""

import pytest
from driver import done, focused, say

from nutshell.serve.feedback import FeedbackStore

pytestmark = pytest.mark.browser


def test_focus_and_the_keyboard(open_page):
    page = open_page()
    say(page, "one")
    page.focus(".regenerate")
    page.keyboard.press("Enter")
    done(page)
    assert focused(page) == "question"
    page.click("#new-chat")
    say(page, "two")
    page.focus("#chats li:first-child .remove")
    page.keyboard.press("Enter")
    assert focused(page) == "open"
    page.keyboard.press("F2")
    page.keyboard.type("renamed")
    page.keyboard.press("Enter")
    assert (focused(page), page.inner_text("#chats .open")) == ("open", "renamed")
    page.keyboard.press("Delete")
    assert focused(page) == "new-chat"
    page.focus("#notice button")
    page.keyboard.press("Enter")
    assert focused(page) == "question"


def test_enter_in_a_composition_does_not_send(open_page):
    page = open_page()
    say(page, "one")
    page.click(".edit")
    for box in ("article.user textarea", "#question"):
        page.fill(box, "にほ")
        for composing, code in ((True, 13), (True, 229), (False, 229)):  # the last is Safari's, after compositionend
            page.evaluate(
                """([box, isComposing, keyCode]) => document.querySelector(box).dispatchEvent(new KeyboardEvent("keydown",
                    { key: "Enter", isComposing, keyCode, bubbles: true, cancelable: true }))""",
                [box, composing, code],
            )
    assert len(page.requests) == 1
    assert page.input_value("#question") == "にほ"


def test_phone_width_has_a_drawer_and_no_sideways_scroll(open_page):
    page = open_page(width=360)
    assert page.is_hidden("#sidebar")
    say(page, "x" * 200)
    say(page, "markdown")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 360
    page.click("#open-sidebar")
    page.wait_for_selector("#sidebar", state="visible")
    page.click("#new-chat")
    page.wait_for_selector("#sidebar", state="hidden")
    assert page.is_visible("#welcome")


def test_the_page_itself_never_scrolls(open_page):
    """What is hidden in a conversation for screen readers once made the page as tall as all of it."""
    page = open_page(width=320)
    for number in range(4):
        say(page, f"middling {number}")
    assert page.evaluate("document.documentElement.scrollHeight") == 760


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(open_page, serious, tmp_path, theme):
    page = open_page(feedback_store=FeedbackStore(tmp_path / "said.db"))
    page.click("#open-settings")
    page.select_option("#theme", theme)
    page.keyboard.press("Escape")
    assert serious(page) == []
    say(page, "markdown")
    say(page, "the sum please")
    page.locator("button.tokens").last.click()
    page.locator(".token").first.click()
    page.locator("button.better").first.click()
    assert serious(page) == []
    page.click("#open-settings")
    assert serious(page) == []


def test_keys_are_listed_and_reach_everything(open_page):
    page = open_page(width=320)
    say(page, "שלום 123")
    assert page.locator(".bubble").evaluate("node => getComputedStyle(node).direction") == "rtl"
    page.focus("#log")
    page.keyboard.press("?")
    assert page.is_visible("#keys")
    page.keyboard.press("Escape")
    assert focused(page) == "log"
    page.click("#open-settings")
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    page.keyboard.press("Escape")
    assert focused(page) == "open-settings"
    page.keyboard.press("Control+Shift+F")
    assert focused(page) == "search"
    page.keyboard.press("Control+Shift+O")
    assert focused(page) == "question"
    page.keyboard.press("Shift+Tab")  # backwards to the first, and never nowhere but at its end
    seen = set()
    while focused(page) != "BODY" and len(seen) < 40:
        seen.add(focused(page))
        page.keyboard.press("Shift+Tab")
    assert {"open-settings", "open-sidebar", "example"} <= seen


def test_what_takes_itself_away_hands_the_focus_on(open_page):
    page = open_page()
    say(page, "one")
    page.route("**/tokenize", lambda route: route.fulfill(status=429, body="{}"))
    page.click("button.tokens")
    page.wait_for_selector(".token-view .error")
    page.unroute("**/tokenize")
    page.focus(".token-view button")
    page.keyboard.press("Enter")
    assert focused(page) == "tokens"
    say(page, "x" * 21000)
    page.focus(".bubble button")
    page.keyboard.press("Enter")
    assert focused(page) == "bubble"
