import io
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from test_report import write_run

from nutshell.cli.main import main
from nutshell.metrics import MetricsLog
from nutshell.report.compare import compare
from nutshell.report.paired import compare_scores, sign_test


def code_of(*arguments):
    with pytest.raises(SystemExit) as ended:
        main(list(arguments))
    return ended.value.code


def write_items(run, grades, stage="sft", task="primer-sums"):
    (run / stage).mkdir(exist_ok=True)
    lines = [
        json.dumps({"task": task, "index": n, "prompt": f"hash {n}", "scores": [g], "picked": [f"says {g}"], "right": g})
        for n, g in enumerate(grades)
    ]
    (run / stage / "items.jsonl").write_text("".join(line + "\n" for line in lines))


@pytest.fixture
def two_runs(tmp_path):
    first, second = (write_run(tmp_path / name, stages=("pretrain", "sft"), steps=80) for name in ("small", "large"))
    plan = json.loads((second / "plan.json").read_text())
    plan["model"]["depth"], plan["recipe"]["seed"] = 6, 7
    (second / "plan.json").write_text(json.dumps(plan))
    write_items(first, [False] * 30 + [True] * 20)
    write_items(second, [False] * 10 + [True] * 35 + [False] * 5)
    return first, second


def test_two_runs_on_one_page(two_runs, tmp_path, capsys):
    out = tmp_path / "pages" / "both.html"
    assert code_of("report", *map(str, two_runs), "--out", str(out)) == 0
    assert capsys.readouterr().out.strip() == str(out)
    page = out.with_suffix(".md").read_text()
    assert "not trained on the same text" not in page
    p = sign_test(20, 5)
    assert f"**+30.0 points** (p {p:.2g}, 50 pairs)" in page
    assert "| primer-sums after sft | small and large | 5 | 20 | 25 | 0 |" in page
    assert "item 10: only large is right" in page
    assert "small: says False\nlarge: says True" in page
    assert re.findall(r"\| `(.*?)` \| (.*?) \| (.*?) \|", page) == [("model.depth", "4", "6"), ("seed", "", "7")]
    plots = re.findall(r"\((both/.*?\.svg)\)", page)
    assert "both/pretrain-loss-over-steps.svg" in plots
    assert "both/pretrain-loss-over-time.svg" in plots
    assert not any("tokens" in plot for plot in plots)  # as many a step in both: it would be the plot over steps
    assert all((out.parent / plot).is_file() for plot in plots)
    assert out.read_text().count("<svg xmlns") == len(plots)


def test_what_core_is_made_of_has_a_table_of_its_own_after_the_last_stage(two_runs, tmp_path):
    for run in two_runs:
        with MetricsLog(run, console=Console(file=io.StringIO())) as log:
            for stage in ("pretrain", "sft"):
                log.evaluation(stage, 80, {"core": 0.1, "primer-sums": 0.5}, baselines={"core": 0.0})
        write_items(run, [True, False], stage="pretrain", task="copa")
        write_items(run, [True, True], task="copa")
    compare(list(two_runs), tmp_path / "both.html")
    page = (tmp_path / "both.md").read_text()
    scores, parts = page.split("### CORE after sft, task by task")
    assert "| core after sft |" in scores
    assert "copa" not in scores
    assert "| copa after sft | 100.0% | 100.0% |" in parts
    assert "copa after pretrain |" not in parts.split("##")[0]


def test_different_texts_are_said(two_runs, tmp_path):
    for run, text in zip(two_runs, ("one", "another"), strict=True):
        (run / "tokenizer").mkdir()
        (run / "tokenizer" / "made.json").write_text(json.dumps({"text": text}))
    compare(list(two_runs), tmp_path / "both.html")
    assert "not trained on the same text" in (tmp_path / "both.md").read_text()


def test_what_is_missing_is_said_and_the_rest_compared(two_runs, tmp_path):
    first, second = two_runs
    (second / "plan.json").unlink()
    with (second / "sft" / "items.jsonl").open("a") as file:
        file.write('{"task": "primer-sums"}\n[1]\n{"torn')
    third = tmp_path / "new"
    third.mkdir()
    (third / "plan.json").write_text("{}")
    result = compare([first, second, third], tmp_path / "all.html")
    page = (tmp_path / "all.md").read_text()
    for text in (
        "large has no plan.json", "large: 3 lines of sft/items.jsonl cannot be read", "new has no line in metrics.jsonl",
        "new has no items.jsonl",
    ):  # fmt: skip
        assert text in page
    assert result["settings"]["model.depth"] == [4, None, None]


@pytest.mark.parametrize(
    ("runs", "flags", "said"),
    [
        (["small", "./small"], [], "given twice"),
        (["small", "nothing"], [], "is no run"),
        (["small", "small/sft"], [], "is no run"),
        (["small", "large"], ["--out", "page.pdf"], "ends in .html"),
        (["small"], ["--out", "page.html"], "two or more runs"),
    ],
)
def test_refused_in_one_message(two_runs, runs, flags, said, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    assert code_of("report", *runs, *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@given(st.integers(0, 400), st.integers(0, 400))
def test_the_sign_test_is_the_exact_one(better, worse):
    tosses = better + worse
    tail = sum(math.comb(tosses, heads) for heads in range(min(better, worse) + 1))
    assert sign_test(better, worse) == sign_test(worse, better) == min(1.0, 2 * tail / 2**tosses)


def test_scores_without_items_are_compared_by_their_intervals():
    near, far = (compare_scores((0.5, [0.4, 0.6], None), (b, [b - 0.1, b + 0.1], None)) for b in (0.6, 0.7))
    assert near.p == pytest.approx(math.erfc(1.96 / 2))
    assert near.p > 0.05 > far.p
    assert compare_scores((0.5, None, None), (0.6, None, None)).p is None
    assert compare_scores((0.5, None, None), (None, None, None)) is None
    # Another prompt under the same index is another item.
    assert compare_scores((0.0, None, {(0, "a"): (0.0, None)}), (1.0, None, {(0, "b"): (1.0, None)})).pairs == 0
