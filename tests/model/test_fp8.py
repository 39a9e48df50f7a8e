"""fp8 products by emulation: formats, scales, gradients, the cache of weights, and a model that learns."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.model import fp8
from nutshell.model.config import ModelConfig
from nutshell.model.fp8 import Fp8Weight, quantise, quantise_weights, use_fp8
from nutshell.model.gpt import GPT
from nutshell.plan.recipe import OptimizerConfig
from nutshell.plan.schedule import Schedule
from nutshell.runtime import Runtime
from nutshell.train.optim import MuonAdamW, group_parameters
from nutshell.train.prefetch import MicroBatch
from nutshell.train.step import LossScaler, train_step

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
CONFIG = ModelConfig(vocab_size=64, depth=2, width=32, heads=2, kv_heads=1, head_dim=16, context=32)
# Half a unit in the last of the format's 3 or 2 bits after the point; below, steps are even.
RELATIVE = {E4M3: 2**-4, E5M2: 2**-3}
SUBNORMAL = {E4M3: 2**-10, E5M2: 2**-17}


def normal(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
@given(magnitude=st.floats(-28, 37), spread=st.floats(0, 8), seed=st.integers(0, 99))
def test_every_value_is_within_half_a_unit(dtype, magnitude, spread, seed):
    """From 1e-28 to 1e37, the ends of bf16, with values spread over as many decades as may be."""
    x = normal(64, seed=seed) * 10 ** (magnitude - spread * torch.rand(64, generator=torch.Generator().manual_seed(seed + 1)))
    x = x.clamp(-3e38, 3e38)
    values, unit = quantise(x, dtype)
    error = (values.double() * unit.double() - x.double()).abs()
    floor = SUBNORMAL[dtype] * float(unit)
    assert (error <= (RELATIVE[dtype] * x.double().abs()).clamp(min=floor) * 1.001).all()
    assert float(values.float().abs().max()) == torch.finfo(dtype).max


@pytest.mark.parametrize("dtype", [E4M3, E5M2])
def test_zeros_stay_zeros_and_what_is_not_finite_stays_so(dtype):
    values, unit = quantise(torch.zeros(4, 4), dtype)
    assert not values.float().any()
    assert 0 < float(unit) < 1e-30
    for bad in (math.nan, math.inf, -math.inf):
        x = normal(4, 4)
        x[1, 2] = bad
        values, unit = quantise(x, dtype)
        assert not torch.isfinite(values.float() * unit).any(), bad


def products(tokens=48, inputs=32, outputs=(16, 32), seed=0, scale=1.0):
    x = normal(2, tokens // 2, inputs, seed=seed, scale=scale).requires_grad_()
    weights = [torch.nn.Parameter(normal(n, inputs, seed=seed + i + 1)) for i, n in enumerate(outputs)]
    return x, weights


def test_gradients_are_those_of_the_quantised_numbers_exactly():
    """Apart from rounding, the formulas are exact: products of what `quantise` gives, in float64."""
    x, weights = products()
    y = Fp8Weight(weights)(x)
    grad = normal(*y.shape, seed=9)
    y.backward(grad)

    def value(tensor, dtype):
        q, unit = quantise(tensor, dtype)
        return q.double() * unit.double()

    flat, whole = value(x.detach().flatten(0, 1), E4M3), value(torch.cat(list(weights)).detach(), E4M3)
    g = value(grad.flatten(0, 1), E5M2)
    assert torch.allclose(y.double().flatten(0, 1), flat @ whole.t(), rtol=1e-5, atol=1e-4)
    assert torch.allclose(x.grad.double().flatten(0, 1), g @ whole, rtol=1e-5, atol=1e-4)
    assert torch.allclose(torch.cat([w.grad for w in weights]).double(), g.t() @ flat, rtol=1e-5, atol=1e-4)


def test_operands_lie_in_memory_as_the_kernel_wants_them(monkeypatch):
    seen = []
    plain = fp8.matmul

    def watched(a, b, *rest, **named):
        seen.append((a.is_contiguous(), b.t().is_contiguous(), a.dtype, b.dtype))
        return plain(a, b, *rest, **named)

    monkeypatch.setattr(fp8, "matmul", watched)
    x, weights = products()
    Fp8Weight(weights)(x).sum().backward()
    assert seen == [(True, True, E4M3, E4M3), (True, True, E5M2, E4M3), (True, True, E5M2, E4M3)]


def test_zero_gradients_and_a_nan_come_through():
    x, weights = products()
    y = Fp8Weight(weights)(x)
    y.backward(torch.zeros_like(y), retain_graph=True)
    assert not any(t.grad.any() for t in (x, *weights))
    bad = torch.ones_like(y)
    bad[0, 0, 0] = math.nan
    y.backward(bad)
    assert not any(torch.isfinite(t.grad).all() for t in (x, *weights))  # so that the step is skipped


def test_a_number_of_tokens_the_kernel_cannot_take_is_refused():
    x, weights = products()
    with pytest.raises(ValueError, match="multiple of 16 tokens; this one has 46"):
        Fp8Weight(weights)(x[:, :23])


def model(seed=0, **settings) -> GPT:
    torch.manual_seed(seed)
    return GPT(replace(CONFIG, **settings))


def test_the_blocks_linears_are_in_fp8_and_nothing_else():
    found = model().set_precision(torch.float32, fp8=True)
    holders = {name for name, module in found.named_modules() if getattr(module, "fp8", None)}
    assert holders == {f"blocks.{i}.{n}" for i in (0, 1) for n in ("attention.q", "attention.out", "mlp.up", "mlp.down")}
    attention = found.blocks[0].attention
    assert [id(w) for w in attention.q.fp8.weights] == [id(linear.weight) for linear in (attention.q, attention.k, attention.v)]
    assert set(found.state_dict()) == set(model().state_dict())  # a checkpoint does not know of it
    assert len(list(found.parameters())) == len(list(model().parameters()))
    use_fp8(found, False)
    assert not any(getattr(module, "fp8", None) for module in found.modules())


def test_only_training_is_in_fp8():
    exact, low = model(), model().set_precision(torch.float32, fp8=True)
    for m in (exact, low):
        for block in m.blocks:
            block.mlp.down.weight.data.copy_(normal(32, 128, seed=5))
    quantise_weights(low)
    ids = torch.randint(1, 64, (2, 32))
    assert not torch.equal(low(ids), exact(ids))
    with torch.no_grad():
        assert torch.equal(low(ids), exact(ids))
    assert not any(getattr(module, "fp8", None) for module in low.for_inference().modules())


def training(dtype, use_it, steps, accumulation=1, on_step=lambda model, step: None):
    m = model().set_precision(dtype, fp8=use_it)
    optimizer = MuonAdamW(group_parameters(m, OptimizerConfig(), width=32, tokens_per_step=4096), dtype)
    rows = torch.randint(1, 64, (4, 33), generator=torch.Generator().manual_seed(3))
    batch = MicroBatch(rows[:, :-1], rows[:, 1:], 128)
    runtime, losses = Runtime(device=torch.device("cpu"), dtype=dtype), []
    for step in range(steps):
        result = train_step(m, optimizer, [batch] * accumulation, Schedule().at(step, steps), runtime, LossScaler())
        losses.append(result.loss)
        on_step(m, step + 1)
    return losses


def test_inputs_are_quantised_once_and_weights_not_at_all_within_a_step(monkeypatch):
    counts = {}
    plain = fp8.quantise

    def counted(x, dtype):
        key = (tuple(x.shape), dtype)
        counts[key] = counts.get(key, 0) + 1
        return plain(x, dtype)

    m = model().set_precision(torch.float32, fp8=True)
    monkeypatch.setattr(fp8, "quantise", counted)
    ids = torch.randint(1, 64, (3, 32))  # 96 tokens
    passes = 3
    for _ in range(passes):
        m(ids, ids).backward()
    blocks = CONFIG.depth * passes
    assert counts == {
        ((96, 32), E4M3): 3 * blocks,  # what q, k and v read; what out reads; what up reads
        ((96, 128), E4M3): blocks,  # what down reads
        ((96, 64), E5M2): blocks,  # the gradient of q, k and v together: 32 + 16 + 16
        ((96, 32), E5M2): 2 * blocks,  # of out and down
        ((96, 128), E5M2): blocks,  # of up
    }


def test_weights_are_quantised_anew_after_the_optimizer(monkeypatch):
    def stale(m, step):
        holder = m.blocks[0].mlp.up.fp8
        now, unit = quantise(holder.weights[0].detach(), E4M3)
        seen.append(torch.equal(holder.by_rows.float() * holder.unit, now.float() * unit))
        quantise_weights(m)
        assert torch.equal(holder.by_rows.float() * holder.unit, now.float() * unit)
        assert torch.equal(holder.by_columns.float(), holder.by_rows.float())

    seen = []
    training(torch.float32, True, 3, on_step=stale)
    assert seen == [False] * 3  # changed by the optimizer since the step began; the next one begins by quantising

    calls = []
    plain = Fp8Weight.quantise
    monkeypatch.setattr(Fp8Weight, "quantise", lambda self: calls.append(self) or plain(self))
    training(torch.float32, True, 2, accumulation=4)
    assert len(calls) == 8 + 2 * 8  # eight groups: when they are made, and once in each of two steps


def test_a_model_learns_in_fp8_as_it_does_in_bf16():
    low, high = training(torch.bfloat16, True, 60), training(torch.bfloat16, False, 60)
    assert low != high
    assert high[-1] < high[0] - 1
    for a, b in zip(low, high, strict=True):
        assert a == pytest.approx(b, rel=0.03, abs=0.03)
