"""How a server answers many streams at once: requests/s, time to first token and between tokens, /health at its worst.

    nutshell serve runs/demo --port 8000 &
    python benchmarks/serving.py http://127.0.0.1:8000 --pid $!
    python -m llama_cpp.server --model model.gguf --port 8001 &      # beside another server, of the same exported model
    python benchmarks/serving.py http://127.0.0.1:8000 http://127.0.0.1:8001

Any server with OpenAI's chat completions will do. --seconds a level, the servers by turns. A stream that is refused with 429
comes again after the time of Retry-After. The load comes from this process, on the same cores. --minutes 5 is a long level of 200
streams: memory before and after it says whether the server keeps anything.
"""

import argparse
import asyncio
import http.client
import json
import time
from collections import Counter
from concurrent.futures import Executor, ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from urllib.parse import urlsplit

from nutshell.report.provenance import processor


@dataclass
class Seen:
    """What the streams of one level saw."""

    first: list[float] = field(default_factory=list)
    between: list[float] = field(default_factory=list)
    health: list[float] = field(default_factory=list)
    outcomes: Counter[str] = field(default_factory=Counter)


async def exchange(url: str, method: str, path: str, body: bytes = b""):
    """One HTTP/1.1 request: yields the status, the headers, and then each line of the answer."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port)
    try:
        head = f"{method} {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nConnection: close\r\nContent-Type: application/json\r\n"
        writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        yield int((await reader.readline()).split()[1])
        headers = {}
        while line := (await reader.readline()).decode().strip():
            name, _, value = line.partition(":")
            headers[name.lower()] = value.strip()
        yield headers
        while line := await reader.readline():
            yield line
    finally:
        writer.close()


async def stream(url: str, options: argparse.Namespace, seen: Seen, until: float) -> None:
    """Ask again and again."""
    number = 0
    while time.monotonic() < until:
        number += 1
        request = {"messages": [{"role": "user", "content": options.prompt}], "max_tokens": options.max_tokens, "stream": True,
                   "temperature": 1, "seed": number}  # fmt: skip
        began = last = time.monotonic()
        tokens, ended = 0, False
        lines = exchange(url, "POST", "/v1/chat/completions", json.dumps(request).encode())
        try:
            status, headers = await anext(lines), await anext(lines)
            async for line in lines:
                ended = ended or line.startswith(b"data: [DONE]")
                if not line.startswith(b"data: {") or b'"content":"' not in line.replace(b'": "', b'":"') or b'"role"' in line:
                    continue
                now = time.monotonic()
                (seen.between if tokens else seen.first).append(now - last)
                last, tokens = now, tokens + 1
        except OSError as error:
            status, headers = type(error).__name__, {}
        if status == 200 and not ended:
            status = "cut off"
        seen.outcomes[str(status)] += time.monotonic() < until or status != 200
        if status == 429:
            await asyncio.sleep(float(headers.get("retry-after", 1)))
        elif status == 200 and not tokens:
            seen.first.append(time.monotonic() - began)


def watch_health(url: str, seconds: float) -> list[float]:
    """In a process of its own: this one's event loop is as busy as the server's."""
    times, until, parts = [], time.monotonic() + seconds, urlsplit(url)
    while time.monotonic() < until:
        began = time.monotonic()
        connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
        connection.request("GET", "/health")
        connection.getresponse().read()
        connection.close()
        times.append(time.monotonic() - began)
        time.sleep(0.02)
    return times


async def level(url: str, streams: int, options: argparse.Namespace, watchers: Executor | None) -> Seen:
    seen, until = Seen(), time.monotonic() + options.seconds
    watching = asyncio.get_running_loop().run_in_executor(watchers, watch_health, url, options.seconds) if watchers else None
    await asyncio.gather(*(stream(url, options, seen, until) for _ in range(streams)))
    seen.health = await watching if watching else []
    return seen


def resident_megabytes(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


def milliseconds(values: list[float], share: float) -> str:
    return f"{1000 * sorted(values)[min(len(values) - 1, int(share * len(values)))]:7.1f}" if values else "      -"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("urls", nargs="+")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32, 200])
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--max-tokens", type=int, default=64)
    parser.add_argument("--prompt", default="Tell me a short story about a small boat.")
    parser.add_argument("--pid", type=int, help="process of the first server, whose memory is shown")
    parser.add_argument("--no-health", dest="health", action="store_false", help="the server has no /health")
    parser.add_argument("--minutes", type=float, help="one level of 200 streams of this length, behind a short one that warms up")
    options = parser.parse_args()
    levels = [(streams, options.seconds) for streams in options.streams]
    if options.minutes:
        levels = [(200, options.seconds), (200, 60 * options.minutes)]
    print(f"{processor()}, {levels[-1][1]:g} s a level, answers of at most {options.max_tokens} tokens; times in ms")
    print(
        f"{'server':22} streams  requests/s tokens/s  first: median    99%  between:  mean    99%  "
        "health: median  99.9%  worst  other"
    )
    watchers = ProcessPoolExecutor(1, get_context("spawn")) if options.health else None
    for streams, options.seconds in levels:
        for number, url in enumerate(options.urls):
            before = resident_megabytes(options.pid) if options.pid and number == 0 else 0
            seen = asyncio.run(level(url, streams, options, watchers))
            tokens = len(seen.first) + len(seen.between)
            others = {status: count for status, count in seen.outcomes.items() if status != "200"} or ""
            memory = f"{before:.0f} > {resident_megabytes(options.pid):.0f} MB" if before else ""
            first = milliseconds(seen.first, 0.5) + milliseconds(seen.first, 0.99)
            mean = 1000 * sum(seen.between) / max(1, len(seen.between))  # many arrive at once: their median says nothing
            between = f"{mean:7.1f}{milliseconds(seen.between, 0.99)}"
            rates = f"{seen.outcomes['200'] / options.seconds:11.1f} {tokens / options.seconds:8.0f}"
            health = f"{milliseconds(seen.health, 0.5)}{milliseconds(seen.health, 0.999)}{milliseconds(seen.health, 1.0)}"
            print(f"{url:22} {streams:7} {rates}       {first}        {between}       {health}  {others} {memory}", flush=True)


if __name__ == "__main__":
    main()
