"""The page in a real headless Chromium, against a real server whose engine says what the test wants."""

import json
import os
import re
import shutil

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]
WORDS = [f"word{number}" for number in range(120)]
HOSTILE = """<img src=x onerror="window.bad=1"><script>window.bad=1</script> <b>bold</b>
[one](javascript:window.bad=1) [two](data:text/html,x) [three](JAVASCRIPT:x) [four](https://example.org/ok)
![five](https://example.org/pixel.png) <iframe src="https://example.org"></iframe>
- **<i onmouseover=window.bad=1>x</i>** `<u>code</u>`"""
HOSTILE_CODE = """\
# <svg onload="window.bad=1">
```html"><img src=x onerror=window.bad=1>
<script>window.bad=1</script>
```"""

pytestmark = pytest.mark.browser


def answer(question):
    if "sum" in question:
        return "Let me see. §47+85§It is 132."
    if "hostile" in question:
        return HOSTILE_CODE if "code" in question else HOSTILE
    if "long" in question:
        return " ".join(WORDS)
    if "markdown" in question:
        return "**Bold** and *slanted*\n\n1. one\n2. two\n   - inner\n\n```python\nprint('hi')\n```\n> quoted"
    return f"You said: {question}"


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: none of " + ", ".join(NAMES) + " found (set CHROMIUM=path)")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def open_page(browser, serving, scripted):
    """open_page(**options) -> a page of a new server; .requests are the bodies it posted. Any script error fails."""
    contexts, problems = [], []

    def start(delay_seconds=0.0, context=512, path="", client=None, **options):
        width = options.pop("width", 1100)
        client = client or serving(scripted(answer, delay_seconds=delay_seconds, context=context), **options)
        view = browser.new_context(viewport={"width": width, "height": 760}, accept_downloads=True)
        contexts.append(view)
        page = view.new_page()
        page.set_default_timeout(10_000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda line: problems.append(line.text) if "Content Security Policy" in line.text else None)
        page.requests, page.client, page.foreign = [], client, []

        def note(request):
            if not request.url.startswith((client.url, "blob:")):
                page.foreign.append(request.url)
            if request.url.endswith("/chat/completions"):
                page.requests.append(json.loads(request.post_data))

        page.on("request", note)
        page.goto(client.url + path)
        return page

    yield start
    for view in contexts:
        view.close()
    assert problems == []


def say(page, text, wait=True):
    page.fill("#question", text)
    page.press("#question", "Enter")
    if wait:
        page.wait_for_selector("#log[aria-busy=false]")


def last_answer(page):
    return page.locator("article.assistant").last.locator(".body").inner_text()


def test_a_conversation_of_two_turns(open_page):
    page = open_page()
    page.wait_for_selector("#model:text('tiny')")
    say(page, "Hello there")
    assert last_answer(page) == "You said: Hello there"
    say(page, "And again")
    assert page.requests[1]["messages"] == [
        {"role": "user", "content": "Hello there"},
        {"role": "assistant", "content": "You said: Hello there"},
        {"role": "user", "content": "And again"},
    ]
    assert re.fullmatch(r"\d+ tokens · [\d.]+ tokens/s", page.locator(".stats").last.inner_text())
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


def test_reload_keeps_the_conversation_and_deleting_can_be_undone(open_page):
    page = open_page()
    say(page, "keep me")
    page.reload()
    assert last_answer(page) == "You said: keep me"
    say(page, "more")
    assert page.requests[-1]["messages"][0]["content"] == "keep me"
    page.click("#new-chat")
    page.click("#chats .open")
    assert page.locator("article").count() == 4
    page.hover("#chats li")
    page.click("#chats .remove")
    assert page.locator("article").count() == 0
    assert page.locator("#chats li").count() == 0
    page.click("#notice button")
    assert page.locator("#chats li").count() == 1


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


def test_settings_are_sent_and_kept(open_page):
    page = open_page()
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.fill("#temperature", "0.1")
    page.fill("#max-tokens", "100000")
    page.fill("#top-k", "5")
    page.select_option("#theme", "dark")
    page.keyboard.press("Escape")
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.wait_for_selector("#model:text('tiny')")
    say(page, "hi")
    body = page.requests[0]
    assert body["messages"][0] == {"role": "system", "content": "Be brief."}
    assert (body["temperature"], body["max_tokens"], body["top_k"]) == (0.1, 512, 5)
    assert last_answer(page) == "You said: Be brief.\n\nhi"


def test_the_api_key_is_asked_for(open_page):
    page = open_page(api_key="right")
    page.click("#notice button")
    page.fill("#api-key", "right")
    page.press("#api-key", "Tab")
    page.wait_for_selector("#model:text('tiny')")
    page.keyboard.press("Escape")
    say(page, "hi")
    assert last_answer(page) == "You said: hi"


def test_a_failed_answer_can_be_tried_again(open_page):
    page = open_page()
    page.client.service.worker.engine._scheduler.fail = RuntimeError("broken")
    say(page, "hello")
    assert "failed" in page.inner_text(".error")
    page.client.service.worker.engine._scheduler.fail = None
    page.click(".error button")
    page.wait_for_selector("#log[aria-busy=false]")
    assert last_answer(page) == "You said: hello"
    assert page.locator(".error").count() == 0


def test_dropped_turns_are_told(open_page):
    page = open_page(context=64)
    for number in range(4):
        say(page, f"question number {number} of a few")
    assert "oldest messages were left out" in page.inner_text("article:last-child .note")


def test_loading_is_shown_until_the_model_is_there(open_page, serving, scripted, tok):
    client = serving(None)
    page = open_page(client=client)
    page.wait_for_selector("#notice:text('loading')")
    client.service.open(scripted(answer), tok)
    page.wait_for_selector("#model:text('nutshell'), #model:text('tiny')")
    assert page.is_hidden("#notice")


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


def test_export_is_json_of_all_conversations(open_page):
    page = open_page()
    say(page, "the sum please")
    with page.expect_download() as download:
        page.click("#export")
    exported = json.loads(download.value.path().read_text(encoding="utf-8"))
    (conversation,) = exported["conversations"]
    assert conversation["title"] == "the sum please"
    assert [message["role"] for message in conversation["messages"]] == ["user", "assistant"]
    assert conversation["messages"][1]["content"][1] == {"type": "python", "text": "47+85"}


def test_events_survive_any_cut_of_the_network(open_page):
    """Every split of the bytes in two, and one byte at a time, with each kind of line end."""
    page = open_page()
    found = page.evaluate("""async () => {
        const { eventParser } = await import("/web/sse.js");
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
