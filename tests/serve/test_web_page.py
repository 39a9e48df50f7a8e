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
    if "middling" in question:
        return " ".join(WORDS[:40])
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
        page.set_default_timeout(30_000)
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


def second_tab(page):
    """Another tab of the same browser at the same conversation."""
    tab = page.context.new_page()
    tab.set_default_timeout(30_000)
    tab.goto(page.url)
    return tab


def done(page):
    page.wait_for_selector("#log[aria-busy=false]")


def open_first(page):
    page.click("#chats li:first-child .open")


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")


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


def test_loading_is_shown_until_the_model_is_there(open_page, serving, scripted, tok):
    client = serving(None)
    page = open_page(client=client)
    page.wait_for_selector("#notice:text('loading')")
    client.service.open(scripted(answer))
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


def test_f20_open_conversation_clicked_in_the_sidebar_keeps_its_answer(open_page):
    page = open_page()
    say(page, "one")
    open_first(page)
    assert last_answer(page) == "You said: one"
    say(page, "two")
    page.reload()
    assert page.locator("article").count() == 4
    page.hover("#chats li")
    page.click("#chats .remove")
    page.click("#notice button")
    assert last_answer(page) == "You said: two"


def test_f20_undo_brings_back_each_deleted_conversation_with_what_was_streaming(open_page):
    page = open_page(delay_seconds=0.02)
    say(page, "first")
    page.click("#new-chat")
    say(page, "a long one", wait=False)
    page.wait_for_selector(".assistant .body:has-text('word3')")
    for _ in range(2):
        page.hover("#chats li:first-child")
        page.click("#chats li:first-child .remove")
    assert page.locator("#chats li").count() == 0
    page.click("#notice button")
    page.click("#notice button")
    assert page.locator("#chats li").count() == 2
    page.reload()
    for text in ("first", "a long one"):
        page.click(f"#chats .open:text('{text}')")
        assert last_answer(page).startswith("You said: first" if text == "first" else "word0 word1 word2 word3")


def test_f20_an_answer_goes_on_while_another_conversation_is_read_and_a_reload_keeps_what_was_said(open_page):
    page = open_page(delay_seconds=0.01)
    say(page, "other")
    page.click("#new-chat")
    say(page, "a long one", wait=False)
    page.wait_for_selector(".assistant .body:has-text('word2')")
    page.click("#chats .open:text('other')")
    assert page.is_hidden("#stop")
    page.click("#chats .open:text('a long one')")
    page.wait_for_selector(".assistant .body:has-text('word9')")
    page.reload()
    assert "word9" in last_answer(page)
    ended = page.locator("article.assistant").last.inner_text()
    assert "unfinished" in ended or "The connection broke" in ended


def test_f20_two_tabs_streaming_in_one_conversation_lose_neither_answer(open_page):
    page = open_page(delay_seconds=0.01)
    say(page, "a middling start")
    tab = second_tab(page)
    page.click(".again")
    tab.wait_for_selector("article.assistant .versions:text('1/2')")  # it stays where its reader is
    say(tab, "a middling two", wait=False)
    tab.wait_for_selector("#log[aria-busy=true]")
    page.wait_for_selector("#log[aria-busy=true]")
    done(page)
    done(tab)
    for view in (page, tab):
        view.reload()
        view.wait_for_selector("article.assistant")
        if view.locator("article").count() == 2:
            view.click("article.assistant [title='Previous version']")
        assert view.locator(".bubble").all_inner_texts() == ["a middling start", "a middling two"]
        view.click("article.assistant >> nth=0 >> [title='Next version']")
        assert last_answer(view) == " ".join(WORDS[:40])
        view.click("article.assistant [title='Previous version']")
        assert view.locator("article.assistant .body").all_inner_texts() == [" ".join(WORDS[:40])] * 2


def test_f20_a_tab_sees_what_the_other_says_and_deletes(open_page, eventually):
    page = open_page(delay_seconds=0.01)
    say(page, "start")
    tab = second_tab(page)
    say(page, "more")
    tab.wait_for_selector(".assistant .body:has-text('You said: more')")
    say(tab, "a long one", wait=False)
    tab.wait_for_selector(".assistant .body:has-text('word3')")
    page.hover("#chats li")
    page.click("#chats .remove")
    tab.wait_for_selector("#notice:text('deleted in another tab')")
    eventually(lambda: page.client.service.worker.in_flight == 0)
    assert page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('nutshell.chat'))") == []
    tab.click("#notice button")
    assert "word3" in last_answer(tab)
    page.wait_for_selector("#chats li")


def test_f20_edits_and_new_answers_are_versions(open_page):
    page = open_page()
    say(page, "one")
    say(page, "two")
    page.hover("article.user >> nth=0")
    page.click("article.user >> nth=0 >> .edit")
    page.fill("article.user textarea", "other")
    page.keyboard.press("Enter")
    done(page)
    assert focused(page) == "question"
    assert page.locator("article").count() == 2
    page.reload()
    page.click("article.user [title='Previous version']")
    assert page.locator(".bubble").all_inner_texts() == ["one", "two"]
    page.hover("article.assistant >> nth=0")
    page.click("article.assistant >> nth=0 >> .again")
    done(page)
    assert page.requests[-1]["messages"] == [{"role": "user", "content": "one"}]
    assert page.inner_text("article.assistant .versions").startswith("‹2/2")


def test_f20_a_full_storage_says_so_and_loses_nothing(open_page):
    page = open_page()
    say(page, "kept")
    page.evaluate("""() => { for (const size of [1e6, 1e5, 1e4, 1e3, 100, 10, 1]) {
        try { for (;;) localStorage.setItem("fill" + Math.random(), "x".repeat(size)); } catch {} } }""")
    say(page, "too much")
    assert "does not keep" in page.inner_text("#notice")
    open_first(page)
    assert last_answer(page) == "You said: too much"
    with page.expect_download() as download:
        page.click("#notice button")
    assert "You said: too much" in download.value.path().read_text(encoding="utf-8")
    page.on("dialog", lambda dialog: dialog.accept())  # it asks before it is left
    page.reload()
    assert page.locator(".bubble").first.inner_text() == "kept"


def test_f20_without_storage_the_page_works(open_page):
    page = open_page()
    page.add_init_script("Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no') } })")
    page.reload()
    say(page, "one")
    assert "does not keep" in page.inner_text("#notice")
    open_first(page)
    say(page, "two")
    assert len(page.requests[-1]["messages"]) == 3
    page.on("dialog", lambda dialog: dialog.accept())
    page.close(run_before_unload=True)


def test_f20_what_was_exported_or_stored_before_can_be_read(open_page, tmp_path):
    """Import of this version's and of version 1's export, twice; version 1's storage; and files that are no export."""
    page = open_page()
    page.evaluate("""localStorage.setItem("nutshell.chat.old-1", JSON.stringify({ id: "old-1", title: "Old", updated: 5,
        messages: [{ role: "user", text: "hi" }, { role: "assistant", parts: [{ type: "text", text: "ho" }] }] }))""")
    page.reload()
    open_first(page)
    assert last_answer(page) == "ho"
    page.click("#open-settings")
    page.fill("#system", "Be brief.")
    page.keyboard.press("Escape")
    say(page, "the sum please")
    with page.expect_download() as download:
        page.click("#export")
    page.on("dialog", lambda dialog: dialog.accept())
    page.click("#open-settings")
    page.click("#delete-all")
    page.keyboard.press("Escape")
    assert page.locator("#chats li").count() == 0
    version1 = tmp_path / "one.json"
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    version1.write_text(
        json.dumps({"conversations": [{"id": "../x", "title": "One", "updated": "2025-01-01", "messages": messages}]})
    )
    for path in (download.value.path(), download.value.path(), version1):
        page.set_input_files("#import-file", path)
        page.wait_for_selector("#notice:text('read from')")
    assert page.locator("#chats .open").all_inner_texts() == ["Old", "One"]
    open_first(page)
    assert page.locator("article").count() == 4
    page.reload()
    say(page, "more")
    sent = page.requests[-1]["messages"]
    assert sent[0] == {"role": "system", "content": "Be brief."}  # F29: it belongs to the conversation
    assert sent[4]["content"][1] == {"type": "python", "text": "47+85"}
    for number, text in enumerate(
        ["", "[]", "{}", '{"conversations": [{"messages": [{"role": "user", "content": 5}, null, 7]}]}']
    ):
        wrong = tmp_path / f"{number}.json"
        wrong.write_text(text)
        page.set_input_files("#import-file", wrong)
        page.wait_for_selector(f"#notice:text('{number}.json was not read')")
    assert page.locator("#chats li").count() == 2


def test_f29_focus_and_the_keyboard(open_page):
    page = open_page()
    say(page, "one")
    page.focus(".again")
    page.keyboard.press("Enter")
    done(page)
    assert focused(page) == "question"
    page.click("#new-chat")
    say(page, "two")
    page.focus("#chats li:first-child .remove")
    page.keyboard.press("Enter")
    assert focused(page) == "open"
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    assert focused(page) == "new-chat"
    page.focus("#notice button")
    page.keyboard.press("Enter")
    assert focused(page) == "question"


def test_f29_errors_are_told_apart(open_page):
    page = open_page()
    page.wait_for_selector("#model:text('tiny')")
    event = "data: %s\n\n"
    for given, told in [
        ("refuse", "The server cannot be reached."),
        ({"status": 200, "body": event % '{"choices":[{"delta":{"content":"half"}}]}'}, "The connection broke before"),
        ({"status": 200, "body": event % '{"error":{"message":"the model failed"}}'}, "The model failed."),
        ({"status": 200, "body": event % "<html>"}, "is not an answer"),
        ({"status": 502, "body": "<html>"}, "behind the proxy"),
        ({"status": 413, "body": "{}"}, "more text than"),
        ({"status": 429, "body": "{}"}, "busy"),
    ]:
        page.route(
            "**/v1/chat/completions",
            lambda route, request, given=given: route.abort() if given == "refuse" else route.fulfill(**given),
        )
        page.click("#new-chat")
        say(page, "hello")
        assert told in page.inner_text(".error")
        page.unroute("**/v1/chat/completions")


def test_f29_a_question_asked_while_the_model_loads_is_sent_when_it_is_ready(open_page, serving, scripted, tok):
    client = serving(None)
    page = open_page(client=client)
    say(page, "early", wait=False)
    page.wait_for_selector(".note:text('as soon as it is ready')")
    client.service.open(scripted(answer))
    done(page)
    assert last_answer(page) == "You said: early"
    assert page.locator("article").count() == 2


def test_f43_the_page_works_below_a_prefix(open_page, serving, scripted):
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
    page.wait_for_selector("#model:text('tiny')")
    say(page, "hello")
    page.reload()
    assert last_answer(page) == "You said: hello"


def test_f43_enter_in_a_composition_does_not_send(open_page):
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


@pytest.mark.parametrize("allowed", [True, False])
def test_f43_copy_over_plain_http(open_page, allowed):
    page = open_page()
    page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    if not allowed:
        page.add_init_script("document.execCommand = () => false")
    page.reload()
    say(page, "copy me")
    button = page.locator("article.assistant .copy")
    button.click()
    assert button.inner_text() == ("Copied" if allowed else "Cannot copy")
    if allowed:
        page.focus("#question")
        page.keyboard.press("Control+V")
        assert page.input_value("#question") == "You said: copy me"


def test_f20_settings_of_two_tabs_and_a_cleared_storage(open_page):
    page = open_page()
    say(page, "one")
    tab = second_tab(page)
    page.click("#open-settings")
    page.select_option("#theme", "dark")
    tab.wait_for_selector("html[data-theme=dark]")
    tab.click("#open-settings")
    tab.fill("#top-k", "7")
    tab.reload()
    assert tab.get_attribute("html", "data-theme") == "dark"
    tab.click("#open-settings")
    assert tab.input_value("#top-k") == "7"
    page.keyboard.press("Escape")
    tab.evaluate("localStorage.clear()")
    page.wait_for_selector("#notice:text('deleted in another tab')")
    page.click("#notice button")
    assert last_answer(page) == "You said: one"
    tab.wait_for_selector("#chats li")


def test_f20_room_made_later_is_used_for_what_was_refused(open_page):
    page = open_page()
    say(page, "small")
    page.click("#new-chat")
    page.evaluate("""() => { for (const size of [1e6, 1e5, 1e4, 1e3, 100, 10, 1]) {
        try { for (;;) localStorage.setItem("fill" + Math.random(), "x".repeat(size)); } catch {} } }""")
    say(page, "refused")
    assert "does not keep" in page.inner_text("#notice")
    page.evaluate("Object.keys(localStorage).filter((key) => key.startsWith('fill')).forEach((key) => delete localStorage[key])")
    page.hover("#chats li:nth-child(2)")
    page.click("#chats li:nth-child(2) .remove")
    page.reload()
    assert last_answer(page) == "You said: refused"
