"""Tasks scored on a tiny random model, against one forward pass per option."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch

from nutshell.eval import chat
from nutshell.eval.chat import choose, evaluate, wilson_interval
from nutshell.infer.engine import Engine
from nutshell.tokenizer.chat import render, render_prompt


@dataclass(frozen=True, kw_only=True)
class StandIn:  # what a task and an item look like to the evaluation
    messages: Any = ()
    answer: str = ""
    options: tuple = ()
    name: str = "stand-in"
    kind: str = ""
    items: Any = ()
    baseline: float = 0.25
    grade: Any = None


OPTIONS = ("red", "blue", "a very long answer", "yellow")


def make_items(count):
    return [
        StandIn(
            messages=[{"role": "user", "content": f"What colour is the cat? {'x' * (7 * n % 24)} {n}"}],
            answer=OPTIONS[n % 4],
            options=OPTIONS[: 2 + n % 3] if n % 4 < 2 else OPTIONS,
        )
        for n in range(count)
    ]


def one_by_one(model, tok, item):
    """Mean log-probability of each option, in a forward pass of its own and in float64."""
    prompt = render_prompt(item.messages, tok)
    scores = []
    for option in item.options:
        ids, _ = render([*item.messages, {"role": "assistant", "content": option}], tok)
        ids = ids[:-1]  # assistant_end
        table = model(torch.tensor([ids]))[0].double().log_softmax(-1)
        own = [float(table[place - 1, ids[place]]) for place in range(len(prompt), len(ids))]
        scores.append(sum(own) / len(own))
    return scores


@pytest.mark.parametrize("tokens", [1, 150, 4096])
def test_the_likeliest_option_is_chosen(model, tok, monkeypatch, tokens):
    monkeypatch.setattr(chat, "TOKENS_PER_BATCH", tokens)
    items, seen = make_items(12), []
    best = choose(items, model, tok, lambda done, total: seen.append((done, total)))
    for item, index in zip(items, best, strict=True):
        scores = one_by_one(model, tok, item)
        assert scores[index] == pytest.approx(max(scores), abs=1e-5)
    assert len(set(best)) > 1
    assert seen[-1] == (12, 12)


def test_choice_accuracy_and_examples(model, tok):
    items = make_items(20)
    task = StandIn(kind="choice", items=items)
    result = evaluate(task, model, tok)
    right = [item.options[i] == item.answer for item, i in zip(items, choose(items, model, tok), strict=True)]
    assert result["accuracy"] == sum(right) / 20
    assert result["baseline"] == 0.25
    assert result["count"] == 20
    assert result["standard_error"] == pytest.approx((result["accuracy"] * (1 - result["accuracy"]) / 20) ** 0.5)
    low, high = result["interval"]
    assert low < result["accuracy"] < high
    for example in result["examples"]:
        assert example["right"] == (example["reply"] == example["answer"])
        assert example["question"].startswith("What colour")
    assert 1 <= len(result["examples"]) <= 6


def test_an_item_longer_than_the_context_is_scored_by_its_end(model, tok):
    question = "start " + "z" * 300 + " end"
    item = StandIn(messages=[{"role": "user", "content": question}], answer="red", options=("red", "blue"))
    ids, _ = render([*item.messages, {"role": "assistant", "content": "red"}], tok)
    assert len(ids) > model.config.context
    assert choose([item], model, tok)[0] in (0, 1)
    endless = StandIn(messages=item.messages, answer="red", options=("red", "w" * 500))
    assert choose([endless], model, tok)[0] in (0, 1)


def test_generated_replies_are_greedy_and_graded(model, tok):
    items = make_items(7)
    engine = Engine(model, tok, max_rows=3)
    expected = ["".join(p.text for p in engine.chat(item.messages, temperature=0, max_tokens=9)) for item in items]
    graded, seen = [], []

    def grade(item, reply):
        graded.append(reply)
        return item is items[2]

    task = StandIn(kind="generate", items=items, grade=grade)
    for chosen in (None, engine):
        graded.clear()
        result = evaluate(task, model, tok, engine=chosen, max_tokens=9, progress=lambda *counts: seen.append(counts))
        assert graded == expected
        assert result["accuracy"] == 1 / 7
        assert seen[-1] == (7, 7)
        assert sum(example["right"] for example in result["examples"]) == 1


def test_bad_tasks_are_named(model, tok):
    with pytest.raises(ValueError, match="stand-in has no items"):
        evaluate(StandIn(kind="choice"), model, tok)
    with pytest.raises(ValueError, match="kind 'essay'; accepted: 'choice' or 'generate'"):
        evaluate(StandIn(kind="essay", items=make_items(1)), model, tok)


def test_wilson_interval():
    low, high = wilson_interval(10, 10)  # 100% of ten is not certainty
    assert (round(low, 3), high) == (0.722, 1.0)
    low, high = wilson_interval(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
