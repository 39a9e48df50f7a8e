"""What a reader does on the page, for the tests of it, and what the model says to that."""

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

TABLE = "| stage | loss | note |\n|---|---:|:-:|\n| pretrain | 2.3 | " + "a long remark " * 9 + "|"


def answer(question):
    if "sum" in question:
        return "Let me see. §47+85§It is 132."
    if "hostile" in question:
        return HOSTILE_CODE if "code" in question else HOSTILE
    if "middling" in question:
        return " ".join(WORDS[:40])
    if "long" in question:
        return " ".join(WORDS)
    if "table" in question:
        return TABLE
    if "markdown" in question:
        return "**Bold** and *slanted*\n\n1. one\n2. two\n   - inner\n\n```python\nprint('hi')\n```\n> quoted"
    return f"You said: {question}"


def say(page, text, wait=True):
    page.fill("#question", text)
    page.press("#question", "Enter")
    if wait:
        done(page)


def done(page):
    page.wait_for_selector("#log[aria-busy=false]")


def second_tab(page):
    """Another tab of the same browser at the same conversation."""
    tab = page.context.new_page()
    tab.set_default_timeout(30_000)
    tab.goto(page.url)
    tab.wait_for_selector("html[data-ready]")
    return tab


def reload(page):
    page.reload()
    page.wait_for_selector("html[data-ready]")


def open_first(page):
    page.click("#chats li:first-child .open")


def in_list(page, name, button):
    """A button of the conversation in the list, shown when the pointer is there."""
    entry = page.locator("#chats li", has_text=name)
    entry.hover()
    entry.locator(f".{button}").click()


def focused(page):
    return page.evaluate("document.activeElement.id || document.activeElement.className || document.activeElement.tagName")


def last_answer(page):
    return page.locator("article.assistant").last.locator(".body").inner_text()


def exported(page):
    """Text of the file that "Export all" saves."""
    with page.expect_download() as download:
        page.click("#export")
    return download.value.path().read_text(encoding="utf-8")


def ready(page):
    """The models are known."""
    page.wait_for_selector("#model:has(option:text('tiny'))")
