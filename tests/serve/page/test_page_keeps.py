"""Nothing that was said is lost."""

import json

import pytest
from driver import WORDS, done, focused, in_list, last_answer, open_first, reload, say, second_tab

pytestmark = pytest.mark.browser


FULL = """() => {
    window.roomy = IDBTransaction.prototype.commit;
    IDBTransaction.prototype.commit = function commit() { this.abort(); };  // as the browser ends a write beyond its quota
}"""
ROOM = "() => { IDBTransaction.prototype.commit = window.roomy; }"
NO_STORAGE = """for (const name of ["indexedDB", "localStorage", "sessionStorage"])
    Object.defineProperty(window, name, { get() { throw new DOMException("no"); } });"""
KEPT = """async (table) => {
    const open = indexedDB.open("nutshell");
    await new Promise((resolve) => { open.onsuccess = resolve; });
    const all = open.result.transaction(table).objectStore(table).getAllKeys();
    await new Promise((resolve) => { all.onsuccess = resolve; });
    open.result.close();
    return all.result;
}"""


def test_open_conversation_clicked_in_the_sidebar_keeps_its_answer(open_page):
    page = open_page()
    say(page, "one")
    open_first(page)
    assert last_answer(page) == "You said: one"
    say(page, "two")
    reload(page)
    assert page.locator("article").count() == 4
    page.hover("#chats li")
    page.click("#chats .remove")
    page.click("#notice button")
    assert last_answer(page) == "You said: two"


def test_undo_brings_back_each_deleted_conversation_with_what_was_streaming(open_page):
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
    reload(page)
    for text in ("first", "a long one"):
        page.click(f"#chats .open:text('{text}')")
        assert last_answer(page).startswith("You said: first" if text == "first" else "word0 word1 word2 word3")


def test_an_answer_goes_on_while_another_conversation_is_read_and_a_reload_keeps_what_was_said(open_page):
    page = open_page(delay_seconds=0.01)
    say(page, "other")
    page.click("#new-chat")
    say(page, "a long one", wait=False)
    page.wait_for_selector(".assistant .body:has-text('word2')")
    page.click("#chats .open:text('other')")
    assert page.is_hidden("#stop")
    page.click("#chats .open:text('a long one')")
    page.wait_for_selector(".assistant .body:has-text('word9')")
    reload(page)
    assert "word9" in last_answer(page)
    ended = page.locator("article.assistant").last.inner_text()
    assert "unfinished" in ended or "The connection broke" in ended


def test_two_tabs_streaming_in_one_conversation_lose_neither_answer(open_page):
    page = open_page(delay_seconds=0.01)
    say(page, "a middling start")
    tab = second_tab(page)
    page.click(".regenerate")
    tab.wait_for_selector("article.assistant .versions:text('1/2')")  # it stays where its reader is
    say(tab, "a middling two", wait=False)
    tab.wait_for_selector("#log[aria-busy=true]")
    page.wait_for_selector("#log[aria-busy=true]")
    done(page)
    done(tab)
    for view in (page, tab):
        reload(view)
        view.wait_for_selector("article.assistant")
        if view.locator("article").count() == 2:
            view.click("article.assistant [title='Previous version']")
        assert view.locator(".bubble").all_inner_texts() == ["a middling start", "a middling two"]
        view.click("article.assistant >> nth=0 >> [title='Next version']")
        assert last_answer(view) == " ".join(WORDS[:40])
        view.click("article.assistant [title='Previous version']")
        assert view.locator("article.assistant .body").all_inner_texts() == [" ".join(WORDS[:40])] * 2


def test_a_tab_sees_what_the_other_says_and_deletes(open_page, eventually):
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
    assert page.evaluate(KEPT, "chats") == page.evaluate(KEPT, "messages") == []
    tab.click("#notice button")
    assert "word3" in last_answer(tab)
    page.wait_for_selector("#chats li")


def test_edits_and_new_answers_are_versions(open_page):
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
    reload(page)
    page.click("article.user [title='Previous version']")
    assert page.locator(".bubble").all_inner_texts() == ["one", "two"]
    page.hover("article.assistant >> nth=0")
    page.click("article.assistant >> nth=0 >> .regenerate")
    done(page)
    assert page.requests[-1]["messages"] == [{"role": "user", "content": "one"}]
    assert page.inner_text("article.assistant .versions").startswith("‹2/2")


def test_a_full_storage_says_so_and_loses_nothing(open_page):
    page = open_page()
    say(page, "kept")
    page.evaluate(FULL)
    say(page, "too much")
    assert "does not keep" in page.inner_text("#notice")
    open_first(page)
    assert last_answer(page) == "You said: too much"
    with page.expect_download() as download:
        page.click("#notice button")
    assert "You said: too much" in download.value.path().read_text(encoding="utf-8")
    page.on("dialog", lambda dialog: dialog.accept())  # it asks before it is left
    reload(page)
    assert page.locator(".bubble").first.inner_text() == "kept"


def test_without_storage_the_page_works(open_page):
    page = open_page()
    page.add_init_script(NO_STORAGE)
    reload(page)
    say(page, "one")
    assert "does not keep" in page.inner_text("#notice")
    open_first(page)
    say(page, "two")
    assert len(page.requests[-1]["messages"]) == 3
    page.on("dialog", lambda dialog: dialog.accept())
    page.close(run_before_unload=True)


def test_what_was_exported_or_stored_before_can_be_read(open_page, tmp_path):
    """Import of this version's and of version 1's export, twice; version 1's storage; and files that are no export."""
    page = open_page()
    page.evaluate("""localStorage.setItem("nutshell.chat.old-1", JSON.stringify({ id: "old-1", title: "Old", updated: 5,
        messages: [{ role: "user", text: "hi" }, { role: "assistant", parts: [{ type: "text", text: "ho" }] }] }))""")
    reload(page)
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
    reload(page)
    say(page, "more")
    sent = page.requests[-1]["messages"]
    assert sent[0] == {"role": "system", "content": "Be brief."}  # F29: it belongs to the conversation
    assert sent[4]["content"][1] == {"type": "python", "text": "47+85"}
    for number, text in enumerate(
        [
            "",
            "[]",
            "{}",
            '{"conversations": [{"messages": [{"role": "user", "content": 5}, null, 7]}]}',
            '{"conversations": [{"messages": [{"role": "user", "content": [{"type": "image", "text": "x"}]}]}]}',
        ]
    ):
        wrong = tmp_path / f"{number}.json"
        wrong.write_text(text)
        page.set_input_files("#import-file", wrong)
        page.wait_for_selector(f"#notice:text('{number}.json was not read')")
    assert page.locator("#chats li").count() == 2


def test_settings_of_two_tabs(open_page):
    page = open_page()
    say(page, "one")
    tab = second_tab(page)
    page.click("#open-settings")
    page.select_option("#theme", "dark")
    tab.wait_for_selector("html[data-theme=dark]")
    tab.click("#open-settings")
    tab.fill("#top-k", "7")
    reload(tab)
    assert tab.get_attribute("html", "data-theme") == "dark"
    tab.click("#open-settings")
    assert tab.input_value("#top-k") == "7"


def test_room_made_later_is_used_for_what_was_refused(open_page):
    page = open_page()
    say(page, "small")
    page.click("#new-chat")
    page.evaluate(FULL)
    say(page, "refused")
    assert "does not keep" in page.inner_text("#notice")
    page.evaluate(ROOM)
    page.hover("#chats li:nth-child(2)")
    page.click("#chats li:nth-child(2) .remove")
    reload(page)
    assert last_answer(page) == "You said: refused"


def test_reload_keeps_the_conversation_and_deleting_can_be_undone(open_page):
    page = open_page()
    say(page, "keep me")
    reload(page)
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


def test_a_reload_at_once_keeps_the_question_and_what_was_not_sent_yet(open_page):
    page = open_page(delay_seconds=0.01)
    page.fill("#question", "a long one")
    page.evaluate("document.getElementById('send').click(); location.reload()")
    page.wait_for_selector(".bubble:text('a long one')")
    page.wait_for_selector("html[data-ready]")
    page.fill("#question", "half a thought")
    page.click("#new-chat")
    assert page.input_value("#question") == ""
    page.fill("#question", "another")
    open_first(page)
    assert page.input_value("#question") == "half a thought"
    reload(page)
    assert page.input_value("#question") == "half a thought"
    page.click("#new-chat")
    assert page.input_value("#question") == "another"


def test_an_answer_that_broke_off_is_gone_on_with(open_page):
    page = open_page()
    half = 'data: {"choices": [{"delta": {"content": "The beginning,"}}]}\n\n'
    page.route("**/v1/chat/completions", lambda route: route.fulfill(status=200, body=half))
    say(page, "hello")
    assert "The connection broke" in page.inner_text(".error")
    page.unroute("**/v1/chat/completions")
    page.click("article.assistant .resume")
    done(page)
    assert last_answer(page).startswith("The beginning,You said: hello")
    assert page.requests[-1]["messages"][-1] == {"role": "assistant", "content": "The beginning,"}
    reload(page)
    assert last_answer(page).startswith("The beginning,You said: hello")


def test_search_rename_and_export_of_one(open_page):
    page = open_page()
    for text in ("apples and pears", "plums"):
        page.click("#new-chat")
        say(page, text)
    page.fill("#search", "SAID pears")
    assert page.locator("#chats .open").all_inner_texts() == ["apples and pears"]
    in_list(page, "apples", "rename")
    page.keyboard.type("Fruit")
    page.keyboard.press("Enter")
    page.fill("#search", "kiwis")
    assert page.is_visible("#nothing")
    page.fill("#search", "")
    reload(page)
    assert page.locator("#chats .open").all_inner_texts() == ["plums", "Fruit"]
    with page.expect_download() as download:
        in_list(page, "Fruit", "save")
    assert download.value.suggested_filename.startswith("nutshell-Fruit-")
    (only,) = json.loads(download.value.path().read_text(encoding="utf-8"))["conversations"]
    assert [message["content"] for message in only["messages"]] == ["apples and pears", "You said: apples and pears"]


def import_chat(page, folder, messages):
    path = folder / "chat.json"
    path.write_text(json.dumps({"conversations": [{"messages": messages}]}))
    page.set_input_files("#import-file", path)
    page.wait_for_selector("#notice:text('read from')")
    open_first(page)


@pytest.mark.parametrize(("turns", "text"), [(600, "a"), (300, "\u5b57" * 2000)])
def test_a_very_long_conversation_goes_on(open_page, tmp_path, turns, text):
    """A sibling of F22: beyond the server's 1,024 messages or 2 MiB a conversation could not be gone on with, ever."""
    page = open_page()
    said = [{"role": role, "content": f"{text}{turn}"} for turn in range(turns) for role in ("user", "assistant")]
    import_chat(page, tmp_path, said)
    say(page, "more")
    assert last_answer(page) == "You said: more"
    assert 250 < len(page.requests[-1]["messages"]) <= 1000
    dropped = int(page.locator("article.assistant .note").last.inner_text().split("its ")[1].split()[0])
    assert len(said) - 100 < dropped <= len(said)


def test_a_greeting_and_repeated_ids_are_read(open_page, tmp_path):
    """Siblings of F26: regenerating an imported greeting was a script error, and a message hid the one whose id it had."""
    page = open_page()
    import_chat(
        page, tmp_path, [{"role": "assistant", "content": "Hello", "id": "a"}, {"role": "user", "content": "b", "id": "a"}]
    )
    assert page.locator("article .body, article .bubble").all_inner_texts() == ["Hello", "b"]
    assert page.locator("article.assistant .regenerate").is_hidden()


@pytest.mark.parametrize("value", ["garbage", "null", '{"messages": 5}', '{"messages": [null, {"role": "assistant"}]}'])
def test_damaged_storage_does_not_keep_the_page_from_opening(open_page, value):
    """What an older page left, and a database that is not ours: the page stayed blank for ever. What cannot be read stays."""
    page = open_page()
    say(page, "one")
    page.evaluate("value => localStorage.setItem('nutshell.chat.x', value)", value)
    reload(page)
    assert last_answer(page) == "You said: one"
    assert page.evaluate("localStorage.getItem('nutshell.chat.x')") == value


def test_a_database_of_another_program_does_not_keep_the_page_from_opening(open_page):
    page = open_page()
    page.goto(page.client.url + "/health")
    page.evaluate("""async () => {
        const done = (request) => new Promise((resolve) => { request.onsuccess = resolve; });
        await done(indexedDB.deleteDatabase("nutshell"));
        const opened = indexedDB.open("nutshell", 1);
        opened.onupgradeneeded = () => opened.result.createObjectStore("other");
        await done(opened);
        opened.result.close();
    }""")
    page.goto(page.client.url)
    page.wait_for_selector("html[data-ready]")
    say(page, "one")
    assert last_answer(page) == "You said: one"
    assert "does not keep" in page.inner_text("#notice")
