"""Keyboard, screen reader, phone, input methods."""

import pytest
from driver import done, focused, say

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
