"""Whatever happens around it, a request gets the reply that it gets alone: of every architecture, in native code and in torch."""

import random

import pytest
import torch

from nutshell.infer import scheduler
from nutshell.infer.cache_memory import bytes_per_token
from nutshell.infer.engine import Engine
from nutshell.infer.native import dtype_of
from nutshell.infer.sampling import Sampling
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig

COMMON = {"depth": 3, "width": 32, "heads": 4, "head_dim": 8, "context": 96}
SHAPES = {
    "speed": {"kv_heads": 2, "window_pattern": "SL"},
    "portable": {"kv_heads": 2, "mlp_width": 40, "window_pattern": "L", "architecture": "portable", "rotary_base": 1e4},
    "gpt2": {"kv_heads": 4, "mlp_width": 40, "window_pattern": "L", "architecture": "gpt2", "tied": True},
}
EXACT = [("speed", "native"), ("speed", "torch"), ("portable", "native"), ("portable", "torch"), ("gpt2", "torch")]


def make(tok, shape: str, dtype: torch.dtype = torch.float32):
    """A model in which every weight counts; tokens of the chat are unlikely, so that replies have some length."""
    model = build_model(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **COMMON, **SHAPES[shape]))
    generator = torch.Generator().manual_seed(3)
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
