"""Whatever happens around it, a request gets the reply that it gets alone: of every architecture, in native code and in torch."""

import random

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nutshell.infer import scheduler
from nutshell.infer.cache_memory import bytes_per_token
from nutshell.infer.engine import Engine
from nutshell.infer.native import dtype_of
from nutshell.infer.sampling import Sampling
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.kv_blocks import blocks_of

COMMON = {"depth": 3, "width": 32, "heads": 4, "head_dim": 8, "context": 96}
SHAPES = {
    "speed": {"kv_heads": 2, "window_pattern": "SL"},
    "portable": {"kv_heads": 2, "mlp_width": 40, "window_pattern": "L", "architecture": "portable", "rotary_base": 1e4},
    "gpt2": {"kv_heads": 4, "mlp_width": 40, "window_pattern": "L", "architecture": "gpt2", "tied": True},
}
EXACT = [("speed", "native"), ("speed", "torch"), ("portable", "native"), ("portable", "torch"), ("gpt2", "torch")]


def make(tok, shape: str, dtype: torch.dtype = torch.float32):
    return built(tok, 3, dtype, **COMMON, **SHAPES[shape])


def built(tok, seed: int, dtype: torch.dtype = torch.float32, **shape):
    """A model in which every weight counts."""
    model = build_model(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **shape))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            scale = 1.2 * parameter.size(1) ** -0.5 if parameter.dim() == 2 else 0.1
            parameter.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.set_precision(dtype).for_inference()


def crowd(model, tok, compute: str, seed: int, sampling: dict) -> list:
    """Requests that begin alike, come at different times and are cancelled at times, in a cache that is too small for them: fed
    in parts, preempted and computed again. Those that were not cancelled."""
    draw = random.Random(seed)
    size = 9 * 16 * bytes_per_token(model.config, dtype_of(model))
    engine = Engine(model, tok, max_rows=5, engine=compute, kv_cache_bytes=size)
    starts = [[draw.randrange(250) for _ in range(60)] for _ in range(2)]
    requests, kept = [], []
    for number in range(16):
        prompt = draw.choice(starts)[: draw.randrange(1, 60)] + [draw.randrange(250) for _ in range(draw.randrange(3))]
        settings = Sampling(max_tokens=draw.randrange(1, 34), seed=number, **sampling)
        requests.append(engine.submit(prompt, settings, tools=False))
        if draw.random() < 0.8:
            kept.append(requests[-1])
        for _ in range(draw.randrange(4)):
            engine.step()
        if draw.random() < 0.3:
            engine.cancel(draw.choice([request for request in requests if request not in kept] or [requests[-1]]))
    while engine.busy:
        engine.step()
    assert engine.allocate().preemptions > 0
    assert engine.allocate().pool.available == 9
    return [request for request in kept if request.finish != "cancelled"]


@pytest.mark.parametrize(("shape", "compute"), EXACT)
def test_greedy_replies_are_those_of_the_full_forward_in_fp32(tok, monkeypatch, shape, compute):
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 11)
    model = make(tok, shape)
    for request in crowd(model, tok, compute, seed=1, sampling={"temperature": 0}):
        with torch.inference_mode():
            logits = model(torch.tensor([request.tokens]))[0, len(request.prompt) - 1 : -1]
        assert request.ids == logits.argmax(-1).tolist()  # causal: one pass over the reply is a pass for each token


@st.composite
def any_shape(draw) -> dict:
    """Odd widths, one block or several, 1 to 8 query heads for each key head, windows of one token to the whole context."""
    kv_heads, head_dim = draw(st.integers(1, 3)), draw(st.sampled_from([2, 6, 8, 16, 34, 128]))
    heads, context = kv_heads * draw(st.sampled_from([1, 2, 8])), draw(st.sampled_from([7, 16, 31, 33, 50]))
    shape = {"depth": draw(st.integers(1, 4)), "context": context, "kv_heads": kv_heads, "heads": heads, "head_dim": head_dim}
    architecture = draw(st.sampled_from(sorted(SHAPES)))
    if architecture == "gpt2":
        shape |= {"kv_heads": heads, "width": heads * head_dim, "tied": True}
    elif architecture == "portable":
        shape |= {"width": draw(st.integers(1, 48)), "tied": draw(st.booleans())}
    else:
        ideas = ("smear", "backout", "value_embeddings", "residual_scales")
        shape |= {"width": draw(st.integers(24, 70)), "window_pattern": draw(st.sampled_from(["L", "S", "SSL"]))}
        shape |= {
            "short_window": draw(st.sampled_from([1, 2, context - 1, context])),
            **{name: draw(st.booleans()) for name in ideas},
        }
    if architecture != "speed":
        shape |= {"window_pattern": "L", "mlp_width": draw(st.sampled_from([1, 17, 40]))}
    return {**shape, "architecture": architecture, "rotary_base": draw(st.sampled_from([10.0, 1e5]))}


@pytest.mark.slow
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    shape=any_shape(),
    budget=st.sampled_from([1, 11, 1024]),
    rows=st.integers(1, 5),
    more=st.integers(0, 2),
    seed=st.integers(0, 99),
)
def test_replies_are_exact_in_any_shape(tok, monkeypatch, shape, budget, rows, more, seed):
    """With prompts up to the edge of the context, and a cache of one context and little more."""
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", budget)
    model, draw, context = built(tok, seed, **shape), random.Random(seed), shape["context"]
    blocks = blocks_of(context) + more
    start = [draw.randrange(200) for _ in range(context)]
    for compute in ("native", "torch")[shape["architecture"] == "gpt2" :]:
        size = blocks * 16 * bytes_per_token(model.config, "float32")
        engine = Engine(model, tok, rows, engine=compute, kv_cache_bytes=size)
        prompts = [start[: draw.choice([1, context - 1, draw.randrange(1, context)])] for _ in range(6)]
        settings = [Sampling(temperature=0, max_tokens=draw.randrange(1, 40)) for _ in prompts]
        requests = [engine.submit(*both, tools=False) for both in zip(prompts, settings, strict=True)]
        while engine.busy:
            engine.step()
        assert engine.cache_stats().used == 0
        for request in requests:
            with torch.inference_mode():
                logits = model(torch.tensor([request.tokens]))[0, len(request.prompt) - 1 : -1]
            said = logits.gather(1, torch.tensor(request.ids)[:, None])[:, 0]
            assert torch.allclose(said, logits.max(-1).values, atol=1e-4), "only a tie may fall otherwise"


@pytest.mark.parametrize("shape", ["speed", "portable"])
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_seeded_reply_is_the_same_alone_in_every_dtype_of_native_code(tok, monkeypatch, shape, kind):
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 11)
    model = make(tok, shape, torch.float32 if kind == "float32" else torch.bfloat16)
    compute = "native-int8" if kind == "int8" else "native"
    replies = crowd(model, tok, compute, seed=2, sampling={"temperature": 1.0, "top_k": 40})
    monkeypatch.undo()
    for request in replies:
        alone = Engine(model, tok, 1, engine=compute)
        again = alone.submit(request.prompt, request.sampling, tools=False)
        while alone.busy:
            alone.step()
        assert again.tokens == request.tokens
    assert sum(len(request.ids) for request in replies) > 60
