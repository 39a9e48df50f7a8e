"""The page, the API and /runs behind a proxy that serves them below a path, as nginx or a hub of notebooks does."""

import contextlib
import http.client
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import httpx
import pytest
from driver import say

from nutshell.serve.models import Models


class Proxy(BaseHTTPRequestHandler):
    """Takes /llm/ off and passes the rest on; all else is a 404."""

    def pass_on(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if not self.path.startswith("/llm/"):
            self.send_error(404)
            return
        upstream = http.client.HTTPConnection("127.0.0.1", self.server.upstream, timeout=20)
        upstream.request(self.command, self.path[4:], body, dict(self.headers))
        answer = upstream.getresponse()
        self.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in ("transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.end_headers()
        while chunk := answer.read1():
            self.wfile.write(chunk)
            self.wfile.flush()
        upstream.close()

    do_GET = do_POST = pass_on  # noqa: N815

    def log_message(self, *args):
        pass


@pytest.fixture
def below():
    """below(client) -> the address of its server behind a proxy."""
    with contextlib.ExitStack() as stack:
        yield lambda client: stack.enter_context(proxied(client))


@contextlib.contextmanager
def proxied(client):
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Proxy)
    proxy.daemon_threads = True
    proxy.upstream = int(client.url.rsplit(":", 1)[1])
    thread = threading.Thread(target=proxy.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{proxy.server_port}/llm"
    proxy.shutdown()
    thread.join()
    proxy.server_close()


def test_the_api_streams_below_a_path(below, serving, scripted):
    address = below(serving(scripted("That is §47+85§132.")))
    body = {"messages": [{"role": "user", "content": "Sum?"}], "stream": True}
    with httpx.stream("POST", f"{address}/v1/chat/completions", json=body, trust_env=False, timeout=20) as answer:
        events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: {")]
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events) == "That is 132."
    assert httpx.get(f"{address}/health", trust_env=False).json() == {"status": "ok"}
    assert httpx.get(address.removesuffix("/llm") + "/health", trust_env=False).status_code == 404


@pytest.mark.browser
def test_the_page_works_below_a_path(open_page, below, serving, scripted):
    page = open_page(client=SimpleNamespace(url=below(serving(scripted("It is fine.")))), path="/")
    say(page, "How is it?")
    page.wait_for_selector("article.assistant >> text=It is fine.")
    page.reload()
    page.wait_for_selector("article.assistant >> text=It is fine.")
    assert page.foreign == []  # every request lay below the path


@pytest.mark.browser
def test_runs_work_below_a_path(open_page, below, serving, scripted, tmp_path):
    run = tmp_path / "new"
    run.mkdir()
    step = {"stage": "pretrain", "step": 1, "steps": 9, "seconds": 1.0, "tokens": 512, "loss": 5.0, "tokens_per_second": 9.0}
    (run / "metrics.jsonl").write_text(json.dumps(step) + "\n")
    address = below(serving(scripted("Hi."), models=Models("new", max_queue=4, folder=run)))
    page = open_page(client=SimpleNamespace(url=address), path="/runs")
    page.wait_for_selector("#runs >> text=step 1 of 9")
    page.click("text=Chat")
    page.wait_for_selector("#question")
    assert (page.url, page.foreign) == (f"{address}/", [])
