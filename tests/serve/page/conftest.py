"""The page in a real headless Chromium, against a real server whose engine says what the test wants."""

import json

import pytest
from driver import answer


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
            if request.url.endswith("/completions"):
                page.requests.append(json.loads(request.post_data))

        page.on("request", note)
        page.goto(client.url + path)
        page.wait_for_selector("html[data-ready]")
        return page

    yield start
    for view in contexts:
        view.close()
    assert problems == []
