"""The model against a naive float64 forward, and decoding against whole rows."""

import math

import pytest
import torch
from decoding import Rows

from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.model.kv_blocks import BLOCK


def tiny(**changes) -> GPT:
    settings = {"vocab_size": 64, "depth": 4, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "context": 32}
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**settings, **changes}))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # zero-initialised projections would hide attention and MLP from the tests
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model


def naive_logits(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """The formulas of docs/design.md, one token and one head at a time, in float64."""
    config = model.config
    p = {name: value.detach().double() for name, value in model.named_parameters()}
    H, K, D, T, base = config.heads, config.kv_heads, config.head_dim, len(ids), config.rotary_base

    def norm(x):
        return x / torch.sqrt(x.square().mean() + 1e-6)

    def rotary(x, position):
        half = D // 2
        y = torch.empty_like(x)
        for i in range(half):
            angle = position * base ** (-2 * i / D)
            y[i] = x[i] * math.cos(angle) + x[half + i] * math.sin(angle)
            y[half + i] = x[half + i] * math.cos(angle) - x[i] * math.sin(angle)
        return y

    embedded = [norm(p["embedding.weight"][i]) for i in ids]
    xs = []
    for t, token in enumerate(ids):
        x = embedded[t]
        if config.smear and t > 0 and int(token) != config.bos_id:
            x = x + p["smear_lambda"] * torch.sigmoid(p["smear_gate.weight"][0] @ x[:24]) * embedded[t - 1]
        xs.append(x)
    x0s, middle = list(xs), list(xs)
    document = torch.cumsum(ids == config.bos_id, 0)
    for layer in range(config.depth):
        b = f"blocks.{layer}."
        if config.residual_scales:
            xs = [p["residual_scale"][layer] * x + p["embedding_scale"][layer] * x0 for x, x0 in zip(xs, x0s, strict=True)]
        q, k, v = [], [], []
        for t, x in enumerate(xs):
            y = norm(x)
            q.append([norm(rotary(h, t)) * config.qk_scale for h in (p[b + "attention.q.weight"] @ y).view(H, D)])
            k.append([norm(rotary(h, t)) * config.qk_scale for h in (p[b + "attention.k.weight"] @ y).view(K, D)])
            values = (p[b + "attention.v.weight"] @ y).view(K, D)
            if config.has_value_embedding(layer):
                gate = 3 * torch.sigmoid(p[b + "attention.value_gate.weight"] @ y[:12])
                values = values + gate[:, None] * p[f"value_embeddings.{layer}.weight"][ids[t]].view(K, D)
            v.append(values)
        window = config.windows()[layer]
        for t in range(T):
            heads = []
            for h in range(H):
                g = h // (H // K)
                seen = [s for s in range(max(0, t - window + 1), t + 1) if document[s] == document[t]]
                weight = torch.softmax(torch.stack([q[t][h] @ k[s][g] for s in seen]) / math.sqrt(D), 0)
                heads.append(sum(w * v[s][g] for w, s in zip(weight, seen, strict=True)))
            x = xs[t] + p[b + "attention.out.weight"] @ torch.cat(heads)
            xs[t] = x + p[b + "mlp.down.weight"] @ torch.relu(p[b + "mlp.up.weight"] @ norm(x)) ** 2
        if layer == config.depth // 2:
            middle = list(xs)
    backout = p["backout"] if "backout" in p else 0
    logits = torch.stack([p["lm_head.weight"] @ norm(x - backout * m) for x, m in zip(xs, middle, strict=True)])
    return config.softcap * torch.tanh(logits / config.softcap) if config.softcap else logits


def documents(T: int, seed: int = 2) -> torch.Tensor:
    ids = torch.randint(1, 64, (T,), generator=torch.Generator().manual_seed(seed))
    ids[0] = 0
    return ids


SWITCHES = [
    {"smear": False}, {"backout": False}, {"value_embeddings": False}, {"residual_scales": False}, {"softcap": 0.0},
    {"softcap": 30.0}, {"qk_scale": 1.0}, {"rotary_base": 500.0},
]  # fmt: skip


@pytest.mark.parametrize("changes", [{}, {"kv_heads": 4}, {"depth": 1, "kv_heads": 1}, {"window_pattern": "L"}, *SWITCHES])
def test_forward_equals_naive_float64(changes):
    model = tiny(**changes)
    ids = documents(21)
    ids[9] = 0  # a second document in the row
    with torch.no_grad():
        fast = model(ids[None])[0]
    assert torch.allclose(fast.double(), naive_logits(model, ids), atol=2e-4)


def test_decoding_one_token_at_a_time_equals_the_whole_row_past_the_window():
    # karpathy/nanochat 456: decoding past the sliding window must equal the full forward pass.
    model = tiny()
    ids = documents(30)
    with torch.no_grad():
        whole = model(ids[None])[0]
    rows, row = Rows(model, 3), slice(1, 2)
    steps = [rows.feed(ids[None, :5], row)[0]]
    steps += [rows.feed(ids[None, t : t + 1], row)[0] for t in range(5, 30)]
    assert torch.allclose(torch.cat(steps), whole, atol=1e-4)


def test_decoding_rows_of_different_length_equals_each_row_alone():
    model = tiny()
    first, second = documents(20, 5), documents(32, 6)
    rows = Rows(model, 2)
    rows.feed(first[None, :15], slice(0, 1))
    rows.feed(second[None, :27], slice(1, 2))
    got = rows.feed(torch.stack([first[15:], second[27:]]))
    with torch.no_grad():
        assert torch.allclose(got[0], model(first[None])[0, 15:], atol=1e-4)
        assert torch.allclose(got[1], model(second[None])[0, 27:], atol=1e-4)


def test_rows_go_on_from_a_block_that_they_share():
    """Smear: the token before the shared block's end is known by `previous` alone."""
    model = tiny()
    ids, other = documents(20), documents(20, 3)
    other[:BLOCK] = ids[:BLOCK]
    rows = Rows(model, 3)
    rows.feed(ids[None, :BLOCK], slice(0, 1))
    rows.tables[:] = torch.tensor([[0, 3], [0, 1], [0, 4]])
    rows.lengths[:], rows.previous[:] = BLOCK, ids[BLOCK - 1]
    got = rows.feed(torch.stack([ids, other, ids])[:, BLOCK:])
    with torch.no_grad():
        assert torch.allclose(got, model(torch.stack([ids, other, ids]))[:, BLOCK:], atol=1e-4)
    assert torch.equal(got[0], got[2])


def test_a_row_beyond_the_context_is_refused():
    with pytest.raises(ValueError, match="context is 32"):
        tiny()(torch.zeros(1, 33, dtype=torch.long))
