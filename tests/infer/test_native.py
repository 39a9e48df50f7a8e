"""The native step against torch: the same numbers, and for every row the same bits whoever is beside it."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.infer import native
from nutshell.infer.blocks import Chunk
from nutshell.infer.engine import Engine
from nutshell.infer.native import NativeRunner
from nutshell.infer.sampling import Sampling
from nutshell.infer.torch_runner import TorchRunner
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig

SPEED = {
    "vocab_size": 90,
    "depth": 3,
    "width": 32,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 8,
    "context": 64,
    "window_pattern": "SL",
}
PORTABLE = {**SPEED, "head_dim": 16, "mlp_width": 40, "window_pattern": "L", "architecture": "portable", "rotary_base": 1e4}
OFF = {"smear": False, "backout": False, "value_embeddings": False, "residual_scales": False, "softcap": 0.0, "qk_scale": 1.0}
CONFIGS = {
    "speed": SPEED,
    "speed, all switches off": {**SPEED, **OFF},
    "speed, one layer, wide heads": {**SPEED, "depth": 1, "width": 50, "heads": 3, "kv_heads": 3, "head_dim": 70},
    "portable": PORTABLE,
    "portable, tied": {**PORTABLE, "tied": True, "heads": 6, "kv_heads": 1, "head_dim": 6},
}
KINDS = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "int8": (torch.bfloat16, True)}


def make(shape: dict, dtype: torch.dtype = torch.float32):
    """A model in which every weight counts."""
    model = build_model(ModelConfig(**shape))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, 1.2 * parameter.size(1) ** -0.5, generator=generator)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.set_precision(dtype).for_inference()


def after(before: list[int], ids: list[int], blocks=range(4)) -> Chunk:
    """The tokens `ids` of a sequence that begins with `before` and lies in `blocks`."""
    return Chunk(ids, len(before), before[-1] if before else -1, list(blocks))


def tokens_of(count: int, seed: int = 0) -> list[int]:
    return torch.randint(1, 90, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("config", CONFIGS)
def test_in_fp32_it_is_the_full_forward_token_for_token(config):
    """Rows of different length past the window, one that leaves and one that comes in its place, a whole prompt and parts."""
    model = make(CONFIGS[config])
    runner = NativeRunner(model, 90, rows=3, context=64)
    texts = {0: tokens_of(5, 1), 1: tokens_of(30, 2), 2: []}
    blocks = [[11, 0, 10, 1], [9, 2, 8, 3], [7, 4, 6, 5]]

    def feed(parts: dict[int, list[int]]) -> None:
        logits, best = runner.forward([after(texts[row], part, blocks[row]) for row, part in parts.items()])
        for place, (row, part) in enumerate(parts.items()):
            texts[row] += part
            expected = model(torch.tensor([texts[row]]))[0, -1]
            assert torch.allclose(torch.from_numpy(logits[place]), expected, atol=3e-5, rtol=1e-4)
            assert best[place] == int(expected.argmax())
            chosen[row] = best[place] or 1  # 0 begins another document, which ends a reply

    chosen: dict[int, int] = {}
    start, texts = texts, {0: [], 1: [], 2: []}
    feed({0: start[0], 1: start[1]})
    for _ in range(3):
        feed({1: [chosen[1]], 0: [chosen[0]]})
    texts[0] = []
    feed({2: tokens_of(9, 3), 0: tokens_of(20, 4), 1: [chosen[1]]})
    blocks[2][:2], texts[2] = blocks[1][:2], texts[1][:32]  # goes on from the whole blocks of another
    feed({2: texts[1][32:]})
    for _ in range(20):
        feed({row: [token] for row, token in chosen.items()})
    assert {row: len(text) for row, text in texts.items()} == {0: 40, 1: 54, 2: 54}


@pytest.mark.parametrize("config", CONFIGS)
def test_logits_after_each_token_of_a_prompt_are_those_of_the_full_forward(config, monkeypatch):
    model, ids, blocks = make(CONFIGS[config]), tokens_of(50), [5, 0, 3, 1]
    expected = model(torch.tensor([ids]))[0]
    monkeypatch.setattr(native, "LOGITS_AT_ONCE", 7 * 96)
    parts = [torch.from_numpy(part.copy()) for part in NativeRunner(model, 90, 2, 64).prompt_logits(ids, blocks)]
    assert [len(part) for part in parts] == [7] * 7 + [1]
    assert torch.allclose(torch.cat(parts), expected, atol=3e-5, rtol=1e-4)
    [whole] = TorchRunner(model, 90, 2, 64).prompt_logits(ids, blocks)
    assert torch.allclose(torch.from_numpy(whole), expected, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("config", CONFIGS)
def test_in_bf16_it_is_as_near_to_fp32_as_torch_is(config):
    exact, model = make(CONFIGS[config]), make(CONFIGS[config], torch.bfloat16)
    ids = tokens_of(40)
    reference = exact(torch.tensor([ids]))[0, -1]
    errors = []
    for runner in (NativeRunner(model, 90, 1, 64), TorchRunner(model, 90, 1, 64)):
        logits, _ = runner.forward([after([], ids)])
        errors.append(float((torch.from_numpy(logits[0]) - reference).norm() / reference.norm()))
    assert errors[0] < 1.5 * errors[1] + 1e-3
    assert errors[0] < 0.1


@pytest.mark.parametrize("config", CONFIGS)
def test_int8_is_close(config):
    model = make(CONFIGS[config])
    ids = tokens_of(40)
    reference = model(torch.tensor([ids]))[0, -1]
    logits, _ = NativeRunner(model, 90, 1, 64, int8=True).forward([after([], ids)])
    assert 1e-4 < float((torch.from_numpy(logits[0]) - reference).norm() / reference.norm()) < 0.15


@settings(max_examples=25, deadline=None)
@given(
    kind=st.sampled_from(list(KINDS)),
    config=st.sampled_from(list(CONFIGS)),
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=5),
    cut=st.integers(1, 30),
    seed=st.integers(0, 1000),
)
def test_a_row_is_the_same_bits_alone_and_among_others_whole_and_in_parts(kind, config, lengths, cut, seed):
    dtype, int8 = KINDS[kind]
    model = make(CONFIGS[config], dtype)
    texts = [tokens_of(length, seed + row) for row, length in enumerate(lengths)]
    together = NativeRunner(model, 90, len(texts), 64, int8=int8)
    crowd, _ = together.forward([after([], text, range(4 * row, 4 * row + 4)) for row, text in enumerate(texts)][::-1])
    for row, text in enumerate(texts):
        alone = NativeRunner(model, 90, 1, 64, int8=int8)
        for before, part in (([], text[:cut]), (text[:cut], text[cut:])):
            if part:
                logits, _ = alone.forward([after(before, part)])
        assert (logits[0] == crowd[len(texts) - 1 - row]).all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_seed_means_the_same_text_alone_and_in_a_full_batch_in_every_dtype(tok, kind):
    """In torch bf16 fails this: products of other shapes round differently."""
    dtype, int8 = KINDS[kind]
    model = make({**SPEED, "vocab_size": tok.vocab_size, "bos_id": tok.bos_id}, dtype)
    wanted = Sampling(seed=5, temperature=1.0, top_k=20, max_tokens=30)
    compute = "native-int8" if int8 else "native"
    [[alone]] = Engine(model, tok, 1, engine=compute).sample([[1, 2, 3]], sampling=wanted, tools=False)
    crowded = Engine(model, tok, 8, engine=compute)
    for row in range(6):
        crowded.submit(tokens_of(3 + 5 * row, row), Sampling(temperature=1.3, max_tokens=20 + row), tools=False)
    [[among]] = crowded.sample([[1, 2, 3]], sampling=wanted, tools=False)
    assert among.ids == alone.ids
    assert len(alone.ids) > 5


def test_what_it_cannot_do_is_said_and_torch_does_it(model, tok, scripted, monkeypatch):
    assert Engine(model, tok).computes.startswith("native (float32, ")
    assert Engine(model, tok, engine="torch").computes == "torch (float32)"
    assert Engine(scripted, tok).computes == "torch (float32)"
    with pytest.raises(ValueError, match=r"knows GPT and Qwen3, and this is a ScriptedGPT. Accepted: auto, torch"):
        Engine(scripted, tok, engine="native")
    with pytest.raises(ValueError, match="engine is 'rust'; accepted: auto, native, native-int8, torch"):
        Engine(model, tok, engine="rust")
    with pytest.raises(ValueError, match="not in float16"):
        Engine(make({**SPEED, "vocab_size": 300}, torch.float16), tok, engine="native")
    llama = make({**PORTABLE, "vocab_size": 300, "qk_norm": False})
    with pytest.raises(ValueError, match=r"it norms queries and keys, with an epsilon of 1e-6. Accepted: auto, torch"):
        Engine(llama, tok, engine="native")
    assert Engine(llama, tok).computes == "torch (float32)"
    monkeypatch.setattr(native, "Decoder", None)
    with pytest.raises(ValueError, match="built without it"):
        Engine(model, tok, engine="native")
    assert Engine(model, tok).computes == "torch (float32)"


def test_a_decoder_refuses_what_does_not_fit_its_shape():
    model = make(SPEED)
    runner = NativeRunner(model, 90, rows=2, context=32)
    for sequence, message in [
        (([4], 0, -1, [1]), r"blocks \[4\]; accepted: .* blocks below 4"),
        (([1], 15, 1, [1, 2]), "tokens 15..17 .*; accepted: .* positions below 16"),
        (([0], 0, -1, []), "at least one"),
        (([0], 0, -1, [90]), "token 90; accepted: 0 to 89"),
    ]:
        with pytest.raises(ValueError, match=message):
            runner.decoder.step([sequence])
    with pytest.raises(KeyError):
        native.Decoder(
            native.native_shape(model.config, 90), {}.__getitem__, kind="float32", threads=1, blocks=4, bf16=False,
            keys=(0, 0), values=(0, 0), logits=(0, 0),
        )  # fmt: skip
