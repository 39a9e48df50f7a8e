"""/runs from the first step to the report, in one page that is never loaded again."""

import json
import os
from pathlib import Path

import pytest

from nutshell.serve.models import Models
from nutshell.serve.offers import run_name
from nutshell.serve.runs import THIN_BYTES, read_since


def step(number, stage="pretrain", **more):
    return {"stage": stage, "step": number, "steps": 60, "seconds": number * 0.5, "tokens": 512, "loss": 8 / number**0.5,
            "lr": {"matrix": 0.01}, "tokens_per_second": 1000.0, **more}  # fmt: skip


def text(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


def write(run, *records):
    run.mkdir(parents=True, exist_ok=True)
    with (run / "metrics.jsonl").open("a") as file:
        file.write(text(*records))


def wait_for_points(page, title, counts):
    """Until the strong lines of a plot have these numbers of points: the list of runs is drawn before the plots."""
    lines = page.locator(f"figure:has(h2:text('{title}')) g[data-name]:not([data-faint]) polyline")
    for _ in range(250):
        found = sorted(lines.evaluate_all("lines => lines.map(line => line.points.length)"))
        if found == counts:
            return
        page.wait_for_timeout(20)
    assert found == counts


def test_a_training_from_its_first_step_to_its_report(open_page, serving, scripted, tmp_path):
    run, other = tmp_path / "new", tmp_path / "older"
    write(other, *map(step, range(1, 31)))
    page = open_page(client=serving(scripted("Hello."), models=Models("new", max_queue=4, folder=run)), path="/runs")
    assert page.locator("#runs li").count() == 1
    wait_for_points(page, "Loss", [30])

    write(run, *map(step, range(1, 11)))
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(11))[:25])  # a torn line
    page.wait_for_selector("#runs >> text=step 10 of 60")
    wait_for_points(page, "Loss", [10, 30])
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step(11))[25:] + "\n")
    sample = {"question": "<b>Who</b> are you?", "reply": "<img src=x> A nut."}
    write(run, {"stage": "pretrain", "step": 11, "eval": {"val_bpb": 1.5}, "samples": [sample]})
    page.wait_for_selector("text=<img src=x> A nut.")
    assert page.locator("#samples img").count() == 0
    wait_for_points(page, "Loss", [11, 30])
    page.get_by_role("checkbox", name="older").uncheck()
    page.wait_for_selector("#plots g[data-name=older]", state="detached")
    wait_for_points(page, "Loss", [11])

    # Another stage begins, a resume rewrites the file from step 5 on, and the report comes: the same page shows it all.
    write(run, *(step(n, "rl", reward=n / 20) for n in range(1, 13)))
    page.wait_for_selector("#runs >> text=rl, step 12")
    wait_for_points(page, "Mean reward", [12])
    wait_for_points(page, "Loss", [23])
    (tmp_path / "rewritten").write_text(text(*map(step, range(1, 6))))
    (tmp_path / "rewritten").rename(run / "metrics.jsonl")
    script = "try { document.cookie = 'seen=1' } catch { document.querySelector('h1').textContent = 'Report, shut off' }"
    (run / "report.html").write_text(f"<!doctype html><h1>Report</h1><script>{script}</script>")
    page.wait_for_selector("#runs >> text=step 5 of 60")
    wait_for_points(page, "Loss", [5])
    page.select_option("#axis", "tokens")
    assert page.locator("figure:visible svg").first.get_attribute("data-x") == "512 2560"

    page.get_by_role("link", name="Report").click()
    page.wait_for_selector("h1:text('Report, shut off')")  # its scripts run, but not as this server's own


def test_a_line_never_runs_ahead_of_its_plot(open_page, serving, scripted, tmp_path):
    """One run is read at once and the other late: what the list says of the first waits for the plot that shows it."""
    for name in ("new", "older"):
        write(tmp_path / name, *map(step, range(1, 6)))
    page = open_page(client=serving(scripted("Hello."), models=Models("new", max_queue=4, folder=tmp_path / "new")), path="/runs")
    page.get_by_role("checkbox", name="older").check()
    page.wait_for_selector("#plots g[data-name=older]", state="attached")
    late = []
    page.route("**/runs/metrics?run=older*", lambda route: late.append(route))
    write(tmp_path / "new", step(6))
    with page.expect_request("**/runs/metrics?run=older*"), page.expect_response("**/runs/metrics?run=new*"):
        pass
    page.wait_for_timeout(200)
    assert page.locator("#runs >> text=step 6 of 60").count() == 0
    for route in late:
        route.continue_()
    page.unroute("**/runs/metrics?run=older*")
    page.wait_for_selector("#runs >> text=step 6 of 60")
    wait_for_points(page, "Loss", [5, 6])


def test_reading_on_by_bytes(tmp_path):
    file = tmp_path / "metrics.jsonl"
    odd = (
        '{"stage": "sft", "step": 9, "eval": {"a": NaN}, "samples": 5}\n{"stage": "sft", "step": 1e400, "eval": {}}\n'
        + "[" * 9999
    )
    file.write_text(text(*map(step, range(1, 4))) + f"no record\n[]\n{odd}\n" + json.dumps(step(4)))
    first = read_since(file, 0, "")
    assert [record["step"] for record in first["records"]] == [1, 2, 3]
    assert first["records"][0]["lr"] == 0.01
    with file.open("a") as more:
        more.write("\n" + text(step(5)))
    second = read_since(file, first["offset"], first["version"])
    assert [record["step"] for record in second["records"]] == [4, 5]
    assert not second["reset"]
    file.write_text(text(step(1)))  # shorter: begun anew
    third = read_since(file, second["offset"], second["version"])
    assert third["reset"]
    assert [record["step"] for record in third["records"]] == [1]


def test_a_big_file_is_thinned_and_its_evaluations_kept(tmp_path):
    file = tmp_path / "metrics.jsonl"
    count = 4 * THIN_BYTES // len(text(step(1000))) + 2
    evaluation = {"stage": "pretrain", "step": 777, "eval": {"val_bpb": 1.0}}
    file.write_text(text(*(step(n, steps=count) for n in range(1, count + 1)), evaluation))
    records, answer = [], {"offset": 0, "version": "", "more": True}
    while answer["more"]:
        answer = read_since(file, answer["offset"], answer["version"])
        records += answer["records"]
    assert answer["offset"] == file.stat().st_size
    steps = [record["step"] for record in records if "loss" in record]
    assert count / 5 < len(steps) < count / 3
    assert steps[-1] == count
    assert [record["eval"] for record in records if "eval" in record] == [{"val_bpb": 1.0}]


@pytest.mark.parametrize("name", ["..", "../secret", "/etc", "nothing"])
def test_no_other_folder_is_read(serving, scripted, tmp_path, name):
    write(tmp_path / "runs" / "one", step(1))
    write(tmp_path / "secret", step(1))
    client = serving(scripted("Hello."), models=Models("one", max_queue=4, folder=tmp_path / "runs" / "one"))
    assert [run["name"] for run in client.get("/runs/list").json()["runs"]] == ["one"]
    for path in ("metrics", "report"):
        answer = client.get(f"/runs/{path}", params={"run": name})
        assert answer.status_code == 404
        assert answer.json()["error"]["code"] == "not_found"


def test_a_foreign_file_with_numbers_and_letters_that_json_has_not(serving, scripted, tmp_path):
    folder = tmp_path / "runs" / "one"
    write(folder, step(1))
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(
            '{"stage": "sft", "step": 2, "loss": 1e400}\n{"stage": "\\ud800", "step": 3, "eval": {"a": -1e999, "b": NaN}}\n'
        )
    client = serving(scripted("Hello."), models=Models("one", max_queue=4, folder=folder))
    answer = client.get("/runs/metrics", params={"run": "one"})
    assert answer.status_code == 200
    assert answer.json()["records"][1:] == [
        {"stage": "sft", "step": 2},
        {"stage": "\ud800", "step": 3, "eval": {"a": None, "b": None}, "samples": []},
    ]


def test_names_that_are_no_text_are_shown_and_read(serving, scripted, tmp_path):
    try:
        odd = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
        write(odd, step(1))
    except (OSError, UnicodeError):
        pytest.skip("this file system takes no names but UTF-8")
    assert run_name(odd) == "caf\ufffd"
    client = serving(scripted("Hello."), models=Models(run_name(odd), max_queue=4, folder=odd))
    assert [run["name"] for run in client.get("/runs/list").json()["runs"]] == ["caf\ufffd"]
    assert client.get("/runs/metrics", params={"run": "caf\ufffd"}).json()["records"][0]["step"] == 1
    assert client.get("/v1/models").json()["data"][0]["id"] == "caf\ufffd"
