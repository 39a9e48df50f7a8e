"""Tasks scored on a tiny random model, against one forward pass per option."""

import itertools

import pytest
import torch

from nutshell.eval.chat import choose, evaluate, graded, pass_at_k, wilson_interval
from nutshell.infer.engine import Engine
from nutshell.tasks import Item, Task
from nutshell.tokenizer.chat import render, render_prompt

OPTIONS = ("red", "blue", "a very long answer", "yellow")


def make_items(count):
    return [
        Item(
            messages=[{"role": "user", "content": f"What colour is the cat? {'x' * (7 * n % 24)} {n}"}],
            answer=OPTIONS[n % 4],
            options=OPTIONS[: 2 + n % 3] if n % 4 < 2 else OPTIONS,
            index=n,
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


def test_the_likeliest_option_is_chosen(model, tok):
    items, seen = make_items(12), []
    records, notes = choose(Task(items=items), model, tok, None, lambda done, total: seen.append((done, total)))
    for item, record in zip(items, records, strict=True):
        scores = one_by_one(model, tok, item)
        assert record.scores == pytest.approx(scores, abs=1e-5)
        assert scores[record.picked] == pytest.approx(max(scores), abs=1e-5)
        assert record.right == (item.options[record.picked] == item.answer)
    assert len({record.picked for record in records}) > 1
    assert [record.index for record in records] == list(range(12))
    assert seen[-1] == (12, 12)
    assert not notes


def test_choice_accuracy_and_examples(model, tok):
    task = Task(items=make_items(20), baseline=0.25)
    result = evaluate(task, model, tok)
    right = [record.right for record in result["records"]]
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


def test_examples_that_do_not_fit_are_left_out_and_counted(model, tok):
    (item,) = make_items(1)
    turns = [*item.messages, {"role": "assistant", "content": "red"}]
    behind = Item(messages=[*turns * 5, *item.messages], answer="red", options=item.options)
    result = evaluate(Task(items=[behind, item]), model, tok)
    assert result["notes"] == ["1 of 2 items lost their oldest examples: more than the context of 64 tokens"]


def test_an_item_longer_than_the_context_is_scored_by_its_end(model, tok):
    question = [{"role": "user", "content": "start " + "z" * 300 + " end"}]
    ids, _ = render([*question, {"role": "assistant", "content": "red"}], tok)
    assert len(ids) > model.config.context
    items = [Item(messages=question, answer="red", options=("red", other)) for other in ("blue", "w" * 500)]
    result = evaluate(Task(items=items), model, tok)
    assert [record.picked in (0, 1) for record in result["records"]] == [True, True]
    assert result["notes"] == ["2 of 2 items lost the beginning of the question: more than the context of 64 tokens"]


def written(item):
    return Item(messages=item.messages, index=item.index)


def test_generated_replies_are_greedy_and_graded(model, tok):
    items = [written(item) for item in make_items(7)]
    engine = Engine(model, tok, max_rows=3)
    expected = ["".join(p.text for p in engine.chat(item.messages, temperature=0, max_tokens=9)) for item in items]
    graded, seen = [], []

    def grade(item, reply):
        graded.append(reply)
        return 0.5 * (item == items[1]) + (item == items[2])

    task = Task(items=items, grade=grade)
    for chosen in (None, engine):
        graded.clear()
        result = evaluate(task, model, tok, engine=chosen, max_tokens=9, progress=lambda *counts: seen.append(counts))
        assert graded == expected
        assert result["accuracy"] == 1.5 / 7
        assert [record.picked for record in result["records"]] == [[text] for text in expected]
        assert seen[-1] == (7, 7)
        assert sum(example["right"] for example in result["examples"]) == 1


def test_several_samples_give_pass_at_k(model, tok):
    items = [written(item) for item in make_items(3)]
    task = Task(items=items, grade=lambda item, reply: float(len(reply) % 2 and item != items[0]))
    result = evaluate(task, model, tok, max_tokens=6, samples=5, temperature=1.0)
    rights = [sum(len(reply) % 2 for reply in record.picked) * (n > 0) for n, record in enumerate(result["records"])]
    assert result["accuracy"] == pytest.approx(sum(rights) / 15)
    assert list(result["pass_at_k"]) == ["1", "2", "4", "5"]
    assert result["pass_at_k"]["1"] == pytest.approx(result["accuracy"])
    assert result["pass_at_k"]["5"] == sum(right > 0 for right in rights) / 3
    assert any(len(set(record.picked)) > 1 for record in result["records"])


def test_pass_at_k_is_the_share_of_draws_with_a_right_one():
    for right in range(5):
        for k in range(1, 5):
            draws = list(itertools.combinations([True] * right + [False] * (4 - right), k))
            assert pass_at_k(4, right, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_a_grader_that_fails_is_named_with_its_item():
    item = Item(messages=[], index=3)
    graders = {"raised ZeroDivisionError: division by zero on item 3": lambda *_: 1 / 0, "gave nan": lambda *_: float("nan")}
    graders |= {"raised SystemExit: 4 on item 3": lambda *_: exit(4), "gave 2 on item 3": lambda *_: 2}
    for message, grade in graders.items():
        with pytest.raises(ValueError, match=f"the grader of mine {message}"):
            graded(Task(name="mine", items=[item], grade=grade), item, "x")


def test_a_task_without_items_is_named(model, tok):
    with pytest.raises(ValueError, match="stand-in has no items"):
        evaluate(Task(name="stand-in", items=[]), model, tok)


def test_wilson_interval():
    low, high = wilson_interval(10, 10)  # 100% of ten is not certainty
    assert (round(low, 3), high) == (0.722, 1.0)
    low, high = wilson_interval(50, 100)
    assert (round(low, 3), round(high, 3)) == (0.404, 0.596)
