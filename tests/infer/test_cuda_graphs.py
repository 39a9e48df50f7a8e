"""Recorded steps of decoding without a GPU: a "recording" here calls the step again with what its inputs hold. Recording itself
(`CudaRecorder`) needs a card; that a step never waits for the device is checked with fake tensors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from nutshell.infer.blocks import Chunk
from nutshell.infer.cuda_graphs import DecodeGraphs
from nutshell.infer.sampling import Draw
from nutshell.infer.torch_runner import FIXED, TorchRunner
from nutshell.infer.torch_sampling import candidates_of
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.kv_blocks import blocks_of
from nutshell.model.kv_cache import KVCache

ROWS, CONTEXT = 5, 64
DRAWS = [None, Draw(1.0, 0, 1.0, 0.0, 0.3), Draw(0.8, 5, 1.0, 0.0, 0.7), Draw(1.2, 0, 0.9, 0.01, 0.2)]
SHAPE = {"vocab_size": 90, "depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "context": CONTEXT}
SHAPES = {
    "speed": {**SHAPE, "window_pattern": "SL"},
    "portable": {**SHAPE, "architecture": "portable", "mlp_width": 40, "window_pattern": "L"},
    "gpt2": {**SHAPE, "architecture": "gpt2", "kv_heads": 4, "mlp_width": 128, "window_pattern": "L", "tied": True},
}


def again(step):
    return step


def model_of(shape):
    model = build_model(ModelConfig(**shape))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.for_inference()


def runner_of(model, record=None):
    runner = TorchRunner(model, 90, ROWS, CONTEXT)
    if record:
        runner.graphs = DecodeGraphs(runner._decode, ROWS, runner.device, record)
    return runner


@pytest.mark.parametrize("shape", SHAPES)
@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_padded_steps_give_the_logits_of_plain_ones(shape, data):
    lengths = data.draw(st.lists(st.integers(1, CONTEXT - 4), min_size=1, max_size=ROWS))
    shuffled = data.draw(st.permutations(range(ROWS * blocks_of(CONTEXT))))
    model = model_of(SHAPES[shape])
    plain, padded = runner_of(model), runner_of(model, again)
    each = blocks_of(CONTEXT)
    blocks = [shuffled[row * each : (row + 1) * each] for row in range(len(lengths))]
    texts = [[(7 * row + 3 * place) % 90 for place in range(length)] for row, length in enumerate(lengths)]
    for runner in (plain, padded):
        runner.forward([Chunk(text, 0, -1, mine) for text, mine in zip(texts, blocks, strict=True)])
    for new in (5, 80, 11):
        draws = [data.draw(st.sampled_from(DRAWS)) for _ in texts]
        chunks = [Chunk([new], len(text), text[-1], mine, draw) for text, mine, draw in zip(texts, blocks, draws, strict=True)]
        (expected, tokens), (found, found_tokens) = plain.forward(chunks), padded.forward(chunks)
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected), rtol=1e-4, atol=1e-4)
        assert found_tokens == tokens
        texts = [[*text, new] for text in texts]
    assert padded.graphs.works
    torch.testing.assert_close(padded.cache.keys, plain.cache.keys, rtol=1e-4, atol=1e-4)


def test_sizes_are_few():
    recorded = []

    def noted(step):
        recorded.append(step()[0].shape[0])
        return step

    def step(table, draws, candidates):
        return table.float(), draws[:, 0] + (candidates or 0)

    graphs = DecodeGraphs(step, 20, torch.device("cpu"), noted)
    for rows in range(1, 21):
        for count in range(100):
            table, draws = torch.arange(rows * 9).view(rows, 9), torch.rand(rows, 5)
            candidates = candidates_of([Draw(1.0, count, 1.0, 0.0, 0.5), None], 70)
            logits, tokens = graphs(table, draws, candidates)
            assert torch.equal(logits, table.float())
            assert torch.equal(tokens, draws[:, 0] + candidates)
    assert sorted(set(recorded)) == [1, 2, 4, 8, 16, 20]
    assert len(recorded) == 6 * len([0, 1, 2, 4, 8, 16, 32, 64, 70])
    graphs(table, draws, candidates_of([None], 70))
    assert len(recorded) == 6 * 9 + 1


def refused(step):
    raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nand much more")


def wrong(step):
    def other():
        logits, tokens = step()
        return logits + 1, tokens

    return other


def drawn_wrong(step):
    def other():
        logits, tokens = step()
        return logits, tokens + 1

    return other


@pytest.mark.parametrize(
    ("record", "reason"), [(refused, "operation not permitted"), (wrong, "differ by"), (drawn_wrong, "draws other tokens")]
)
def test_where_recording_fails_or_computes_something_else_the_step_itself_runs_and_that_is_said_once(record, reason, capsys):
    model = model_of(SHAPES["speed"])
    plain, other = runner_of(model), runner_of(model, record)
    for runner in (plain, other):
        runner.forward([Chunk([4, 5, 6], 0, -1, range(4))])
    for place, new in enumerate((7, 8, 9)):
        chunk = Chunk([new], 3 + place, 6 + place, range(4))
        expected, found = plain.forward([chunk])[0], other.forward([chunk])[0]
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(expected))
    assert not other.graphs.works
    said = capsys.readouterr().err
    assert said.count("CUDA graphs do not work here") == 1
    assert reason in said
    assert "much more" not in said


@pytest.mark.parametrize("shape", SHAPES)
def test_a_step_of_decoding_never_waits_for_the_gpu(shape):
    with FakeTensorMode(), torch.inference_mode():  # a fake tensor that is asked for its number raises
        with torch.device("cuda"):
            model = build_model(ModelConfig(**SHAPES[shape]))
        model.set_precision(torch.bfloat16)
        runner = TorchRunner.__new__(TorchRunner)
        runner.model, runner.vocab_size, runner.device = model, 90, torch.device("cuda")
        runner.cache = KVCache(model.config, 9, "cuda", torch.bfloat16)
        table, draws = torch.zeros(4, FIXED + 1 + 2, dtype=torch.long), torch.zeros(4, 5, dtype=torch.float64)
        for candidates in (None, 0, 16, 90):
            logits, tokens = runner._decode(table.cuda(), draws.cuda(), candidates)
            assert (logits.shape, logits.dtype, logits.device.type) == ((4, 90), torch.float32, "cuda")
            assert (tokens.shape, tokens.dtype, tokens.device.type) == ((4,), torch.int64, "cuda")
        with pytest.raises(Exception, match="_local_scalar_dense"):  # the test can fail: this one asks
            logits.max().item()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no cuda device")
@pytest.mark.parametrize("shape", SHAPES)
def test_recorded_on_a_gpu_a_text_is_that_of_plain_steps(shape):
    model = model_of(SHAPES[shape]).cuda()
    for draw in DRAWS:
        texts = []
        for kernels in (False, True):
            runner = TorchRunner(model, 90, ROWS, CONTEXT, kernels=kernels)
            text = [4, 5, 6]
            _, tokens = runner.forward([Chunk(text, 0, -1, range(4), draw)])
            for _ in range(CONTEXT - 4):
                text = [*text, *tokens]
                _, tokens = runner.forward([Chunk(text[-1:], len(text) - 1, text[-2], range(4), draw)])
            assert runner.graphs is not None if kernels else runner.graphs is None
            assert runner.graphs is None or runner.graphs.works
            texts.append(text)
        assert texts[0] == texts[1]
