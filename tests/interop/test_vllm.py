"""vLLM serves what `export hf` writes of portable: the same prompt of a chat and the same greedy reply."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec

import pytest
from small_models import CHATS, greedy, save_folder

import nutshell
from nutshell.interop.hf_export import export_hf
from nutshell.tokenizer.chat import render_prompt

ASK = """
import json, sys
from vllm import LLM, SamplingParams

def main():
    folder, chats = json.loads(sys.argv[1])
    model = LLM(model=folder, dtype="float32", enforce_eager=True, max_model_len=256, max_num_seqs=4)
    replies = model.chat(chats, SamplingParams(temperature=0, max_tokens=16, ignore_eos=True), use_tqdm=False)
    print("\\n" + json.dumps([[list(r.prompt_token_ids), list(r.outputs[0].token_ids)] for r in replies]))

if __name__ == "__main__":
    main()
"""
SETTINGS = {"VLLM_NO_USAGE_STATS": "1", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}


@pytest.mark.slow
@pytest.mark.parametrize("changes", [{}, {"tied": True}, {"qk_norm": False, "norm_eps": 1e-5}], ids=["qwen3", "tied", "llama"])
def test_vllm_answers_the_same(tmp_path, changes):
    if find_spec("vllm") is None:
        pytest.skip("vllm is not installed")
    folder = save_folder(tmp_path / "model", head_dim=64, **changes)  # its CPU kernel has no heads of 16 channels
    (tmp_path / "ask.py").write_text(ASK)
    command = [sys.executable, "ask.py", json.dumps([str(export_hf(folder, tmp_path / "out")), CHATS])]
    environment = {**os.environ, **SETTINGS}
    run = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-3000:]
    model, tok = nutshell.load(folder)
    prompts = [render_prompt(chat, tok) for chat in CHATS]
    answers = next(line for line in reversed(run.stdout.splitlines()) if line.startswith("[["))
    assert json.loads(answers) == [[prompt, greedy(model, prompt, 16)] for prompt in prompts]
