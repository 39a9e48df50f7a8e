"""Asking, streaming, stopping, editing, errors."""

import re

import pytest
from driver import answer, done, last_answer, ready, reload, say

pytestmark = pytest.mark.browser


def test_a_conversation_of_two_turns(open_page):
    page = open_page()
    ready(page)
    say(page, "Hello there")
    assert last_answer(page) == "You said: Hello there"
    say(page, "And again")
    assert page.requests[1]["messages"] == [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "You said: Hello there"},
        {"role": "user", "content": "And again"},
    ]
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s · first after [\d.]+ s", page.locator(".stats").last.inner_text())
    assert page.inner_text("#title") == "Hello there"
    assert page.get_attribute("#log", "role") == "log"
    assert page.inner_text("#announcer") == "You said: And again"
    assert page.foreign == []


def test_text_streams_and_escape_stops_it(open_page, eventually):
    page = open_page(delay_seconds=0.02)
    say(page, "a long one", wait=False)
    page.wait_for_selector(".assistant .body:has-text('word3')")
    assert page.is_visible("#stop")
    page.keyboard.press("Escape")
    page.wait_for_selector("#send")
    eventually(lambda: page.client.service.worker.in_flight == 0)
    text = last_answer(page)
    assert "word3" in text
    assert "word119" not in text
    page.wait_for_timeout(200)
    assert last_answer(page) == text
    assert page.locator(".stats").last.inner_text() == "stopped"
    say(page, "a short one")
    assert page.requests[1]["messages"][1]["content"].strip() == text


def test_stop_button_and_new_chat(open_page, eventually):
    page = open_page(delay_seconds=0.02)
    say(page, "a long one", wait=False)
    page.wait_for_selector(".assistant .body:has-text('word2')")
    page.click("#stop")
    eventually(lambda: page.client.service.worker.in_flight == 0)
    page.click("#new-chat")
    assert page.locator("article").count() == 0
    assert page.is_visible("#welcome")
    say(page, "fresh")
    assert page.requests[-1]["messages"] == [{"role": "user", "content": "fresh"}]
    assert page.locator("#chats li").count() == 2


def test_tool_call_has_its_own_block_and_goes_back_as_it_was(open_page):
    page = open_page()
    say(page, "the sum please")
    tool = page.locator(".tool")
    assert tool.count() == 1
    assert [tool.locator("code").nth(index).inner_text() for index in (0, 1)] == ["47+85", "132"]
    assert page.locator(".block").nth(0).inner_text() == "Let me see."
    assert page.locator(".block").nth(2).inner_text() == "It is 132."
    say(page, "thanks")
    assert page.requests[1]["messages"][1]["content"] == [
        {"type": "text", "text": "Let me see. "},
        {"type": "python", "text": "47+85"},
        {"type": "python_output", "text": "132"},
        {"type": "text", "text": "It is 132."},
    ]
    assert last_answer(page) == "You said: thanks"


def test_regenerate_and_edit(open_page):
    page = open_page()
    say(page, "one")
    say(page, "two")
    page.click("article.assistant:last-child button:text('Regenerate')")
    page.wait_for_selector("#log[aria-busy=false]")
    assert [message["content"] for message in page.requests[-1]["messages"]] == ["one", "You said: one", "two"]
    assert page.locator("article").count() == 4
    page.focus("#question")
    page.keyboard.press("ArrowUp")  # edits the last question
    page.keyboard.type(" more")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log[aria-busy=false]")
    assert last_answer(page) == "You said: two more"
    page.hover("article.user >> nth=0")
    page.click("article.user >> nth=0 >> .edit")
    page.fill("article.user textarea", "other")
    page.keyboard.press("Enter")
    page.wait_for_selector(".bubble:text('other')")
    page.wait_for_selector("#log[aria-busy=false]")
    assert page.requests[-1]["messages"] == [{"role": "user", "content": "other"}]


def test_shift_enter_is_a_new_line(open_page):
    page = open_page()
    page.fill("#question", "a")
    page.press("#question", "Shift+Enter")
    page.keyboard.type("b")
    page.keyboard.press("Enter")
    page.wait_for_selector("#log[aria-busy=false]")
    assert page.requests[0]["messages"] == [{"role": "user", "content": "a\nb"}]
    page.press("#question", "Enter")
    assert len(page.requests) == 1


def test_a_failed_answer_can_be_tried_again(open_page):
    page = open_page()
    page.client.service.worker.engine.fail = RuntimeError("broken")
    say(page, "hello")
    assert "failed" in page.inner_text(".error")
    page.client.service.worker.engine.fail = None
    page.click(".error button")
    page.wait_for_selector("#log[aria-busy=false]")
    assert last_answer(page) == "You said: hello"
    assert page.locator(".error").count() == 0


def test_dropped_turns_are_told(open_page):
    page = open_page(context=64)
    for number in range(4):
        say(page, f"question number {number} of a few")
    assert "oldest messages were left out" in page.inner_text("article:last-child .note")


def test_events_survive_any_cut_of_the_network(open_page):
    """Every split of the bytes in two, and one byte at a time, with each kind of line end."""
    page = open_page()
    found = page.evaluate("""async () => {
        const { eventParser } = await import("./web/sse.js");
        const bad = [];
        for (const end of ["\\n", "\\r\\n", "\\r"]) {
            const text = [": waiting", "", 'data: {"a":"é☃日"}', "", "event: x", "data: one", "data:two", "", "data: [DONE]",
                "", ""].join(end);
            const bytes = new TextEncoder().encode(text);
            const cuts = [[...bytes.keys()].slice(1)];
            for (let at = 0; at <= bytes.length; at += 1) cuts.push([at]);
            for (const cut of cuts) {
                const events = [];
                const feed = eventParser((data) => events.push(data));
                const decoder = new TextDecoder();
                let from = 0;
                for (const to of [...cut, bytes.length]) {
                    feed(decoder.decode(bytes.slice(from, to), { stream: true }));
                    from = to;
                }
                const wanted = ['{"a":"é☃日"}', "one\\ntwo", "[DONE]"];
                if (JSON.stringify(events) !== JSON.stringify(wanted)) bad.push([end, cut, events]);
            }
        }
        return bad.slice(0, 3);
    }""")
    assert found == []


def test_errors_are_told_apart(open_page):
    page = open_page()
    ready(page)
    event = "data: %s\n\n"
    for given, told in [
        ({"status": 200, "body": event % '{"choices":[{"delta":{"content":"half"}}]}'}, "The connection broke before"),
        ({"status": 200, "body": event % '{"error":{"message":"the model failed"}}'}, "The model failed."),
        ({"status": 200, "body": event % "<html>"}, "is not an answer"),
        ({"status": 413, "body": "{}"}, "more text than"),
    ]:
        page.route(
            "**/v1/chat/completions",
            lambda route, request, given=given: route.fulfill(**given),
        )
        page.click("#new-chat")
        say(page, "hello")
        assert told in page.inner_text(".error")
        page.unroute("**/v1/chat/completions")


@pytest.mark.parametrize("allowed", [True, False])
def test_copy_over_plain_http(open_page, allowed):
    page = open_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    if not allowed:
        page.add_init_script("document.execCommand = () => false")
    reload(page)
    say(page, "copy me")
    button = page.locator("article.assistant .copy")
    button.click()
    assert button.inner_text() == ("Copied" if allowed else "Cannot copy")
    if allowed:
        page.focus("#question")
        page.keyboard.press("Control+V")
        assert page.input_value("#question") == "You said: copy me"


def test_loading_is_shown_until_the_model_is_there(open_page, serving, scripted, tok):
    client = serving(None)
    page = open_page(client=client)
    page.wait_for_selector("#notice:text('loading')")
    client.service.models.open(scripted(answer))
    ready(page)
    assert page.is_hidden("#notice")


def test_the_api_key_is_asked_for(open_page):
    page = open_page(api_key="right")
    page.click("#notice button")
    page.fill("#api-key", "right")
    page.press("#api-key", "Tab")
    ready(page)
    page.keyboard.press("Escape")
    say(page, "hi")
    assert last_answer(page) == "You said: hi"


def test_the_page_works_below_a_prefix(open_page, serving, scripted):
    """Behind a proxy that strips /some/where/, and with nothing outside it."""

    def behind_a_proxy(app):
        async def below(scope, receive, send):
            if scope["type"] == "http":
                inside = scope["path"].startswith("/some/where/")
                scope = {**scope, "path": scope["path"].removeprefix("/some/where") if inside else "/nothing"}
            await app(scope, receive, send)

        below.state = app.state
        return below

    page = open_page(client=serving(scripted(answer), wrap=behind_a_proxy), path="/some/where/")
    ready(page)
    say(page, "hello")
    reload(page)
    assert last_answer(page) == "You said: hello"


def test_a_question_asked_while_the_model_loads_is_sent_when_it_is_ready(open_page, serving, scripted, tok):
    client = serving(None)
    page = open_page(client=client)
    say(page, "early", wait=False)
    page.wait_for_selector(".note:text('as soon as it is ready')")
    client.service.models.open(scripted(answer))
    done(page)
    assert last_answer(page) == "You said: early"
    assert page.locator("article").count() == 2


@pytest.mark.parametrize(
    ("given", "told"),
    [("refuse", "cannot be reached"), ({"status": 502}, "behind the proxy"), ({"status": 429, "body": "{}"}, "busy")],
)
def test_a_question_waits_for_a_server_that_is_away_or_busy(open_page, given, told):
    page = open_page()
    refuse = given == "refuse"
    page.route("**/v1/chat/completions", lambda route: route.abort() if refuse else route.fulfill(**given))
    say(page, "hello", wait=False)
    assert told in page.inner_text(".note")
    page.unroute("**/v1/chat/completions")
    done(page)
    assert last_answer(page) == "You said: hello"
    assert page.locator(".note, .error").count() == 0


def test_what_may_be_pasted_into_the_box(open_page):
    """Half an emoji made each later question of its conversation a 400; 40,000 lines kept Chromium busy for 14 seconds."""
    page = open_page()
    paste = (
        "text => { const box = document.querySelector('#question'); box.value = text; box.dispatchEvent(new Event('input')); }"
    )
    page.evaluate(paste.replace("= text", "= 'half ' + String.fromCharCode(0xd800)"), "")
    page.press("#question", "Enter")
    done(page)
    assert last_answer(page) == "You said: half \ufffd"
    say(page, "after")
    assert last_answer(page) == "You said: after"
    for text, direction in (
        ("short", "ltr"),
        ("some words\n" * 40_000, "ltr"),
        ("1. \u05e9\u05dc\u05d5\u05dd\n" * 9_000, "rtl"),
    ):
        page.evaluate(paste, text)
        assert page.evaluate("document.querySelector('#question').dir") == direction
