import base64
import hashlib
import io
import json
import math
import random
import re
from collections import Counter
from html import escape
from xml.etree import ElementTree

import pytest
from rich.console import Console

from nutshell.metrics import MetricsLog
from nutshell.report.facts import build_report
from nutshell.report.plots import caption, loss
from nutshell.report.svg import FRAME_HEIGHT, FRAME_WIDTH, LEFT, TOP, WEB, label, ticks

PLAN = {
    "model": {"depth": 4, "width": 256, "heads": 4, "kv_heads": 4, "head_dim": 64, "context": 512, "vocab_size": 4096},
    "parameters": {
        "embedding": 1_048_576,
        "attention": 1_050_000,
        "mlp": 2_097_152,
        "lm_head": 1_048_576,
        "residual scales": 4,
        "embedding scales": 4,
        "smear, backout": 26,
    },
    "recipe": {"usd_per_hour": 0.0},
}
BASELINES = {"primer-facts": 0.25, "primer-sums": 0.0, "primer-letters": 0.2}
TARGETS = {"primer-facts": 0.90, "primer-sums": 0.85, "primer-letters": 0.85}
ENVIRONMENT = {"python": "3.11.7", "cpu": "A CPU", "cores": 2, "gpus": [], "git_commit": None}


def write_run(folder, stages=("pretrain", "midtrain", "sft", "rl"), gpu=False, steps=300):
    """A run folder as training leaves it, with made-up numbers."""
    random.seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(PLAN))
    with MetricsLog(folder, console=Console(file=io.StringIO())) as log:
        log.stage_seconds("data", 4.2)
        log.stage_seconds("tokenizer", 6.5)
        for number, stage in enumerate(stages):
            count = {"pretrain": steps, "midtrain": steps // 3, "sft": steps // 4, "rl": steps // 6}[stage]
            for step in range(1, count + 1):
                record = {
                    "stage": stage,
                    "step": step,
                    "steps": count,
                    "seconds": step * 0.8,
                    "tokens": 8192,
                    "loss": (8.3 if number == 0 else 2.5) * step**-0.25 / (number + 1) + random.gauss(0, 0.05),
                    "lr": 0.04 * min(1, step / 10, 1.3 * (1 - step / count) + 0.05),
                    "tokens_per_second": 10_000 + random.gauss(0, 300),
                    "mfu": None if stage == "rl" else 0.56 + random.gauss(0, 0.01),
                    "peak_memory_bytes": (1.2 + 0.1 * number) * 2**30,
                }
                if stage == "rl":
                    record["reward"] = min(1.0, 0.6 + 0.35 * (1 - math.exp(-step / 15)) + random.gauss(0, 0.08))
                if gpu:
                    power = 640 + random.gauss(0, 20)
                    record |= {"gpu_utilisation": 0.97, "gpu_memory_gib": 61 + number, "gpu_power_watts": power}
                log.step(record)
                if stage == "pretrain" and step % (count // 4) == 0 and step < count:
                    log.evaluation(stage, step, {"val_bpb": 2.4 * step**-0.1})
            values = {
                name: min(0.99, 0.3 + 0.2 * number + 0.03 * place + (0.12 if name == "primer-facts" else 0))
                for place, name in enumerate(BASELINES)
            }
            if stage == "pretrain":
                values = {"val_bpb": 1.2345, **values}
            log.evaluation(
                stage, count, values, baselines=BASELINES, targets={} if stage == "pretrain" else TARGETS,
                samples=[
                    {"task": "primer-sums", "question": f"What is {n} + 3?", "reply": "3", "answer": str(n + 3), "right": n == 0}
                    for n in range(9)
                ] + [{"prompt": "Say ```", "reply": "``` | <b>bold</b>\n# not a title"}],
                eval_seconds=3.0,
            )  # fmt: skip
    return folder


def test_the_report_of_a_whole_run(tmp_path):
    folder = write_run(tmp_path / "demo", gpu=True)
    report = build_report(folder, usd_per_hour=3.6, environment=ENVIRONMENT)
    assert json.loads((folder / "report.json").read_text()) == report
    assert {"plan", "environment", "seconds", "usd", "stages"} <= report.keys()
    assert report["plan"] == PLAN
    assert report["seconds"] == {
        "data": 4.2, "tokenizer": 6.5, "pretrain": 243.0, "midtrain": 83.0, "sft": 63.0, "rl": 43.0,
    }  # fmt: skip
    assert report["usd"]["pretrain"] == pytest.approx(0.243)
    assert report["stages"]["pretrain"]["val_bpb"] == 1.2345
    assert report["stages"]["rl"]["primer-facts"] == pytest.approx(0.99)
    verdict = report["targets"]["sft"]["primer-sums"]
    assert verdict["met"] is False
    assert verdict["margin"] == pytest.approx(0.73 - 0.85)
    assert report["training"]["pretrain"]["tokens"] == 300 * 8192
    assert report["training"]["rl"]["last_reward"] == pytest.approx(0.93, abs=0.05)
    plots = {path.name for path in (folder / "report").iterdir()}
    names = ("metrics", "loss", "loss-midtrain", "loss-sft", "validation", "reward", "learning-rate", "speed", "mfu", "gpu")
    assert plots == {f"{name}.svg" for name in names}
    for path in (folder / "report").iterdir():
        assert ElementTree.parse(path).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    page = (folder / "report.md").read_text()
    for text in [
        "# Report of `demo`",
        "| metric | random | base | midtrain | sft | rl | target |",
        "| primer-facts | 25.0% | 42.0% | 62.0% | 82.0% | 99.0% | 90.0% |",
        "| val_bpb |  | 1.2345 |  |  |  |  |",
        "- after sft, primer-sums 73.0%: target 85.0% **missed** by 12.0 points",
        "- after rl, primer-facts 99.0%: target 90.0% met by 9.0 points",
        "| pretrain | 4:03 | $0.24 |",
        "| attention | 1,050,000 | 20.0% |",
        "*primer-sums (right)*\n\n```text\nprompt: What is 0 + 3?\nreply: 3\nwanted: 3\n```",
        "*primer-sums (wrong)*\n\n```text\nprompt: What is 1 + 3?",
        "- cpu: A CPU",
        "$0.44",
    ]:
        assert text in page, text
    assert "after midtrain" not in page
    assert all(f"(report/{name})" in page for name in plots)


def test_f2_what_was_not_learned_is_reported(tmp_path):
    """F2, F16: cropped and left-out conversations, damaged blocks and skipped steps were in no report."""
    folder = write_run(tmp_path / "demo", stages=("pretrain",), steps=4)
    with MetricsLog(folder, console=Console(file=io.StringIO())) as log:
        for step in range(1, 4):
            counts = {"cropped_conversations": 10 * step, "left_out_conversations": step, "damaged_blocks": 2}
            log.step(
                {"stage": "sft", "step": step, "loss": 1.0, "tokens": 64, **counts, **({"skipped": True} if step == 2 else {})}
            )
    report = build_report(folder, environment=ENVIRONMENT)
    assert report["training"]["sft"]["counts"] == {"cropped_conversations": 30, "left_out_conversations": 3, "damaged_blocks": 2}
    page = (folder / "report.md").read_text()
    assert "| skipped steps | cropped conversations | left out conversations | damaged blocks |" in page
    assert "| sft | 3 | 192 | 1.0000 | 1.0000 | 1 | 30 | 3 | 2 |" in page


def test_model_text_cannot_break_out_of_its_fence(tmp_path):
    folder = write_run(tmp_path / "demo", stages=("pretrain",))
    build_report(folder, environment=ENVIRONMENT)
    page = (folder / "report.md").read_text()
    start = page.index("prompt: Say ```")
    fence = page[:start].splitlines()[-1].removesuffix("text")
    assert set(fence) == {"`"}
    assert len(fence) > 3
    assert "# not a title\n" + fence in page[start:]


def test_a_run_that_has_only_begun(tmp_path):
    folder = write_run(tmp_path / "demo", stages=("pretrain",))
    (folder / "plan.json").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(lines[:5]) + "\n" + lines[5][:10])
    report = build_report(folder, environment=ENVIRONMENT)
    assert report["stages"] == {}
    assert report["usd"] == {}
    assert report["plan"] == {}
    assert report["training"]["pretrain"]["steps"] == 3
    assert "No evaluation yet." in (folder / "report.md").read_text()
    assert {path.name for path in (folder / "report").iterdir()} == {"loss.svg", "learning-rate.svg", "speed.svg", "mfu.svg"}


def test_only_stages_without_steps(tmp_path):
    with MetricsLog(tmp_path, console=Console(file=io.StringIO())) as log:
        log.stage_seconds("data", 1.0)
    report = build_report(tmp_path, environment=ENVIRONMENT)
    assert report["seconds"] == {"data": 1.0}
    assert "No step yet." in (tmp_path / "report.md").read_text()


def test_numbers_that_are_missing_leave_gaps(tmp_path):
    with MetricsLog(tmp_path, console=Console(file=io.StringIO())) as log:
        for step in range(1, 40):
            log.step({"stage": "sft", "step": step, "loss": math.nan if step in (1, 20) else 2.0, "lr": 0.1})
        log.step({"stage": "rl", "step": 1, "loss": math.nan, "reward": math.nan})
        log.evaluation("sft", 39, {"x": None}, targets={"x": 0.5})
    report = build_report(tmp_path, environment=ENVIRONMENT)
    assert report["training"]["sft"]["first_loss"] is None
    assert report["training"]["sft"]["last_loss"] == pytest.approx(2.0)
    assert "**x** was not measured" in (tmp_path / "report.md").read_text()


def test_the_price_of_the_recipe_is_the_default(tmp_path):
    folder = write_run(tmp_path / "demo", stages=("pretrain",), steps=8)
    (folder / "plan.json").write_text(json.dumps({"recipe": {"usd_per_hour": 36.0}}))
    assert build_report(folder, environment=ENVIRONMENT)["usd"]["pretrain"] == pytest.approx(0.094)


def test_this_machine_is_described(tmp_path):
    environment = build_report(write_run(tmp_path / "demo", stages=("pretrain",), steps=4))["environment"]
    assert environment["cores"] >= 1
    assert environment["torch"]
    assert set(environment) == {"python", "torch", "system", "cpu", "cores", "memory_gib", "gpus", "git_commit"}


def test_bad_input_is_named(tmp_path):
    with pytest.raises(ValueError, match="nope is not a folder"):
        build_report(tmp_path / "nope")
    with pytest.raises(ValueError, match=r"has no metrics\.jsonl"):
        build_report(tmp_path)
    folder = write_run(tmp_path / "demo", stages=("pretrain",), steps=4)
    (folder / "plan.json").write_text("{")
    with pytest.raises(ValueError, match=r"plan\.json is damaged"):
        build_report(folder)
    assert not (folder / "report.md").exists()


HOSTILE = "</pre></div><script>window.bad=1</script><img src=x onerror=alert(1)>\"'&lt;`** | ```"


def test_the_html_needs_nothing_else_and_hostile_text_stays_text(tmp_path):
    folder = write_run(tmp_path / HOSTILE.replace("/", "∕")[:100], stages=("pretrain",))
    with MetricsLog(folder, console=Console(file=io.StringIO())) as log:
        sample = {"task": HOSTILE, "question": HOSTILE, "reply": HOSTILE, "right": False}
        log.evaluation("pretrain", 300, {HOSTILE: 0.5}, baselines={HOSTILE: 0.1}, samples=[sample], notes=[HOSTILE])
    build_report(folder, environment={"cpu": HOSTILE})
    page = (folder / "report.html").read_text()
    tags = Counter(re.findall(r"<(\w+)", page))
    assert tags["script"] == 1
    assert not tags["img"]
    assert not re.findall(r"""<[^>]*\s(on\w+|style)=""", page.split("<main>")[1].split("</main>")[0])
    addresses = set(re.findall(r"https?://[^\s\"'<>]+", page))
    assert addresses == {"http://www.w3.org/2000/svg"}  # a name, not a place
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    for tag in ("style", "script"):
        inside = re.search(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)[1]
        assert base64.b64encode(hashlib.sha256(inside.encode()).digest()).decode() in policy
    assert escape("reply: " + HOSTILE) in page
    for path in (folder / "report").iterdir():
        ElementTree.parse(path)


def test_scores_carry_their_intervals(tmp_path):
    folder = write_run(tmp_path / "demo", stages=("pretrain",), steps=8)
    with MetricsLog(folder, console=Console(file=io.StringIO())) as log:
        values, intervals = {"arc": 0.5}, {"arc": [0.4, 0.6]}
        notes = ["humaneval: ran in the sandbox full"]
        for stage in ("sft", "rl"):
            log.evaluation(stage, 8, values, baselines={"arc": 0.25}, intervals=intervals, notes=notes)
    (folder / "eval").mkdir()
    result = {"accuracy": 0.25, "interval": [0.1, 0.4], "baseline": 0.2, "count": 40, "notes": []}
    kept = {"model": "runs/demo", "settings": {"shots": 5}, "results": {"mmlu": result, "text": {"bpb": 1.0}}}
    (folder / "eval" / "results.json").write_text(json.dumps(kept))
    report = build_report(folder, environment=ENVIRONMENT)
    assert report["intervals"]["sft"] == {"arc": [0.4, 0.6]}
    page = (folder / "report.md").read_text()
    assert "50.0% (40.0 to 60.0)" in page
    assert "- humaneval: ran in the sandbox full (after sft, rl)" in page
    assert "| mmlu | 25.0% (10.0 to 40.0) | 20.0% | 40 |" in page


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0, 266, ["0", "50", "100", "150", "200", "250"]),
        (0.45, 7.9, ["2", "4", "6"]),
        (0.7, 9.0, ["2", "4", "6", "8"]),
        (0.067, 0.096, ["0.07", "0.08", "0.09"]),
        (0, 1.9e6, ["0", "500k", "1M", "1.5M"]),
        (16000, 18000, ["16k", "16.5k", "17k", "17.5k", "18k"]),
        (-3e-5, 3e-5, ["-2.0e-05", "0.00000", "2.0e-05"]),
    ],
)
def test_ticks_are_round_and_their_labels_tell_them_apart(low, high, wanted):
    found = ticks(low, high, 4)
    assert [label(value, found[1] - found[0]) for value in found] == wanted


def test_the_script_and_the_report_agree_on_the_frame():
    text = (WEB / "plot.js").read_text()
    sizes = {"left": LEFT, "top": TOP, "width": FRAME_WIDTH, "height": FRAME_HEIGHT}
    assert f"FRAME = {{ {', '.join(f'{name}: {size}' for name, size in sizes.items())} }}" in text


def test_the_loss_of_a_stage_says_what_it_is_of():
    steps = [{"step": step, "tokens": 8, "loss": 1 / step} for step in (1, 2, 3)]
    for stage, metric, unit in (("sft", "val_loss", "token"), ("dpo", "pairs_loss", "pair")):
        plot = loss(stage, steps, [{"stage": stage, "step": 2, "eval": {metric: 0.6}}])
        assert (plot.y_label, plot.series[-1].y) == (f"loss [nats per {unit}]", [0.6])
        assert caption("loss", plot).endswith("dots are the loss on what is held out.")
    assert "held out" not in caption("loss", loss("pretrain", steps, []))
