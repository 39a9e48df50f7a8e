"""Weights without torch: a folder answers as the model in torch does, bit by bit, and the commands do not import it."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nutshell.checkpoint import load, save_model_folder
from nutshell.eval.score import score
from nutshell.infer.blocks import Chunk
from nutshell.infer.native import NativeRunner, why_not
from nutshell.infer.weights import StoredModel, named_weights, to_bf16
from nutshell.machine import cpu_dtype
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig

SHAPE = {"depth": 3, "width": 32, "heads": 4, "kv_heads": 2, "head_dim": 8, "context": 64}
PORTABLE = {**SHAPE, "architecture": "portable", "mlp_width": 40, "window_pattern": "L"}
SHAPES = {"speed": SHAPE, "portable": PORTABLE, "portable, tied": {**PORTABLE, "tied": True}}


@given(st.lists(st.floats(width=32, allow_nan=False), min_size=1, max_size=20))
def test_bf16_is_rounded_as_torch_rounds(numbers):
    rounded = torch.tensor(numbers, dtype=torch.float32).to(torch.bfloat16)
    assert to_bf16(np.array(numbers, np.float32)).tolist() == rounded.view(torch.uint16).tolist()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "int8"])
def test_a_folder_gives_the_bits_of_its_model_in_torch(tok, tmp_path, shape, kind):
    model = build_model(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **SHAPES[shape]))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=torch.Generator().manual_seed(parameter.numel()))
    folder = save_model_folder(tmp_path / "model", model, tok)
    dtype = "float32" if kind == "float32" else "bfloat16"
    stored = StoredModel(folder, model.config, dtype)
    frozen = load(folder)[0].set_precision(getattr(torch, dtype)).for_inference()
    logits = []
    for source in (stored, frozen):
        assert why_not(source) is None
        runner = NativeRunner(source, tok.vocab_size, 1, 64, int8=kind == "int8")
        logits.append(runner.forward([Chunk([1, 290, 3, tok.bos_id, 5] * 8, 0, -1, range(4))])[0].copy())
    assert (logits[0] == logits[1]).all()
    assert logits[0].std() > 0.01


def test_weights_that_do_not_fit_their_shape_are_named(model, tok, tmp_path):
    folder = save_model_folder(tmp_path / "model", model, tok)
    deeper = ModelConfig(**{**model.config.to_dict(), "depth": 5})
    with pytest.raises(ValueError, match=r"model.safetensors has no '.*', which its config.json asks for"):
        NativeRunner(StoredModel(folder, deeper, "float32"), tok.vocab_size, 1, 64)
    half = {name: parameter.to(torch.float16) for name, parameter in model.state_dict().items()}
    from safetensors.torch import save_file

    save_file(half, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"has F16 for .*; accepted: F32"):
        StoredModel(folder, model.config, "float32").weights()


def test_native_code_asks_for_every_weight(model, tok):
    """A parameter that is not handed over would be one that training moves for nothing."""
    found = {name: parameter.detach() for name, parameter in model.named_parameters()}
    handed = {
        part.untyped_storage().data_ptr()
        for parts in named_weights(model.config, found, tok.vocab_size).values()
        for part in parts
        if isinstance(part, torch.Tensor)
    }
    assert handed == {parameter.untyped_storage().data_ptr() for parameter in found.values()}


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere torch is asked for accelerators")
@pytest.mark.parametrize("verb", [["chat", "-p", "hello", "--max-tokens", "3"], ["generate", "-p", "the", "--max-tokens", "3"]])
def test_talking_to_a_model_imports_no_torch(model, tok, tmp_path, verb):
    folder = save_model_folder(tmp_path / "model", model, tok)
    code = f"""
import sys
from nutshell.cli.main import main
try:
    main([{verb[0]!r}, {str(folder)!r}, "--device", "cpu", *{verb[1:]!r}])
except SystemExit as end:
    print(end.code, sorted({{"torch", "fastapi", "pyarrow", "pydantic"}} & set(sys.modules)))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith("0 []\n"), result.stdout + result.stderr


def test_scoring_a_prompt_imports_no_torch_and_gives_its_numbers(model, tok, tmp_path):
    folder, text = save_model_folder(tmp_path / "model", model, tok), "the cat sat on the mat"
    code = f"""
import sys
from nutshell.cli.model import open_model
from nutshell.infer.engine import Engine
from nutshell.serve.scoring import score_prompt
model, tok = open_model({str(folder)!r}, "cpu")
scored, following = score_prompt(Engine(model, tok), [tok.bos_id, *tok.encode({text!r})], 2)
print(sum(entry.logprob for entry in scored[1:]), "torch" in sys.modules)
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert result.stdout.endswith(" False\n"), result.stdout + result.stderr
    [expected] = score(model, [([tok.bos_id], tok.encode(text))])
    exact = cpu_dtype() == "float32"
    assert float(result.stdout.split()[0]) == pytest.approx(expected.logprob, rel=1e-4 if exact else 0.03)
