"""The `portable` model against transformers' Qwen3, decoding against whole rows, and its loss against float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from decoding import Rows
from portable_models import SHAPES, portable, portable_config, row
from torch.utils.flop_counter import FlopCounterMode

from nutshell.model.build import build_model
from nutshell.model.config_file import config_from_json, config_to_json
from nutshell.model.flops import flops_per_token, matrix_parameters, parameters_by_group


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_and_gradients_equal_those_of_transformers(changes):
    transformers = pytest.importorskip("transformers", minversion="4.51")
    model = portable(**changes)
    config = transformers.Qwen3Config(**config_to_json(model.config, 1), attn_implementation="eager")
    theirs = transformers.Qwen3ForCausalLM(config)
    missing, unexpected = theirs.load_state_dict(model.state_dict(), strict=False)
    assert (missing, unexpected) == (["lm_head.weight"] if model.config.tied else [], [])
    theirs.tie_weights()
    ids = torch.stack([row(40, 3), row(40, 4)])
    targets = torch.cat([ids[:, 1:], torch.full((2, 1), -100)], dim=1)
    logits = theirs(ids).logits
    assert (model(ids) - logits).abs().max() < 1e-4
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    model(ids, targets.clamp(min=-1)).backward()
    expected = dict(theirs.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name].grad, atol=2e-6, rtol=2e-3, msg=name)


def test_documents_of_a_packed_row_do_not_see_each_other():
    model = portable()
    first, second = row(9, 5), row(12, 6)
    with torch.no_grad():
        packed = model(torch.cat([first, second])[None])[0]
        assert torch.allclose(packed[:9], model(first[None])[0], atol=1e-4)
        assert torch.allclose(packed[9:], model(second[None])[0], atol=1e-4)


@pytest.mark.parametrize("changes", SHAPES)
def test_decoding_one_token_at_a_time_equals_the_whole_row(changes):
    model = portable(**changes)
    ids = row(50)
    with torch.no_grad():
        whole = model(ids[None])[0]
    rows, one = Rows(model, 3), slice(1, 2)
    steps = [rows.feed(ids[None, :5], one)[0]]
    steps += [rows.feed(ids[None, t : t + 1], one)[0] for t in range(5, 50)]
    assert torch.allclose(torch.cat(steps), whole, atol=1e-4)


def test_bfloat16_is_the_same_model_to_its_precision():
    model, ids = portable(), row(40)[None]
    with torch.no_grad():
        exact = model(ids).log_softmax(-1)
        rough = model.set_precision(torch.bfloat16)(ids)
    assert rough.dtype == torch.float32
    assert (rough.log_softmax(-1) - exact).abs().mean() < 0.05


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("width", [64, 1024])
def test_the_first_loss_is_the_logarithm_of_the_vocabulary(tied, width):
    model = build_model(portable_config(vocab_size=2048, depth=1, width=width, tied=tied))
    ids = torch.randint(1, 2048, (4, 64))
    assert model(ids, ids.roll(1)).item() == pytest.approx(math.log(2048), rel=0.02)


@pytest.mark.parametrize("changes", SHAPES)
def test_parameters_and_flops_are_those_that_torch_counts(changes):
    config = portable_config(**changes)
    model = build_model(config)
    assert sum(parameters_by_group(config).values()) == sum(p.numel() for p in model.parameters())
    T = config.context
    ids = torch.randint(1, config.vocab_size, (2, T))
    with FlopCounterMode(display=False) as counter:
        model(ids, ids.roll(1)).backward()
    counted = counter.get_flop_counts()["Global"]
    matrices = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = counted.get(torch.ops.aten.bmm)
    assert sum(counted.values()) == matrices + attention
    assert matrices == 6 * matrix_parameters(config) * ids.numel()
    causal = attention * (T + 1) / (2 * T)  # a block is computed whole, half of it is masked
    assert flops_per_token(config, T) == pytest.approx((matrices + causal) / ids.numel(), rel=1e-9)


@pytest.mark.parametrize("changes", SHAPES)
def test_config_json_says_the_whole_shape(changes):
    config = portable_config(**changes)
    assert config_from_json(config_to_json(config, None)) == config
    speed = build_model(portable_config(architecture="speed", mlp_width=0, window_pattern="SL")).config
    assert config_from_json(config_to_json(speed, None)) == speed


def test_a_config_of_transformers_is_understood():
    transformers = pytest.importorskip("transformers", minversion="4.51")
    config = portable_config(rotary_base=1e6, tied=True)
    theirs = transformers.Qwen3Config(**config_to_json(config, 1)).to_dict()
    assert config_from_json(theirs) == config
    assert config_from_json({**theirs, "bos_token_id": None}).bos_id == -1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attention_bias": True}, "attention_bias is True; accepted: False"),
        ({"rms_norm_eps": 0}, "norm_eps is 0; accepted: a number between 0 and 1"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling is"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}, "rope_type is 'yarn'; accepted: 'default'"),
        ({"use_sliding_window": True}, "use_sliding_window is True"),
        ({"num_key_value_heads": 3}, "kv_heads is 3, which does not divide heads = 4"),
        ({"intermediate_size": 0}, "mlp_width is 0; portable accepts a whole number of at least 1"),
    ],
)
def test_another_kind_of_qwen3_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        config_from_json({**config_to_json(portable_config(), 1), **changes})


def test_a_config_without_a_size_is_refused():
    values = config_to_json(portable_config(), 1)
    del values["head_dim"], values["rope_theta"]
    with pytest.raises(ValueError, match="head_dim, rope_theta missing"):
        config_from_json(values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "llama"}, "architecture is 'llama'; accepted: speed, portable"),
        ({"window_pattern": "SSSL"}, "window_pattern is 'SSSL'; portable has no windows and accepts only L"),
        ({"mlp_width": 0}, "mlp_width is 0; portable accepts a whole number"),
        ({"rotary_base": 0.0}, "rotary_base is 0.0; accepted: a number above 0"),
        ({"architecture": "speed", "mlp_width": 0, "tied": True}, "tied is True; speed has neither"),
    ],
)
def test_impossible_shapes_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        portable_config(**changes)
