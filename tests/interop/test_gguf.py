"""GGUF files: quantisers against a loop, the file in the `gguf` package and in llama.cpp, the Modelfile's template in Go."""

import json
import shutil
import struct
import subprocess
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from decoding import Rows
from hypothesis import given
from hypothesis import strategies as st
from small_models import CHATS, greedy, save_folder

import nutshell
from nutshell import checkpoint
from nutshell.interop.gguf import TEMPLATE, export_gguf
from nutshell.interop.quantize import q4_0, q8_0
from nutshell.tokenizer.chat import render_prompt

blocks = st.lists(st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0), min_size=32, max_size=32)


@given(blocks)
def test_a_block_of_8_bits_is_its_scale_times_the_nearest_steps(block):
    content = q8_0(np.array(block, np.float32))[0]
    scale, steps = content[:2].view(np.float16)[0], content[2:].view(np.int8)
    largest = max(map(abs, block))
    assert scale == np.float16(np.float32(largest) / np.float32(127))
    assert all(abs(step * largest / 127 - weight) <= largest / 127 * 0.5001 for step, weight in zip(steps, block, strict=True))
    assert not q8_0(np.full(32, 1e-40, np.float32))[0].any()


@given(blocks)
def test_a_block_of_4_bits_makes_its_largest_weight_exact(block):
    content = q4_0(np.array(block, np.float32))[0]
    scale = content[:2].view(np.float16)[0]
    steps = [int(byte & 15) - 8 for byte in content[2:]] + [int(byte >> 4) - 8 for byte in content[2:]]
    largest = block[int(np.abs(block).argmax())]
    assert scale == np.float16(np.float32(largest) / np.float32(-8))
    for step, weight in zip(steps, block, strict=True):
        nearest = min(range(-8, 8), key=lambda q: abs(q * largest / -8 - weight))
        assert abs(step * largest / -8 - weight) <= abs(nearest * largest / -8 - weight) + 1e-5 * abs(largest)


def test_both_quantisers_give_the_bits_of_the_gguf_package():
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    weights = np.random.default_rng(0).standard_normal((40, 96), np.float32)
    weights[3, 32:64] = 0
    for ours, kind in ((q8_0, gguf.GGMLQuantizationType.Q8_0), (q4_0, gguf.GGMLQuantizationType.Q4_0)):
        assert np.array_equal(ours(weights).ravel(), gguf.quants.quantize(weights, kind).ravel())


@pytest.mark.parametrize(("kind", "error"), [("f32", 0), ("f16", 1e-3), ("q8_0", 0.01), ("q4_0", 0.13)])
@pytest.mark.parametrize("changes", [{}, {"tied": True, "mlp_width": 80}], ids=["untied", "tied, rows of no whole blocks"])
def test_the_gguf_package_reads_all_of_it(tmp_path, kind, error, changes):
    gguf = pytest.importorskip("gguf", reason="the gguf package is not installed")
    folder = save_folder(tmp_path / "model", **changes)
    reader = gguf.GGUFReader(export_gguf(folder, tmp_path / "out", kind))
    said = {name: field.contents() for name, field in reader.fields.items()}
    model, tok = nutshell.load(folder)
    assert said["general.architecture"] == "qwen3"
    assert said["qwen3.feed_forward_length"] == model.config.mlp_width
    assert len(said["tokenizer.ggml.tokens"]) == len(said["tokenizer.ggml.token_type"]) == tok.vocab_size
    assert said["tokenizer.ggml.tokens"][tok.bos_id] == "<|bos|>"
    assert said["tokenizer.ggml.eos_token_id"] == tok.special_id("<|assistant_end|>")
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    weights = model.state_dict()
    assert len(tensors) == len(weights) == (24 if changes else 25)
    for ours, theirs in (
        ("model.embed_tokens", "token_embd"), ("model.layers.1.mlp.down_proj", "blk.1.ffn_down"), ("model.norm", "output_norm"),
        ("model.layers.0.self_attn.k_norm", "blk.0.attn_k_norm"), ("model.layers.1.self_attn.q_proj", "blk.1.attn_q"),
    ):  # fmt: skip
        expected = weights[f"{ours}.weight"].numpy()
        assert tensors[f"{theirs}.weight"].shape == expected.shape
        assert np.abs(tensors[f"{theirs}.weight"] - expected).max() <= error * np.abs(expected).max()


@pytest.mark.parametrize("kind", ["f32", "q8_0", "q4_0"])
@pytest.mark.parametrize("changes", [{}, {"architecture": "gpt2", "pattern": "gpt2"}], ids=["portable", "gpt2"])
def test_llama_cpp_answers_the_same(tmp_path, changes, kind):
    """Same ids of text, same logits as far as the type goes, and for f32 the same greedy text, with its own chat template."""
    llama_cpp = pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    folder = save_folder(tmp_path / "model", **changes)
    file = export_gguf(folder, tmp_path / "out", kind)
    exact = {"type_k": llama_cpp.GGML_TYPE_F32, "type_v": llama_cpp.GGML_TYPE_F32}  # its cache is fp16 otherwise
    peer = llama_cpp.Llama(str(file), n_ctx=256, logits_all=True, n_threads=1, verbose=False, **exact)
    model, tok = nutshell.load(folder)
    text = "What is 12 + 345? It's naïve, 日本語\n\n  so   \n x"
    ids = peer.tokenize(text.encode(), add_bos=True)
    assert ids == [tok.bos_id, *tok.encode(text)]
    peer.eval(ids)
    with torch.no_grad():
        ours = model(torch.tensor([ids]))[0]
    error = (torch.tensor(np.array(peer.scores[: len(ids)])) - ours).abs().max() / ours.std()
    gelu = 4e-3 if changes else 0  # ggml looks it up in a table of fp16
    assert error < {"f32": 1e-4, "q8_0": 0.2, "q4_0": 3}[kind] + gelu
    if kind == "f32":
        form = llama_cpp.llama_chat_format.Jinja2ChatFormatter(peer.metadata["tokenizer.chat_template"], "", "<|bos|>")
        for chat in CHATS:
            prompt = peer.tokenize(form(messages=chat).prompt.encode(), add_bos=False, special=True)
            assert prompt == render_prompt(chat, tok)
            reply = list(islice(peer.generate(prompt, temp=0, repeat_penalty=1), 24))
            assert reply == greedy(model, prompt, 24) or (gelu and nearly_greedy(model, prompt, reply, 3 * gelu))


def nearly_greedy(model, prompt, reply, tie):
    """Whether each token of a reply is the most likely one, or within `tie` logits of it."""
    logits = Rows(model, 1).feed(torch.tensor([prompt + reply]))[0, len(prompt) - 1 : -1]
    return (logits.max(1).values - logits.gather(1, torch.tensor(reply).unsqueeze(1)).squeeze(1)).max() < tie


@pytest.mark.slow
def test_the_template_for_ollama_is_the_chat_layout(portable, tmp_path):
    """Rendered by Go's text/template, which Ollama uses; the start token is the runner's."""
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    (tmp_path / "main.go").write_text(GO)
    (tmp_path / "chats.json").write_text(json.dumps({"template": TEMPLATE, "chats": CHATS}))
    run = subprocess.run(["go", "run", "main.go"], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=True)
    tok = nutshell.Tokenizer.load(portable)
    assert json.loads(run.stdout) == [tok.decode(render_prompt(chat, tok)[1:], special=True) for chat in CHATS]


GO = """
package main

import ("encoding/json"; "os"; "strings"; "text/template")

type Message struct{ Role, Content string }

func main() {
	content, _ := os.ReadFile("chats.json")
	var given struct{ Template string; Chats [][]Message }
	if err := json.Unmarshal(content, &given); err != nil { panic(err) }
	rendered := []string{}
	for _, chat := range given.Chats {
		system := []string{}
		for _, message := range chat { if message.Role == "system" { system = append(system, message.Content) } }
		var out strings.Builder
		values := map[string]any{"System": strings.Join(system, "\\n\\n"), "Messages": chat}
		if err := template.Must(template.New("").Parse(given.Template)).Execute(&out, values); err != nil { panic(err) }
		rendered = append(rendered, out.String())
	}
	json.NewEncoder(os.Stdout).Encode(rendered)
}
"""


def test_the_command_writes_file_and_modelfile(command, portable, tmp_path):
    code, out, _ = command("export", "gguf", portable, tmp_path / "out", "--type", "q4_0", "--json")
    written = tmp_path / "out" / "model-q4_0.gguf"
    assert code == 0
    assert json.loads(out)["path"] == str(written)
    lines = (tmp_path / "out" / "Modelfile").read_text().splitlines()
    assert lines[0] == "FROM ./model-q4_0.gguf"
    assert lines[-2:] == ['PARAMETER stop "<|assistant_end|>"', 'PARAMETER stop "<|user_start|>"']


def test_a_base_model_is_named_for_its_run_and_continues_text_in_ollama(portable, tmp_path):
    model, tok = nutshell.load(portable)
    meta = {"stage": "pretrain", "step": 3}
    checkpoint.save_model_folder(tmp_path / "owl" / "pretrain" / "step-000003", model, tok, meta=meta)
    written = export_gguf(tmp_path / "owl" / "pretrain" / "step-000003", tmp_path / "out", "f32")
    assert struct.pack("<IQ", 8, 3) + b"owl" in written.read_bytes()[:500]
    assert (tmp_path / "out" / "Modelfile").read_text().endswith('TEMPLATE """{{ .Prompt }}"""\n')


def test_what_gguf_cannot_hold_is_refused(refused, portable, speed, tmp_path):
    foreign = save_folder(tmp_path / "foreign", pattern="nanochat")
    Path(tmp_path / "there").mkdir()
    out = tmp_path / "out"
    refused(tmp_path, "is of the architecture speed", "export", "gguf", speed, out)
    refused(tmp_path, "--type is 'q5_k'. Accepted: f32, f16, q8_0, q4_0.", "export", "gguf", portable, out, "--type", "q5_k")
    refused(tmp_path, "Accepted: qwen2, gpt2, SmolLM's,", "export", "gguf", foreign, out)
    refused(tmp_path, "--nanochat is for hf, and this is gguf", "export", "gguf", portable, out, "--nanochat")
    refused(tmp_path, "--type is for gguf, and this is hf", "export", "hf", portable, out, "--type", "f16")
    refused(tmp_path, "there exists", "export", "gguf", portable, tmp_path / "there")
    refused(tmp_path, "does not exist", "export", "gguf", tmp_path / "missing", out)
