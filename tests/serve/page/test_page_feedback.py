"""Thumbs and better answers, on a server that keeps them."""

import json

import pytest
from driver import focused, reload, say

from nutshell.serve.feedback import FeedbackStore

pytestmark = pytest.mark.browser


def test_what_is_said_of_an_answer_reaches_the_server(open_page, tmp_path, eventually):
    store = FeedbackStore(tmp_path / "said.db")
    page = open_page(feedback_store=store)
    page.wait_for_selector("#model option", state="attached")

    def kept():
        return [(one["messages"][-1]["content"], one["rating"], one["better"]) for one in store.rows()]

    say(page, "one")
    page.click("[aria-label='Good answer']")
    eventually(lambda: kept() == [("You said: one", "up", None)])
    page.click("[aria-label='Good answer']")  # again takes it back
    eventually(lambda: kept() == [])
    page.click(".better")
    assert page.input_value(".below textarea") == "You said: one"
    page.fill(".below textarea", "Two.")
    page.keyboard.press("Enter")
    eventually(lambda: kept() == [("You said: one", "down", "Two.")])
    assert focused(page) == "better"
    reload(page)
    page.wait_for_selector("[aria-label='Bad answer'][aria-pressed=true]")
    say(page, "the sum please")
    page.locator("[aria-label='Bad answer']").last.click()
    eventually(lambda: len(kept()) == 2)
    last = max(store.rows(), key=lambda one: len(one["messages"]))
    assert [message["role"] for message in last["messages"]] == ["user", "assistant", "user", "assistant"]
    assert "python_output" in json.dumps(last["messages"][-1])


def test_a_server_that_keeps_nothing_is_not_asked(open_page):
    page = open_page()
    say(page, "one")
    assert page.locator("button.rate:visible, button.better:visible").count() == 0
    assert page.is_visible("button.regenerate")


def test_a_refusal_is_said_and_not_shown_as_kept(open_page, tmp_path):
    page = open_page(feedback_store=FeedbackStore(tmp_path / "said.db"))
    page.wait_for_selector("#model option", state="attached")
    full = json.dumps({"error": {"message": "the file is full"}})
    page.route("**/feedback", lambda route: route.fulfill(status=507, body=full))
    say(page, "one")
    page.click("[aria-label='Bad answer']")
    page.wait_for_selector("#notice:has-text('The file is full')")
    assert page.get_attribute("[aria-label='Bad answer']", "aria-pressed") == "false"


def test_leaving_while_the_server_keeps_it_does_not_take_it_back(open_page, tmp_path):
    page = open_page(feedback_store=FeedbackStore(tmp_path / "said.db"))
    page.wait_for_selector("#model option", state="attached")
    say(page, "one")
    page.route("**/feedback", lambda route: None if route.request.method == "POST" else route.continue_())  # no answer yet
    page.click("[aria-label='Good answer']")
    reload(page)
    page.wait_for_selector("[aria-label='Good answer'][aria-pressed=true]")
