"""What `test_paged_attention.py` runs in a process of its own, where Triton interprets kernels on the CPU. bf16 is left out: the
interpreter's own rounding of it is not to be relied upon."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.infer.blocks import Chunk
from nutshell.infer.cuda_graphs import DecodeGraphs
from nutshell.infer.torch_runner import TorchRunner
from nutshell.model import paged_attention as kernels
from nutshell.model.attention import decode_attention
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.kv_blocks import BLOCK, blocks_of
from nutshell.model.probe import why_not_paged

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 90, "depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "context": 80}


def blocks_with(rows: list[int], tokens: int, kv_heads: int, dim: int, dtype: torch.dtype, seed: int):
    """Keys, values, tables, starts: rows of so many tokens and `tokens` new ones, blocks anywhere, the rest NaN."""
    generator = torch.Generator().manual_seed(seed)
    columns = blocks_of(max(rows) + tokens)
    blocks = columns * len(rows) + 3
    keys = torch.full((blocks, kv_heads, dim, BLOCK), torch.nan, dtype=dtype)
    values = torch.full((blocks, kv_heads, BLOCK, dim), torch.nan, dtype=dtype)
    tables = torch.randperm(blocks, generator=generator)[: columns * len(rows)].view(len(rows), columns)
    for row, length in enumerate(rows):
        for token in range(length + tokens):
            block, place = tables[row, token // BLOCK], token % BLOCK
            keys[block, :, :, place] = torch.randn(kv_heads, dim, generator=generator).to(dtype)
            values[block, :, place] = torch.randn(kv_heads, dim, generator=generator).to(dtype)
        tables[row, blocks_of(length + tokens) :] = blocks - 1  # never looked at
    return keys, values, tables, torch.tensor(rows), generator


@settings(max_examples=30, deadline=None)
@given(
    rows=st.lists(st.integers(0, 700), min_size=1, max_size=2),
    tokens=st.sampled_from([1, 1, 2, 35]),
    heads=st.sampled_from([(1, 1), (4, 4), (4, 1), (6, 2), (20, 1)]),
    dim=st.sampled_from([4, 8, 24, 32]),
    window=st.sampled_from([1, 15, 64, 300, 2048]),
    half=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention_over_blocks_is_that_over_copies(rows, tokens, heads, dim, window, half, seed):
    dtype = torch.float16 if half else torch.float32
    keys, values, tables, start, generator = blocks_with(rows, tokens, heads[1], dim, dtype, seed)
    q = torch.randn(len(rows), tokens, heads[0], dim, generator=generator).to(dtype)
    found = kernels.paged_attention(q, keys, values, tables, start, window)
    assert found.dtype == dtype
    for row, length in enumerate(rows):
        own = tables[row, : blocks_of(length + tokens)]
        k, v = keys.transpose(2, 3)[own], values[own]
        k, v = (x.transpose(0, 1).flatten(1, 2)[None, :, : length + tokens].double() for x in (k, v))
        expected = decode_attention(q[row : row + 1].double(), k, v, start[row : row + 1], window)[0]
        torch.testing.assert_close(found[row].double(), expected, atol=3e-3 if half else 1e-5, rtol=0)


@settings(max_examples=10, deadline=None)
@given(rows=st.lists(st.integers(0, 600), min_size=2, max_size=3), window=st.sampled_from([40, 2048]), seed=st.integers(0, 99))
def test_a_row_is_the_same_bits_alone_and_beside_others(rows, window, seed):
    keys, values, tables, start, generator = blocks_with(rows, 1, 2, 8, torch.float32, seed)
    q = torch.randn(len(rows), 1, 4, 8, generator=generator)
    together = kernels.paged_attention(q, keys, values, tables, start, window)
    for row in range(len(rows)):
        some = slice(row, row + 1)
        assert torch.equal(kernels.paged_attention(q[some], keys, values, tables[some], start[some], window)[0], together[row])


def test_the_probe_compares(monkeypatch):
    config = ModelConfig(**SHAPE)
    assert why_not_paged(config, CPU, torch.float32) is None
    right = kernels.paged_attention
    monkeypatch.setattr(kernels, "paged_attention", lambda *given: right(*given[:-1], given[-1] + 5))  # another window
    assert "differ from those of plain products" in why_not_paged(config, CPU, torch.float32)


@pytest.mark.parametrize(
    "shape",
    [
        {**SHAPE, "window_pattern": "SL"},
        {**SHAPE, "architecture": "portable", "mlp_width": 40, "window_pattern": "L"},
        {**SHAPE, "architecture": "gpt2", "kv_heads": 4, "mlp_width": 128, "window_pattern": "L", "tied": True},
    ],
)
def test_a_model_decodes_the_text_of_its_full_forward(shape):
    """Prompts of several lengths, then single tokens as recorded steps see them: padded rows, all columns of the table."""
    model = build_model(ModelConfig(**shape))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:  # so large that all that a token sees decides
                parameter.normal_(0, 1.2 * parameter.size(1) ** -0.5, generator=generator)
            else:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    model = model.for_inference()
    runner = TorchRunner(model, 90, 3, 80)
    runner.cache.paged = True
    runner.graphs = DecodeGraphs(runner._decode, 3, CPU, lambda step: step)
    for numbers in (runner.cache.keys, runner.cache.values):
        numbers.fill_(torch.nan)
    texts, each = [[5], list(range(1, 20)), list(range(3, 40))], blocks_of(80)
    blocks = [range(row * each, (row + 1) * each) for row in range(3)]
    fed = [0, 0, 0]
    for _ in range(8):
        chunks = [
            Chunk(text[done:], done, text[done - 1] if done else -1, mine)
            for text, done, mine in zip(texts, fed, blocks, strict=True)
        ]
        logits, tokens = runner.forward(chunks)
        for row, text in enumerate(texts):
            expected = model(torch.tensor([text]))[0, -1]
            torch.testing.assert_close(torch.from_numpy(logits[row]), expected, atol=1e-4, rtol=1e-4)
            assert tokens[row] == int(expected.argmax())
        fed = [len(text) for text in texts]
        texts = [[*text, token or 1] for text, token in zip(texts, tokens, strict=True)]  # 0 would begin another document
    assert runner.graphs.works
