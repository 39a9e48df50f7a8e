"""Settings that all tests share, a runner of commands, and a browser."""

import io
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

if "PYTEST_XDIST_WORKER" in os.environ:  # workers share the cores; torch has not been imported yet
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shared machine may stall for seconds: a deadline would measure the neighbours.
settings.register_profile("default", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("fuzz", parent=settings.get_profile("default"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

CHROMIUM_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM_FLAGS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
]


@pytest.fixture(scope="session")
def made_once(tmp_path_factory) -> Callable[[str, Callable[[Path], object]], Path]:
    """made_once(name, make): a folder that `make(folder)` has filled, once for all workers of pytest-xdist. Nobody changes it."""
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        path, done = base / name, base / f"{name}.done"
        with open(base / f"{name}.lock", "w") as lock:
            if os.name == "posix":
                import fcntl

                fcntl.flock(lock, fcntl.LOCK_EX)  # until the file is closed
            if not done.exists():
                shutil.rmtree(path, ignore_errors=True)  # of a worker that failed halfway
                make(path)
                done.touch()
        return path

    return folder


@pytest.fixture
def run_command(tmp_path, monkeypatch, capsys):
    """run_command("plan --depth 2", stdin=b"") in an empty folder -> (exit code, standard output, standard error).

    Standard error does not name the folder, where paths would be absolute.
    """
    from nutshell.cli.main import main

    monkeypatch.chdir(tmp_path)

    def run(line: str | list[str], stdin: bytes | None = None) -> tuple[int, str, str]:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), encoding="utf-8"))
        with pytest.raises(SystemExit) as end:
            main(line.split() if isinstance(line, str) else line)
        captured = capsys.readouterr()
        return end.value.code or 0, captured.out, captured.err.replace(f"{tmp_path}/", "")

    return run


@pytest.fixture
def hub_server(monkeypatch):
    """A hub on this machine that this process talks to; see hub_server.py."""
    from hub_server import HubServer
    from huggingface_hub import constants

    server = HubServer()
    monkeypatch.setattr(constants, "ENDPOINT", server.url)  # HF_ENDPOINT is read once, when huggingface_hub is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # of the pauses between attempts
    yield server
    server.close()


@pytest.fixture(scope="module")
def browser():
    """Closed with its module: while Playwright runs, no other test of the process can run an event loop of its own."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    path = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, CHROMIUM_NAMES)), None)
    if path is None:
        pytest.skip("needs Chromium: none of " + ", ".join(CHROMIUM_NAMES) + " found (set CHROMIUM=path)")
    with playwright.sync_playwright() as api:
        browser = api.chromium.launch(executable_path=path, args=CHROMIUM_FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def serious():
    """serious(page) -> what axe-core finds on it that is serious or worse."""
    name = "axe_playwright_python.sync_playwright"
    axe = pytest.importorskip(name, reason="needs axe-playwright-python").Axe()

    def find(page):
        page.emulate_media(reduced_motion="reduce")  # nothing is half faded
        found = axe.run(page).response["violations"]
        grave = [one for one in found if one["impact"] in ("serious", "critical")]
        return [f"{one['id']}: {[node['html'][:120] for node in one['nodes']]}" for one in grave]

    return find


def pytest_terminal_summary(terminalreporter) -> None:
    """What this machine lacks, in one line."""
    skipped = terminalreporter.stats.get("skipped", [])
    reasons = Counter(report.longrepr[2].removeprefix("Skipped: ") for report in skipped)
    if reasons:
        listed = "; ".join(f"{count} ({reason})" for reason, count in reasons.most_common())
        terminalreporter.write_line(f"{len(skipped)} not run on this machine: {listed}")
