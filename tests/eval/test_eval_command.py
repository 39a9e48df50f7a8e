"""`nutshell eval` as a user types it."""

import json
from pathlib import Path

import pytest

from nutshell.checkpoint import save_model_folder
from nutshell.cli.main import main


@pytest.fixture
def command(model, tok, tmp_path, monkeypatch, capsys):
    """command(line) -> exit code, stdout, stderr, in a folder with a model and tasks."""
    monkeypatch.chdir(tmp_path)
    save_model_folder(tmp_path / "model", model, tok)
    Path("arc").mkdir()  # as where the data's folder is the current one: the task of that name is meant
    rows = [{"question": f"what colour {n}?", "choices": ["red", "blue", "cat"], "answer": n % 3} for n in range(6)]
    Path("mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    Path("broken.jsonl").write_text('{"question": "?", "answer": "x"}\n{"question": 3}\n')
    Path("mine.py").write_text(
        "def task():\n    return [{'question': 'red?', 'answer': 'blue'}]\ndef oops():\n    return 1 / 0\n"
    )

    def run(line):
        with pytest.raises(SystemExit) as end:
            main(line.split())
        return end.value.code, *capsys.readouterr()

    return run


def test_items_results_and_report_are_written(command):
    line = "eval --tasks mine.jsonl,mine.py:task --max-tokens 4 --samples 2 --out out/deep --report out/r.md model --json"
    code, out, err = command(line)
    assert code == 0, err
    results = json.loads(out)
    assert list(results) == ["mine.jsonl", "mine.py:task"]
    items = [json.loads(line) for line in Path("out/deep/items.jsonl").read_text().splitlines()]
    assert [(item["task"], item["index"]) for item in items] == [*(("mine.jsonl", n) for n in range(6)), ("mine.py:task", 0)]
    for item in items[:6]:
        assert item["picked"] == max(range(3), key=item["scores"].__getitem__)
        assert item["right"] == (item["picked"] == item["index"] % 3)
        assert len(item["prompt"]) == 16
    assert len(items[6]["picked"]) == len(items[6]["scores"]) == 2
    assert results["mine.jsonl"]["accuracy"] == sum(item["right"] for item in items[:6]) / 6
    assert json.loads(Path("out/deep/results.json").read_text())["results"] == results
    report = Path("out/r.md").read_text()
    assert f"| mine.jsonl | {results['mine.jsonl']['accuracy']:.4f} |" in report
    assert "pass@2" in report


@pytest.mark.parametrize(
    "line", ["eval model --tasks mine.jsonl", "eval --tasks mine.jsonl --limit 2 model", "eval --tasks mine.jsonl model"]
)
def test_the_model_stands_before_or_after(command, line):
    code, out, _ = command(f"{line} --device cpu --limit 2")
    assert code == 0
    assert out.startswith("mine.jsonl ")
    assert "2 items" in out


BAD = {
    "eval model --tasks gsmk8": "unknown task 'gsmk8'. Did you mean gsm8k?",
    "eval model --tasks core --data .": "core.yaml does not exist; core needs the files of the CORE evaluation bundle",
    "eval model --tasks arc --data .": "arc/ARC-Easy-test.jsonl does not exist; it should hold JSON lines",
    "eval model --tasks mine.py:oops": "the task mine.py:oops raised ZeroDivisionError in line 4: division by zero",
    "eval model --tasks mine.py:tusk": "has no function 'tusk'. Did you mean task?",
    "eval model --tasks broken.jsonl": "broken.jsonl, line 2: has question; accepted: JSON lines",
    "eval model --tasks nothing.jsonl": "nothing.jsonl does not exist",
    "eval model --tasks mine.jsonl model": "two models are named",
    "eval model --tasks mine.jsonl --shots -1": "--shots is -1; accepted: 0 or more",
    "eval model --tasks mine.jsonl --samples 4 --temperature 0": "above 0 for several samples",
    "eval model --tasks mine.jsonl --out mine.py": "--out mine.py is a file; give a folder",
    "eval model --tasks mine.jsonl --seed -1": "--seed is -1; accepted: 0 or more",
    "eval model --tasks mine.jsonl --text nowhere.txt": "nowhere.txt does not exist",
    "eval model --tasks mine.jsonl --out out --report model": "--report model is a folder; give a file",
    "eval model --tasks mine.jsonl --dtype int3": "--dtype is 'int3'",
    "eval nowhere --tasks mine.jsonl": "nowhere does not exist",
    "eval model --tasks ,": "--tasks is ',', which names none",
}


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_one_message_and_writes_nothing(command, line):
    before = sorted(Path().rglob("*"))
    code, out, err = command(line if "--out" in line else f"{line} --out out --report out.md")
    assert (code, out) == (2, "")
    assert BAD[line] in err
    assert err.count("\n") == 1
    assert [path for path in sorted(Path().rglob("*")) if path.name != "__pycache__" and path.suffix != ".pyc"] == before


def test_settings_that_no_task_uses_are_said(command):
    code, _, err = command("eval model --tasks mine.jsonl --shots 3 --data . --limit 1")
    assert code == 0, err
    for flag in ("shots 3", "data ."):
        assert f"note: --{flag} changes nothing for mine.jsonl; it is for arc-easy, arc-challenge, mmlu, gsm8k" in err
