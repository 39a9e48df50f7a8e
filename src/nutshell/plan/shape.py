"""From a depth to the shape of the model: width, heads, context, vocabulary. What the recipe names is kept."""

from __future__ import annotations

from nutshell.model.config import SPEED_ONLY, ModelConfig
from nutshell.model.flops import parameters_by_group
from nutshell.plan.recipe import Recipe, quantity

CHARACTERS_EXPECTED = 128  # tokens of a character-level tokenizer, before the text is read


def make_shape(recipe: Recipe, depth: int, vocab_size: int, bos_id: int = 0) -> ModelConfig:
    """The model of this depth; every size the recipe names is kept. ValueError for sizes that do not fit together."""
    width = recipe.width or 64 * depth
    head_dim = recipe.head_dim or (width // recipe.heads if recipe.heads else (64 if width <= 512 else 128))
    if not recipe.width:
        width = -(-width // head_dim) * head_dim
    if recipe.width and not recipe.heads and width % head_dim:
        raise ValueError(f"width is {width}, not a multiple of head_dim = {head_dim}. Use {-(-width // head_dim) * head_dim}.")
    heads = recipe.heads or width // head_dim
    context = recipe.context or (512 if depth <= 8 else 2048)
    # portable's three MLP matrices have as many parameters as the two of the others
    mlp_width = {"speed": 0, "portable": -(-width * 8 // 3 // 64) * 64, "gpt2": 4 * width}[recipe.architecture]
    return ModelConfig(
        vocab_size=vocab_size, depth=depth, width=width, heads=heads, kv_heads=recipe.kv_heads or heads, head_dim=head_dim,
        context=context, window_pattern=recipe.window_pattern or ("SSSL" if recipe.architecture == "speed" else "L"),
        bos_id=bos_id, architecture=recipe.architecture, tied=recipe.tied or recipe.architecture == "gpt2",
        rotary_base=recipe.rotary_base, qk_norm=recipe.qk_norm, norm_eps=recipe.norm_eps, mlp_width=recipe.mlp_width or mlp_width,
        **{name: getattr(recipe, name) for name in SPEED_ONLY},
    )  # fmt: skip


def default_vocab_size(recipe: Recipe, device: str) -> int:
    """Size of the vocabulary where none is named: by depth, and where that is not known either (on a budget) 4096 on a CPU and
    32768 on a GPU."""
    if recipe.tokenizer_kind == "char":
        return CHARACTERS_EXPECTED
    if recipe.vocab_size:
        return recipe.vocab_size
    if depth := named_depth(recipe):
        return _vocab_size_at(depth)
    return 4096 if device == "cpu" else 32768


def _vocab_size_at(depth: int) -> int:
    return 4096 if depth <= 4 else 8192 if depth <= 8 else 32768


def named_depth(recipe: Recipe) -> int:
    """The depth that the recipe names, or the one whose parameters are nearest to those it names; 0 where the plan decides."""
    if not recipe.params:
        return recipe.depth
    wanted = quantity(recipe.params, "params")

    def distance(depth: int) -> float:
        shape = make_shape(recipe, depth, recipe.vocab_size or _vocab_size_at(depth))
        return abs(sum(parameters_by_group(shape).values()) - wanted)

    return min(range(1, 65), key=distance)
