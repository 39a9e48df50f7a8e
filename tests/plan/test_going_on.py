"""Which settings a run in progress may go on with: F34 (27), and F32 for what it reads."""

from dataclasses import fields, is_dataclass, replace

import pytest

from nutshell.files import write_json
from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import FREE_IN_A_RUN, Recipe
from nutshell.plan.record import standing_plan

BASE = Recipe(depth=2)
CANDIDATES = (
    1, 2, 3, 0.5, 0.25, 7.0, True, False, "cpu", "bfloat16", "float32", "weights", "portable", "qwen2", "skip", "previous",
    "8min", "char", "name=Acorn", "H100", "a.txt", "primer-sums", "L", ("console",), ("wandb",), ("a.jsonl",), 64, 1024, 10**6,
)  # fmt: skip


def other(settings, name):
    """The settings with another value that `name` accepts, nested settings with one of their own changed."""
    value = getattr(settings, name)
    if is_dataclass(value):
        for field in fields(value):
            if (changed := other(value, field.name)) is not None:
                return replace(settings, **{name: changed})
    for candidate in CANDIDATES:
        if candidate != value and type(candidate) is type(value):
            try:
                return replace(settings, **{name: candidate})
            except (ValueError, TypeError, AttributeError):
                continue
    return None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder with a plan and something that was trained by it."""
    folder = tmp_path_factory.mktemp("run")
    write_json(folder / "plan.json", draft_plan(replace(BASE, out=str(folder))).to_dict())
    (folder / "pretrain" / "step-000001").mkdir(parents=True)
    write_json(folder / "pretrain" / "step-000001" / "manifest.json", {})
    return folder


@pytest.mark.parametrize("name", [field.name for field in fields(Recipe) if field.name not in ("out", "params")])
def test_every_setting_may_change_or_is_refused_by_name(trained, name):
    changed = other(replace(BASE, out=str(trained)), name)
    assert changed is not None, f"CANDIDATES has no other value of {name}"
    if name in FREE_IN_A_RUN:
        assert standing_plan(changed).recipe.depth == 2
    else:
        with pytest.raises(ValueError, match=rf"was planned with {name}[.\w]* = .*, now it is .*another --out"):
            standing_plan(changed)
