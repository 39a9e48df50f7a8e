"""Shares and epochs of the parts of a mixture."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.data.primer.conversations import KINDS
from nutshell.plan.estimate import describe
from nutshell.plan.hardware import Hardware
from nutshell.plan.mixture import GENERATED, Size, plan_parts, token_limit
from nutshell.plan.plan import Data, draft_plan, make_plan
from nutshell.plan.recipe import PRIMER, Recipe
from nutshell.plan.stages import MixturePart, StageConfig, Stages


def recipe(*parts, **config):
    return Recipe(depth=2, stages=replace(Stages(), sft=StageConfig(share=0.2, mixture=parts, **config)))


@given(
    st.lists(st.tuples(st.integers(1, 10**6), st.floats(1, 1e9), st.floats(1e-3, 100)), min_size=1, max_size=5),
    st.booleans(), st.floats(1, 1e10),
)  # fmt: skip
def test_shares_add_up_and_no_part_is_read_too_often_by_default(drawn, by_epochs, tokens):
    name = "epochs" if by_epochs else "weight"
    asked = recipe(*(MixturePart(data=f"{n}.jsonl", **{name: amount}) for n, (_, _, amount) in enumerate(drawn)))
    sizes = {f"{n}.jsonl": Size(rows, size) for n, (rows, size, _) in enumerate(drawn)}
    parts = plan_parts(asked, "sft", sizes, tokens)
    assert sum(part.share for part in parts) == pytest.approx(1)
    assert [part.epochs * part.tokens for part in parts] == pytest.approx([tokens * part.share for part in parts])
    most = token_limit(asked, "sft", sizes)
    epochs = [part.epochs for part in plan_parts(asked, "sft", sizes, most)]
    if by_epochs:
        assert epochs == pytest.approx([amount for *_, amount in drawn])
    else:
        assert max(epochs) == pytest.approx(asked.stages.sft.epochs)
        amounts = [part.share / parts[0].share for part in parts]
        assert amounts == pytest.approx([amount / drawn[0][2] for *_, amount in drawn])


def test_the_plan_prints_each_part_and_warns_above_three_epochs():
    parts = (MixturePart(data="/x/alpaca_52k.jsonl.gz", weight=3), MixturePart(data="me.csv"), MixturePart(data=PRIMER, rows=50))
    data = Data(conversations={"/x/alpaca_52k.jsonl.gz": Size(52_000, 8e6), "me.csv": Size(91, 5000)})
    few = make_plan(recipe(*parts), Hardware(), vocab_size=512, data=data)
    page = describe(few)
    assert " 60% alpaca_52k: 52,000 rows, 8.00M tokens, " in page
    assert " 20% me: 91 rows, 0.01M tokens, " in page
    assert " 20% primer: 50 rows, 0.01M tokens, " in page
    assert few.stages["sft"].steps * few.stages["sft"].tokens_per_step <= 3 * 5000 / 0.2 + few.stages["sft"].tokens_per_step
    many = describe(make_plan(recipe(*parts, steps=2000), Hardware(), vocab_size=512, data=data))
    assert "warning: sft reads me " in many
    assert "warning: sft reads alpaca" not in many
    assert "not known yet" in describe(draft_plan(recipe(*parts)))


def test_parts_that_are_generated_are_of_kinds_that_there_are():
    assert {kind for kinds in GENERATED.values() for kind in kinds or ()} <= set(KINDS)


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        ([{}], "accepted: one of the two"),
        ([{"data": "a", "task": "gsm8k"}], "accepted: one of the two"),
        ([{"data": "a", "weight": 1, "epochs": 1}], "a has weight 1 and epochs 1; accepted: one of the two"),
        ([{"data": "a", "weight": 1}, {"data": "b", "epochs": 1}], "the same for all of its parts"),
        ([{"data": "x/a.csv"}, {"data": "y/a.json"}], "two parts of a mixture have the same name"),
        ([{"data": "a", "weight": -1}], "weight is -1"),
    ],
)
def test_bad_mixtures_are_refused(parts, error):
    with pytest.raises(ValueError, match=error):
        recipe(*(MixturePart(**part) for part in parts))


def test_pretraining_takes_no_task_and_rl_no_mixture():
    stages = Stages()
    with pytest.raises(ValueError, match="tasks are conversations"):
        Recipe(stages=replace(stages, pretrain=replace(stages.pretrain, mixture=(MixturePart(task="gsm8k"),))))
    with pytest.raises(ValueError, match="rl writes its own problems"):
        replace(stages.rl, mixture=(MixturePart(data="a"),))
