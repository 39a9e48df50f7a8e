"""CORE on a small bundle: prompts as literals, answers against plain forward passes of whole prompts."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from nutshell.eval.core import evaluate_core, pairs
from nutshell.tasks import load_task
from nutshell.tasks.core import CoreTask, read_task_list

YAML = r"""icl_tasks:
-
  label: colours
  dataset_uri: a/colours.jsonl
  num_fewshot: [2]
  icl_task_type: multiple_choice
  continuation_delimiter: "\nAnswer: "
- label: pronouns
  dataset_uri: a/pronouns.jsonl
  num_fewshot: [1]
  icl_task_type: schema
-
  label: ends
  dataset_uri: b/ends.jsonl
  num_fewshot: [3]
  icl_task_type: language_modeling
  has_categories: true
"""
WORDS = ["red", "blue", "green", "yellow", "cat", "dog"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "core"
    (folder / "eval_data" / "a").mkdir(parents=True)
    (folder / "eval_data" / "b").mkdir()
    (folder / "core.yaml").write_text(YAML)
    (folder / "eval_meta_data.csv").write_text("Eval Task,Random baseline\ncolours,25\npronouns,50\nends,0\nother,7\n")
    rng = random.Random(0)
    colours = [
        {"query": f"what colour is the {rng.choice(WORDS)} {n}?", "choices": rng.sample(WORDS, 4), "gold": n % 4}
        for n in range(9)
    ]
    pronouns = [
        {"context_options": [f"the cat {n} is", f"the dog {n} is"], "continuation": rng.choice(WORDS), "gold": n % 2}
        for n in range(7)
    ]
    ends = [{"context": f" the cat is {rng.choice(WORDS)} \n", "continuation": rng.choice(WORDS)} for n in range(8)]
    for name, rows in (("a/colours", colours), ("a/pronouns", pronouns), ("b/ends", ends)):
        (folder / "eval_data" / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_prompts_are_those_of_nanochat():
    rows = [{"query": f"q{n}", "choices": [f"a{n}", f"b{n}"], "gold": n % 2} for n in range(4)]
    task = CoreTask(label="x", type="multiple_choice", shots=2, delimiter="\nA: ", baseline=0.5, rows=rows)
    drawn = [rows[i] for i in random.Random(1234 + 1).sample([0, 2, 3], 2)]
    shots = "".join(f"{row['query']}\nA: {row['choices'][row['gold']]}\n\n" for row in drawn)
    assert task.prompts(1) == [f"{shots}q1\nA: a1", f"{shots}q1\nA: b1"]
    rows = [{"context_options": [f"x{n}", f"y{n}"], "continuation": f"c{n}", "gold": 1} for n in range(2)]
    task = CoreTask(label="x", type="schema", shots=1, delimiter=" ", baseline=0.5, rows=rows)
    assert task.prompts(0) == ["y1 c1\n\nx0 c0", "y1 c1\n\ny0 c0"]
    rows = [{"context": f" x{n}: ", "continuation": f"c{n} "} for n in range(2)]
    task = CoreTask(label="x", type="language_modeling", shots=5, delimiter=" ", baseline=0.0, rows=rows)
    assert task.prompts(1) == ["x0: c0 \n\nx1:", "x0: c0 \n\nx1: c1 "]  # one other row is all there is


def one_by_one(task, index, model, tok):
    """nanochat's rule on whole prompts, each in a forward pass with all logits: is the answer right?"""
    texts = [[tok.bos_id, *tok.encode(prompt)] for prompt in task.prompts(index)]

    def same(rows):
        return next((n for n, column in enumerate(zip(*rows, strict=False)) if len(set(column)) > 1), min(map(len, rows)))

    if task.type == "language_modeling":
        spans = [(texts[1], len(texts[0]))]
    elif task.type == "schema":
        spans = [(ids, len(ids) - same([ids[::-1] for ids in texts])) for ids in texts]
    else:
        spans = [(ids, same(texts)) for ids in texts]
    losses, greedy = [], True
    for ids, start in spans:
        cropped = max(0, len(ids) - model.config.context)
        ids, start = torch.tensor(ids[cropped:]), start - cropped
        logits = model(ids.unsqueeze(0))[0, start - 1 : -1]
        losses.append(float(F.cross_entropy(logits, ids[start:])))
        greedy = greedy and bool((logits.argmax(-1) == ids[start:]).all())
    return greedy if task.type == "language_modeling" else losses.index(min(losses)) == task.rows[index]["gold"]


@pytest.mark.parametrize("limit", [None, 4])
def test_answers_are_those_of_whole_prompts(model, tok, bundle, limit):
    core, seen = load_task("core", data_folder=bundle.parent, limit=limit), []
    result = evaluate_core(core, model, tok, progress=lambda done, total: seen.append((done, total)))
    expected = {task.label: [one_by_one(task, n, model, tok) for n in range(len(task.rows))] for task in core.tasks}
    for label, right in expected.items():
        assert [r.right for r in result["records"] if r.task == label] == right, label
        assert [r.index for r in result["records"] if r.task == label] == list(range(len(right)))
        assert result["tasks"][label]["accuracy"] == sum(right) / len(right)
    colours, pronouns, ends = (sum(right) / len(right) for right in expected.values())
    assert result["accuracy"] == pytest.approx(((colours - 0.25) / 0.75 + (pronouns - 0.5) / 0.5 + ends) / 3)
    assert seen[-1] == (len(result["records"]),) * 2
    assert limit is None or result["count"] == 12


def test_a_limit_takes_the_first_of_the_shuffled_rows(bundle):
    rows = [json.loads(line) for line in (bundle / "eval_data" / "b" / "ends.jsonl").read_text().splitlines()]
    random.Random(1337).shuffle(rows)
    core = load_task("core", data_folder=bundle, limit=3)  # the bundle itself will do too
    assert core.tasks[2].rows == rows[:3]
    assert core.notes == ("fewer examples than asked for, there are no more items: ends",)


def test_a_text_longer_than_the_context_loses_its_beginning(tok):
    one, other = pairs("multiple_choice", ["x" * 90 + "?a", "x" * 90 + "?bcd"], tok, 20)
    assert len(one[0]) + len(one[1]) == len(other[0]) + len(other[1]) == 20
    assert (len(one[1]), len(other[1])) == (1, 3)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("core.yaml", "icl_tasks:\n- label: x\n", "x has no dataset_uri, num_fewshot, icl_task_type"),
        ("core.yaml", "- label: x\n  num_fewshot: [1\n", r"line 2: .*accepted: a list of tasks"),
        ("core.yaml", "nothing\n", "lists no tasks"),
        ("core.yaml", YAML.replace("schema", "poem"), "pronouns is of type 'poem'; accepted: multiple_choice"),
        ("core.yaml", YAML.replace("label: ends", "label: odds"), "has no random baseline of odds"),
        ("eval_data/b/ends.jsonl", '{"context": "x"}\n', r"ends.jsonl, line 1: continuation missing"),
        ("eval_data/b/ends.jsonl", None, r"ends.jsonl does not exist; .*data download core"),
    ],
)
def test_a_broken_bundle_is_named(bundle, tmp_path, file, text, message):
    for path in bundle.rglob("*.*"):
        copy = tmp_path / path.relative_to(bundle)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text(path.read_text())
    (tmp_path / file).unlink()
    if text is not None:
        (tmp_path / file).write_text(text)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        load_task("core", data_folder=tmp_path)


def test_the_list_of_tasks_is_read(bundle):
    first, second, third = read_task_list(bundle / "core.yaml")
    assert first["continuation_delimiter"] == "\nAnswer: "
    assert (second["label"], second["num_fewshot"], third["has_categories"]) == ("pronouns", [1], "true")


RANKS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from nutshell.eval.run import evaluate_tasks
from nutshell.runtime import leave_ranks, start_runtime
from nutshell.checkpoint import load
from nutshell.tasks import Item, Task, load_task
runtime = start_runtime(device="cpu", dtype="float32", ranks=True)
model, tok = load(sys.argv[2])
asked = [Item(messages=[{"role": "user", "content": f"cat {n}?"}], index=n) for n in range(5)]
tasks = [load_task("core", data_folder=sys.argv[3]), Task(name="own", items=asked, max_tokens=5)]
results = evaluate_tasks(tasks, model.for_inference(), tok, runtime=runtime)
lines = [record.line() for result in results.values() for record in result["records"]]
with open(f"{sys.argv[4]}-{runtime.rank}", "w") as file:
    file.write("\\n".join(lines))
leave_ranks(runtime)
"""


@pytest.mark.slow
def test_two_ranks_give_what_one_does(model, tok, bundle, tmp_path):
    from nutshell.checkpoint import save_model_folder

    save_model_folder(tmp_path / "model", model, tok)
    (tmp_path / "ranks.py").write_text(RANKS)
    found = []
    for ranks in (1, 2):
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "ranks.py"]
        arguments = [str(Path(__file__).parent), "model", str(bundle.parent), f"out{ranks}"]
        done = subprocess.run([*command, *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        found += [(tmp_path / f"out{ranks}-{rank}").read_text().splitlines() for rank in range(ranks)]
    assert len(found[0]) == 24 + 5
    for lines in found[1:]:
        for ours, theirs in zip(map(json.loads, lines), map(json.loads, found[0]), strict=True):
            assert ours.pop("scores") == pytest.approx(theirs.pop("scores"), abs=1e-5)
            assert ours == theirs
