"""ONNX files in ONNX Runtime: the same logits for any number of rows and any length, in every architecture."""

import importlib.util
import json

import pytest
import torch
from small_models import save_folder

import nutshell
from nutshell.interop import onnx
from nutshell.tokenizer import Tokenizer

KINDS = {
    "portable": {},
    "llama, tied": {"qk_norm": False, "tied": True},
    "speed": {"architecture": "speed", "depth": 4, "window_pattern": "SL", "context": 64},
    "gpt2": {"architecture": "gpt2"},
}


@pytest.fixture
def runtime():
    for package in ("onnx", "onnxscript"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
    return pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the exporter about itself
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("beside", [False, True], ids=["one file", "weights beside it"])
def test_onnx_runtime_gives_the_same_logits(runtime, command, monkeypatch, tmp_path, kind, beside):
    if beside:
        monkeypatch.setattr(onnx, "LARGEST_FILE", 0)
    folder = save_folder(tmp_path / "model", **KINDS[kind])
    code, out, err = command("export", "onnx", folder, tmp_path / "out", "--json")
    assert code == 0, err
    assert len(err.splitlines()) == 1, "what was written, and nothing of the exporter's"
    file = json.loads(out)["path"]
    session = runtime.InferenceSession(file, providers=["CPUExecutionProvider"])
    model, tok = nutshell.load(folder)
    assert Tokenizer.load(tmp_path / "out").fingerprint == tok.fingerprint
    assert len(list((tmp_path / "out").iterdir())) == 4 + beside
    for rows, length in ((1, 1), (3, 17), (2, model.config.context)):
        ids = torch.randint(0, tok.vocab_size, (rows, length), generator=torch.Generator().manual_seed(rows))
        ids[0, length // 2] = tok.bos_id  # another document begins
        with torch.no_grad():
            expected = model(ids)
        (theirs,) = session.run(None, {"ids": ids.numpy()})
        assert (torch.from_numpy(theirs) - expected).abs().max() < 1e-4


def test_without_the_exporters_packages_it_says_what_to_install(refused, portable, monkeypatch, tmp_path):
    monkeypatch.setattr(onnx, "find_spec", lambda name: None)
    refused(tmp_path, "export onnx needs onnx and onnxscript: pip install", "export", "onnx", portable, tmp_path / "out")
