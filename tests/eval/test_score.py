"""`score` against one plain forward pass for each pair, in float64."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.eval import score as scoring
from nutshell.eval.score import score, tree
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig

SHAPE = {"vocab_size": 40, "depth": 4, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "context": 48, "bos_id": 39}
SHAPES = {
    "speed with windows": ModelConfig(**SHAPE, window_pattern="SL"),
    "portable": ModelConfig(**SHAPE, window_pattern="L", architecture="portable", mlp_width=64, **dict.fromkeys(
        ("smear", "backout", "value_embeddings", "residual_scales"), True)),
    "gpt2": ModelConfig(**{**SHAPE, "kv_heads": 4}, window_pattern="L", architecture="gpt2", mlp_width=64, tied=True),
}  # fmt: skip


def make(config):
    model = build_model(config).requires_grad_(False).eval()
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if parameter.dim() == 2:
            parameter.normal_(0, parameter.size(1) ** -0.5, generator=generator)
        elif parameter.numel() == 1:
            parameter.fill_(0.5)  # smear and backout do something
    return model.double().set_precision(torch.float64)


@pytest.fixture(scope="module", params=SHAPES, ids=str)
def exact(request):
    return make(SHAPES[request.param])


def naive(model, pair):
    """Sum of log-probabilities, and whether each token is the likeliest: one row, all logits."""
    ids = [*pair[0], *pair[1]][-model.config.context - 1 :]
    first = max(1, len(ids) - len(pair[1]))
    if not pair[1]:
        return 0.0, 0, True
    logits = model(torch.tensor([ids[:-1]]))[0]
    table, targets = logits.log_softmax(-1)[first - 1 :], torch.tensor(ids[first:])
    total = float(table.gather(1, targets[:, None]).sum())
    return total, len(ids) - first, bool((logits[first - 1 :].argmax(-1) == targets).all())


def check(model, pairs, **options):
    for ours, pair in zip(score(model, pairs, **options), pairs, strict=True):
        total, tokens, greedy = naive(model, pair)
        assert ours.tokens == tokens
        assert ours.logprob == pytest.approx(total, abs=1e-4)  # the head's logits are fp32
        assert ours.greedy == greedy


tokens = st.lists(st.integers(0, 39), max_size=14)


@given(st.data())
def test_any_pairs_score_as_one_row_each(exact, data):
    """Preambles, questions behind them, choices behind those; <|bos|> anywhere, rows beyond window and context."""
    preambles = data.draw(st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=40), min_size=1, max_size=3))
    pairs = []
    for preamble in preambles:
        for question in data.draw(st.lists(tokens, min_size=1, max_size=3)):
            pairs += [(preamble + question, choice) for choice in data.draw(st.lists(tokens, max_size=4))]
    check(exact, pairs)


@pytest.mark.parametrize("limit", [1, 100, 4096])
def test_batches_of_any_size(exact, monkeypatch, limit):
    monkeypatch.setattr(scoring, "TOKENS_PER_BATCH", limit)
    monkeypatch.setattr(scoring, "LOGITS_AT_ONCE", 80)
    generator = torch.Generator().manual_seed(2)
    draw = lambda n: torch.randint(0, 39, (n,), generator=generator).tolist()  # noqa: E731
    preamble = [39, *draw(20)]
    pairs = [(preamble + question, draw(1 + n % 5)) for n in range(9) for question in [draw(n)] for _ in range(4)]
    seen = []
    check(exact, pairs, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (36, 36)


def test_greedy_is_what_greedy_decoding_says(exact):
    ids = [39, 3, 1, 4]
    for _ in range(6):
        ids.append(int(exact(torch.tensor([ids]))[0, -1].argmax()))
    right, wrong = score(exact, [(ids[:4], ids[4:]), (ids[:4], [*ids[4:9], (ids[9] + 1) % 39])])
    assert (right.greedy, wrong.greedy) == (True, False)
    assert right.mean == pytest.approx(right.logprob / 6)


def test_what_is_shared_is_read_once():
    """A preamble of 30 tokens, 5 questions of 10, 4 choices each of one token, then of three."""

    def read(choices):
        pairs = [([39, *range(29)] + [question] * 10, choice) for question in range(5) for choice in choices]
        rows = sorted([([*prefix, *rest], len(prefix), n) for n, (prefix, rest) in enumerate(pairs)])
        count, nodes = 0, tree(rows, 0)
        while nodes:
            node = nodes.pop()
            count, nodes = count + len(node.tokens), nodes + node.children
        return count

    assert read([[1], [2], [3], [4]]) == 30 + 5 * 10
    assert read([[11, 1, 1], [12, 2, 2], [13, 3, 3], [14, 4, 4]]) == 30 + 5 * (10 + 4 * 2)


def test_an_empty_prefix_is_refused_and_an_empty_continuation_costs_nothing(exact):
    with pytest.raises(ValueError, match="pair 1 has an empty prefix"):
        score(exact, [([1], [2]), ([], [2])])
    assert score(exact, [([1, 2], [])]) == [(0.0, 0, True)]
    assert score(exact, []) == []
