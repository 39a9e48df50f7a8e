"""Recipes and plans as data: unknown keys, wrong types and impossible values are named with their place and what is accepted."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from nutshell.config import from_dict, load_toml, parse
from nutshell.plan.recipe import Recipe, parse_identity

RECIPES = Path(__file__).parents[1] / "recipes"


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Part of the example."""

    rate: float = 0.5
    """A rate."""

    def __post_init__(self) -> None:
        if self.rate < 0:
            raise ValueError(f"rate is {self.rate}; accepted: at least 0.")


@dataclass(frozen=True, kw_only=True)
class Example:
    """An example."""

    count: int
    """How many."""
    name: str = "x"
    flag: bool = False
    limit: float | None = None
    parts: dict[int, Inner] = field(default_factory=dict)
    order: tuple[str, ...] = ()
    inner: Inner = field(default_factory=Inner)


def test_nested_values_become_dataclasses():
    values = {"count": 3, "limit": 2, "parts": {"4": {"rate": 1}}, "order": ["a", "b"], "inner": {"rate": 0.1}}
    assert from_dict(Example, values, "here") == Example(
        count=3, limit=2, parts={4: Inner(rate=1)}, order=("a", "b"), inner=Inner(rate=0.1)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"count": 1, "nam": "y"}, r"here: unknown key nam\. Did you mean name\? Accepted: count, name"),
        ({"count": 1, "inner": {"rat": 1}}, r"here: unknown key inner\.rat\. Did you mean inner\.rate\?"),
        ({"count": "1"}, r"here: count is '1'; accepted: int"),
        ({"count": True}, r"here: count is True; accepted: int"),
        ({"count": 1.5}, r"here: count is 1\.5; accepted: int"),
        ({"count": 1, "flag": 1}, r"here: flag is 1; accepted: bool"),
        ({"count": 1, "name": 2}, r"here: name is 2; accepted: str"),
        ({"count": 1, "inner": 2}, r"here: inner is 2; accepted: a table"),
        ({"count": 1, "order": "ab"}, r"here: order is 'ab'; accepted: a list"),
        ({"count": 1, "order": ["a", 1]}, r"here: order\.1 is 1; accepted: str"),
        ({"count": 1, "parts": {"1": 2}}, r"here: parts\.1 is 2; accepted: a table"),
        ({"count": 1, "inner": {"rate": -1}}, r"here: \[inner\] rate is -1; accepted: at least 0"),
        ({}, r"here: count missing"),
        ([], r"here: the whole is \[\]; accepted: a table"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(Example, values, "here")


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_a_recipe_is_a_file_or_a_folder_with_config_toml(tmp_path):
    file = write(
        tmp_path / "config.toml",
        "depth = 3\n[stages.rl]\nprompts = 5\n[optimizer]\nmatrix_lr = 1\n[schedule]\nwarmup_steps = 2\n",
    )
    for path in (file, tmp_path, str(tmp_path)):
        recipe = load_toml(Recipe, path)
        assert (recipe.depth, recipe.stages.rl.prompts, recipe.optimizer.matrix_lr, recipe.schedule.warmup_steps) == (3, 5, 1, 2)
        assert recipe.optimizer.head_lr == Recipe().optimizer.head_lr


def test_what_a_table_leaves_out_stays_as_the_recipe_has_it_by_default(tmp_path):
    """[stages.rl] with one key must not take RL its share of the budget."""
    recipe = load_toml(Recipe, write(tmp_path / "r.toml", "[stages.rl]\nprompts = 5\n[stages.sft]\nsteps = 9"))
    default = Recipe()
    assert recipe.stages.rl == replace(default.stages.rl, prompts=5)
    assert recipe.stages.sft == replace(default.stages.sft, steps=9)
    assert recipe.stages.midtrain == default.stages.midtrain


@pytest.mark.parametrize("file", sorted(RECIPES.rglob("*.toml")), ids=lambda file: str(file.relative_to(RECIPES)))
def test_every_recipe_of_this_repository_is_read(file):
    load_toml(Recipe, file)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("depth = ", r"r\.toml is not valid TOML: .*at end of document"),
        (b"\xff\xfe", r"r\.toml is not valid TOML: .*utf-8"),
        ("depth = 3\ndepth = 4", r"r\.toml is not valid TOML"),
        ("[stages.sft]\nstep = 3", r"r\.toml: unknown key stages\.sft\.step\. Did you mean stages\.sft\.steps\?"),
        ("[stages.sft]\nshare = 3", r"r\.toml: \[stages\.sft\] share is 3; accepted: 0 to 1"),
        ("depth = 300", r"r\.toml: depth is 300; accepted: 0 \(the plan decides\), or 1 to 256"),
        ("vocab_size = 264", r"vocab_size is 264; accepted: 0 \(the plan decides\), or at least 265"),
        ("context = 4", r"context is 4; accepted: 0 \(the plan decides\), or 16 to"),
        ("seed = -1", r"seed is -1; accepted: at least 0"),
        ("seed = 9223372036854775808", r"seed is 9223372036854775808; accepted: at least 0, below 2\^63"),
        ("usd_per_hour = inf", r"usd_per_hour is inf; accepted: at least 0, below 2\^63"),
        ('[stages.sft]\nmixture = "a"', r"stages\.sft\.mixture is 'a'; accepted: a list"),
        ("loggers = [[1]]", r"loggers\.0 is \[1\]; accepted: str"),
        ('out = ""', r"out is ''; accepted: a path"),
        ("tokens_per_step = -512", r"tokens_per_step is -512; accepted: 0 \(the plan decides\), or 1 to 1000000000000"),
        ("primer_characters = 1000000000000", r"primer_characters is 1000000000000; accepted: 10000 to 100000000000"),
        ("[stages.sft]\nsteps = 1000000000000", r"\[stages\.sft\] steps is 1000000000000; accepted: 0 to 1000000000"),
        ('budget = "99999999999999h"', r"budget is '99999999999999h'; accepted: 10s to 10 years"),
        ("[stages.rl]\nprompts = 2\nsamples = 3\nupdates = 7", r"updates is 7; accepted: at most 6, the answers of a step"),
        ("save_every_seconds = nan", "save_every_seconds is nan; accepted: at least 0"),
        ("usd_per_hour = nan", "usd_per_hour is nan; accepted: at least 0"),
        ("[optimizer]\nmatrix_lr = inf", r"\[optimizer\] matrix_lr is inf; accepted: 0 to 1000000"),
        ("[stages.rl]\ntemperature = 0", r"\[stages\.rl\] temperature is 0; accepted: above 0 to 1000000"),
        ("[stages.rl]\nsamples = 1", "samples is 1; accepted: at least 2"),
        ("[schedule]\nwarmdown_fraction = 1.5", r"warmdown_fraction is 1\.5; accepted: 0 to 1"),
        ('budget = "10"', r"budget is '10'; accepted: 10s to 10 years \(87600h\), written like 90s, 8min or 2h"),
    ],
)
def test_a_recipe_with_a_mistake_is_refused_with_its_file_and_key(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        load_toml(Recipe, write(tmp_path / "r.toml", text))


def test_a_recipe_that_is_not_there_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere not found: expected a \.toml file or a folder with config\.toml"):
        load_toml(Recipe, tmp_path / "nowhere")


def test_flags_override_the_recipe_and_keep_the_rest():
    default = Recipe(depth=3, eval_items=7)
    recipe = parse(Recipe, ["--depth", "4", "--stages.sft.steps", "9"], prog="x", description="", default=default)
    assert (recipe.depth, recipe.eval_items, recipe.stages.sft.steps) == (4, 7, 9)
    assert recipe.stages.sft.share == default.stages.sft.share


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('name=Acorn,maker="the physics class"', {"name": "Acorn", "maker": "the physics class"}),
        ("maker=Ann, Bob and Cy, name = Acorn", {"name": "Acorn", "maker": "Ann, Bob and Cy"}),
        ("", {}),
    ],
)
def test_an_identity_has_a_name_and_a_maker(text, found):
    assert parse_identity(text) == found


@pytest.mark.parametrize("text", ["Acorn", "name=", "author=me", "name=a,name=b", "name=" + "x" * 81])
def test_other_identities_are_refused(text):
    with pytest.raises(ValueError, match=r"identity is .*; accepted: name=Acorn"):
        Recipe(identity=text)
