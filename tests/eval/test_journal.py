"""An interrupted evaluation goes on behind what it has scored, and its numbers are those of one that was not interrupted."""

import copy
import json

import pytest

from nutshell.eval import chat
from nutshell.eval import score as scoring
from nutshell.eval.run import evaluate_tasks
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.tasks import load_task

AT_ONCE, ITEMS = 2, 9


@pytest.fixture(scope="module")
def model(tok):
    """Its context holds whole prompts, so that no two are alike."""
    shape = {"depth": 1, "width": 32, "heads": 2, "kv_heads": 2, "head_dim": 16, "context": 256}
    return build_model(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **shape)).requires_grad_(False).eval()


@pytest.fixture
def calls(monkeypatch):
    """Lots that were scored; the one of the number `stop` is interrupted."""
    done, real = [], scoring.score
    done_and_stop = {"done": done, "stop": -1}

    def score(model, pairs, **options):
        if len(done) == done_and_stop["stop"]:
            raise KeyboardInterrupt
        done.append(pairs)
        return real(model, pairs, **options)

    monkeypatch.setattr(scoring, "score", score)
    monkeypatch.setattr(chat, "ITEMS_AT_ONCE", AT_ONCE)
    return done_and_stop


@pytest.fixture
def tasks(tmp_path):
    rows = [{"question": f"what colour {n}?", "choices": ["red", "blue", "cat"], "answer": n % 3} for n in range(ITEMS)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [load_task(str(tmp_path / "mine.jsonl"))]


@pytest.mark.parametrize("torn", [False, True])
@pytest.mark.parametrize("stop", [0, 1, 3, 4])
def test_it_goes_on_where_it_was_interrupted(model, tok, tasks, calls, tmp_path, stop, torn):
    expected = evaluate_tasks(tasks, model, tok)
    calls["done"].clear()
    out = tmp_path / "out"
    out.mkdir()
    calls["stop"] = stop
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(tasks, model, tok, out=out)
    journal = out / "scores.jsonl"
    if torn and journal.exists():  # killed while it wrote
        journal.write_bytes(journal.read_bytes()[:-9])
    calls["done"].clear()
    calls["stop"] = -1
    assert evaluate_tasks(tasks, model, tok, out=out) == expected
    assert len(calls["done"]) == 5 - max(0, stop - torn)
    assert not journal.exists()
    assert len((out / "items.jsonl").read_text().splitlines()) == ITEMS


def test_scores_of_other_weights_are_not_taken(model, tok, tasks, calls, tmp_path):
    calls["stop"] = 3
    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(tasks, model, tok, out=tmp_path)
    calls["done"].clear()
    calls["stop"] = -1
    other = copy.deepcopy(model)
    other.lm_head.weight[7, 3] += 1
    expected = evaluate_tasks(tasks, other, tok)
    calls["done"].clear()
    assert evaluate_tasks(tasks, other, tok, out=tmp_path) == expected
    assert len(calls["done"]) == 5
