"""A server on this machine that speaks the routes of the hub which huggingface_hub uses, and breaks where it is told to."""

import hashlib
import json
import threading
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class HubServer:
    """repositories["openai/gsm8k"] = {path: bytes}; faults[path] = ["cut", 429, "wrong", ...], one for each request to come."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.faults: dict[str, list] = defaultdict(list)
        self.requests: list[str] = []
        self.commits: list[list[dict]] = []
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {"hub": self}))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def describe(path: str, content: bytes) -> dict:
    """What paths-info says of a file; those that end in .parquet are large (LFS)."""
    found = {"type": "file", "path": path, "size": len(content)}
    found["oid"] = hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
    if path.endswith(".parquet"):
        found["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
    return found


class Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, *args) -> None:
        pass

    def answer(self, value, status: int = 200, **headers: str) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def parts(self) -> list[str]:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path} {self.headers.get('Range', '')}".strip())
        return path.strip("/").split("/")

    def refused(self, key: str) -> bool:
        """Whether a fault answered in place of the server. Statuses are for any request, "cut" and "wrong" for a GET."""
        waiting = self.hub.faults.get(key)
        if not waiting or not (isinstance(waiting[0], int) or waiting[0] == "gated"):
            return False
        fault = waiting.pop(0)
        if fault == "gated":
            self.answer({"error": "gated"}, 403, X_Error_Code="GatedRepo", X_Error_Message="Access is restricted")
        else:
            self.answer({"error": str(fault)}, fault, **({"Retry_After": "0"} if fault == 429 else {}))
        return True

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "datasets" | "models", owner, name, "revision", _]:
                repository = f"{owner}/{name}"
                if not self.refused(repository):
                    known = repository in self.hub.repositories
                    missing = {"X_Error_Code": "RepoNotFound"}
                    self.answer({"id": repository, "sha": COMMIT, "tags": []}) if known else self.answer({}, 404, **missing)
            case ["datasets", owner, name, "resolve", _, *path]:
                self.send_file(self.hub.repositories[f"{owner}/{name}"]["/".join(path)], "/".join(path))
            case ["files", name]:
                content = self.hub.repositories["files"].get(name)
                self.answer({}, 404) if content is None else self.send_file(content, name)
            case _:
                self.answer({"error": "no such route"}, 404)

    def send_file(self, content: bytes, path: str) -> None:
        if self.refused(path):
            return
        known = describe(path, content)
        facts = {"X_Repo_Commit": COMMIT, "ETag": f'"{known.get("lfs", known)["oid"]}"', "Accept_Ranges": "bytes"}
        waiting = self.hub.faults.get(path)
        fault = waiting.pop(0) if waiting and self.command == "GET" else None
        if fault == "wrong":
            content = bytes([content[0] ^ 1]) + content[1:]
        if spread := self.headers.get("Range"):
            start = int(spread.removeprefix("bytes=").split("-")[0])
            facts["Content_Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(content[start:], 206, **facts)
        elif fault == "cut":
            self.send_response(200)
            for name, text in {"Content-Length": str(len(content)), **facts}.items():
                self.send_header(name.replace("_", "-"), text)
            self.end_headers()
            self.wfile.write(content[: len(content) // 2])
            self.wfile.flush()
            self.close_connection = True
        else:
            self.answer(content, **facts)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        match self.parts():
            case ["api", "datasets", owner, name, "paths-info", _]:
                files = self.hub.repositories[f"{owner}/{name}"]
                self.answer([describe(path, files[path]) for path in parse_qs(body.decode())["paths"] if path in files])
            case ["api", "validate-yaml"]:
                self.answer({"warnings": [], "errors": []})
            case ["api", "repos", "create"]:
                asked = json.loads(body)
                repository = f"{asked.get('organization') or 'me'}/{asked['name']}"
                if not self.refused(repository):
                    self.hub.repositories.setdefault(repository, {})
                    self.answer({"url": f"{self.hub.url}/{repository}", "id": repository})
            case ["api", "models", owner, name, "preupload", _]:
                files = json.loads(body)["files"]
                modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None} for f in files]
                self.answer({"files": modes})
            case ["api", "models", owner, name, "commit", _]:
                self.hub.commits.append([json.loads(line) for line in body.splitlines()])
                address = f"{self.hub.url}/{owner}/{name}/commit/{COMMIT}"
                self.answer({"commitUrl": address, "commitOid": COMMIT, "success": True})
            case _:
                self.answer({"error": "no such route"}, 404)
