"""How a conversation is answered."""

import pytest
from driver import last_answer, ready, reload, say

pytestmark = pytest.mark.browser


def test_settings_are_sent_and_kept(open_page):
    page = open_page()
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0.1")
    page.fill("#max-tokens", "100000")
    page.fill("#top-k", "5")
    page.select_option("#theme", "dark")
    page.keyboard.press("Escape")
    reload(page)
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    ready(page)
    say(page, "hi")
    body = page.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.1, 512, 5)
    assert last_answer(page) == "You said: Be brief.\n\nhi"
