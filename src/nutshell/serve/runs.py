"""What /runs shows: the served run and its siblings, and what their metrics.jsonl has gained since the page last asked."""

from __future__ import annotations

import asyncio
import json
import math
import time
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.responses import Response

from nutshell.serve.errors import APIError
from nutshell.serve.offers import run_of, shown_name

METRICS = "metrics.jsonl"
MOST_RUNS = 50
CHUNK_BYTES = 1 << 20
"""Read for one answer; the page asks on until `more` is false."""
THIN_BYTES = 2 << 20
"""About 7,000 steps. Of a file k times as large every k-th step is sent: a plot has no more pixels."""
NUMBERS = ("step", "steps", "seconds", "tokens", "loss", "lr", "tokens_per_second", "reward")
SAMPLES, SAMPLE_CHARACTERS = 6, 600
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; sandbox allow-scripts"
"""The report has a stricter policy of its own, with hashes. The sandbox keeps it from this server's API and stored keys."""


def run_folders(served: Path | None) -> dict[str, Path]:
    """Runs by name: the one that is served, or whose stage or step is, and then its siblings, the last written first."""
    if served is None:
        return {}
    own = run_of(served, METRICS)
    written: dict[Path, float] = {}
    for folder in own.parent.iterdir() if own.parent.is_dir() else ():
        try:
            written[folder] = (folder / METRICS).stat().st_mtime
        except OSError:  # not a run, or one that has not begun
            continue
    newest = sorted(written, key=lambda folder: (folder != own, -written[folder]))
    return {shown_name(folder): folder for folder in newest[:MOST_RUNS]}


def listed(served: Path | None) -> list[dict[str, Any]]:
    found = []
    for name, folder in run_folders(served).items():
        try:
            idle = time.time() - (folder / METRICS).stat().st_mtime
        except OSError:
            continue
        facts = {"report": (folder / "report.html").is_file(), "idle_seconds": max(0, round(idle))}
        found.append({"name": name, "served": served is not None and folder == run_of(served, METRICS), **facts})
    return found


def read_since(file: Path, offset: int, version: str) -> dict[str, Any]:
    """The records of whole lines from a byte on, thinned; `offset` and `version` are what to ask with next.

    `reset` says that the file is another one than the `version` that was asked for, or shorter, and is read from its beginning.
    A last line without its end waits for the next call; a line that is no record is passed over.
    """
    with open(file, "rb") as stream:
        facts = file.stat()
        current = str(facts.st_ino)
        reset = bool(version) and (version != current or offset > facts.st_size)
        start = 0 if reset or not version else offset
        stream.seek(start)
        block = stream.read(CHUNK_BYTES)
        if b"\n" not in block and len(block) == CHUNK_BYTES:  # a line longer than a block, such as many samples
            block += stream.readline()
    whole = block[: block.rfind(b"\n") + 1]
    stride, records = max(1, facts.st_size // THIN_BYTES), []
    for line in whole.splitlines():
        try:
            record = _record(json.loads(line, parse_constant=lambda name: None, parse_float=_finite), stride)
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
            continue
        if record:
            records.append(record)
    more = len(block) >= CHUNK_BYTES and bool(whole)
    return {"records": records, "offset": start + len(whole), "version": current, "reset": reset, "more": more}


def _finite(text: str) -> float | None:
    """A number; None for one such as 1e400, which is infinite and no JSON that a browser reads. NaN is None likewise."""
    return value if math.isfinite(value := float(text)) else None


def _record(line: dict[str, Any], stride: int) -> dict[str, Any] | None:
    """What the page draws of a line; None for a step that is thinned out, and for lines that it does not draw."""
    kept: dict[str, Any] = {"stage": str(line["stage"])}
    if "eval" in line:
        samples = [
            {name: str(value)[:SAMPLE_CHARACTERS] for name, value in sample.items() if isinstance(value, str)}
            for sample in (line.get("samples") or [])[:SAMPLES]
        ]
        return {**kept, "step": int(line["step"]), "eval": line["eval"], "samples": samples}
    if not ("loss" in line or "reward" in line) or (line["step"] % stride and line["step"] != line.get("steps")):
        return None
    for name in NUMBERS:
        value = line.get(name)
        if isinstance(value, dict):  # a rate for each group: the first is that of the matrices
            value = next(iter(value.values()), None)
        if value is not None:
            kept[name] = float(f"{value:.6g}") if isinstance(value, float) else value
    return kept


def add_routes(app: FastAPI, served: Path | None) -> None:
    def folder_of(run: str) -> Path:
        folders = run_folders(served)
        if run not in folders:
            raise APIError(404, f"there is no run {run[:100]!r} here", param="run", code="not_found")
        return folders[run]

    @app.get("/runs/list", include_in_schema=False)
    async def runs() -> dict[str, Any]:
        return {"runs": await asyncio.to_thread(listed, served)}

    @app.get("/runs/metrics", include_in_schema=False)
    async def metrics(run: str, offset: int = 0, version: str = "") -> Response:
        def read() -> dict[str, Any]:
            try:
                return read_since(folder_of(run) / METRICS, max(0, offset), version)
            except OSError:
                raise APIError(404, f"the run {run[:100]!r} is gone", param="run", code="not_found") from None

        # As ASCII: half a surrogate pair, which a foreign file may hold, has no UTF-8.
        return Response(json.dumps(await asyncio.to_thread(read)), media_type="application/json")

    @app.get("/runs/report", include_in_schema=False)
    async def report(run: str) -> Response:
        def read() -> bytes:
            try:
                return (folder_of(run) / "report.html").read_bytes()
            except OSError:
                raise APIError(404, f"the run {run[:100]!r} has no report yet", param="run", code="not_found") from None

        body = await asyncio.to_thread(read)
        return Response(body, media_type="text/html; charset=utf-8", headers={"Content-Security-Policy": REPORT_POLICY})
