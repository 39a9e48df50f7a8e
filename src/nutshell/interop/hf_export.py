"""A folder for transformers and its hub: weights, tokenizer, how to sample, and a model card.

transformers has `portable` as `Qwen3ForCausalLM` and `gpt2` as `GPT2LMHeadModel`. It does not have `speed`: that folder brings
its own code, `modeling_nutshell.py`, and is opened with `trust_remote_code=True`, unless `hf_nanochat.py` can express it as
NanoChat.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from nutshell.checkpoint import load_model
from nutshell.files import read_record, write_json
from nutshell.interop.gpt2 import config_to_gpt2, weights_to_gpt2
from nutshell.interop.hf_nanochat import config_to_nanochat, weights_to_nanochat
from nutshell.interop.output import new_folder
from nutshell.model.decoder import Decoder
from nutshell.tokenizer import Tokenizer

CODE = "modeling_nutshell.py"
OWN_CODE = {
    "model_type": "nutshell",
    "architectures": ["NutshellForCausalLM"],
    "auto_map": {
        "AutoConfig": "modeling_nutshell.NutshellConfig",
        "AutoModelForCausalLM": "modeling_nutshell.NutshellForCausalLM",
    },
}
"""Fields of `config.json` by which transformers finds the code of an architecture that it does not have."""
TEMPERATURE, TOP_K = 0.4, 50
"""How exported models sample unless told otherwise."""


def export_hf(model: Path, out: Path, *, nanochat: bool = False) -> Path:
    """Write the folder `out`, which `from_pretrained` opens; with `nanochat` a `speed` model becomes `NanoChatForCausalLM`.

    ValueError if the model folder is damaged, or if the model has something that the class lacks.
    """
    decoder, tok, manifest = load_model(model)
    shape, weights, own_code = decoder.config, None, False
    if nanochat:
        config, weights = config_to_nanochat(shape), weights_to_nanochat(decoder.state_dict())
    elif shape.architecture == "gpt2":
        config, weights = config_to_gpt2(shape), weights_to_gpt2(decoder.state_dict(), shape.depth)
    else:
        config, own_code = json.loads((model / "config.json").read_text(encoding="utf-8")), shape.architecture == "speed"
    with new_folder(out) as folder:
        for name in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copyfile(model / name, folder / name)
        if weights is None:
            shutil.copyfile(model / "model.safetensors", folder / "model.safetensors")
        else:
            save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        if own_code:
            config |= OWN_CODE
            shutil.copyfile(Path(__file__).parent / CODE, folder / CODE)
        write_json(folder / "config.json", {**config, "dtype": "float32"})
        write_json(folder / "generation_config.json", generation_config(tok))
        (folder / "README.md").write_text(model_card(decoder, tok, manifest["meta"], model, own_code), encoding="utf-8")
    return out


def generation_config(tok: Tokenizer) -> dict[str, Any]:
    """Settings that `generate` uses unless told otherwise."""
    ids = {"bos_token_id": tok.bos_id, "eos_token_id": tok.end_ids, "pad_token_id": tok.bos_id}
    return {**ids, "do_sample": True, "temperature": TEMPERATURE, "top_k": TOP_K}


def model_card(decoder: Decoder, tok: Tokenizer, meta: dict[str, Any], model: Path, own_code: bool) -> str:
    """`README.md`: what the model is, how to open it, and what its run measured."""
    code = ", trust_remote_code=True" if own_code else ""
    name, facts = card_facts(decoder, tok, meta, model)
    use = f"""\
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

folder = "."  # or where this folder lies
model = AutoModelForCausalLM.from_pretrained(folder{code})
tokenizer = AutoTokenizer.from_pretrained(folder{code})
"""
    if "<|assistant_end|>" in tok.special_tokens:
        use += """\
chat = [{"role": "user", "content": "Why is the sky blue?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)["input_ids"]
"""
    else:
        use += f'ids = torch.tensor([[{tok.bos_id}, *tokenizer("Once upon a time")["input_ids"]]])\n'
    use += """\
reply = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=64)
print(tokenizer.decode(reply[0, ids.size(1) :], skip_special_tokens=True))
"""
    return f"""\
---
library_name: transformers
pipeline_tag: text-generation
tags: [nutshell]
---

# {name}

{facts}
Text for it begins with the token {tok.bos_id}. The weights are fp32.

```python
{use}```
{results(model)}"""


def card_facts(decoder: Decoder, tok: Tokenizer, meta: dict[str, Any], model: Path) -> tuple[str, str]:
    """The model's name, and one sentence about what it is."""
    config, staged = decoder.config, {"stage", "step"} <= set(meta)
    stage = f", {meta['stage']} step {meta['step']}" if staged else ""
    parameters = sum(p.numel() for p in decoder.parameters())
    kind = "characters" if tok.kind == "char" else "byte-level BPE"
    folder = model.resolve()
    return folder.parent.parent.name if staged else folder.name, (
        f"A language model trained with nutshell{stage}: {parameters:,} parameters, architecture {config.architecture},\n"
        f"depth {config.depth}, width {config.width}, a context of {config.context} tokens, {tok.vocab_size} tokens of {kind}."
    )


def results(model: Path) -> str:
    """The table of metrics from the report of the model's run; empty without one."""
    report = model.resolve().parent.parent / "report.json"
    stages = read_record(report, "Write it again: nutshell report.", "stages").get("stages", {})
    metrics = dict.fromkeys(metric for values in stages.values() for metric in values)
    if not metrics:
        return ""
    lines = ["\n## Results\n", f"| metric | {' | '.join(stages)} |", "|---|" + "---:|" * len(stages)]
    for metric in metrics:
        lines.append(f"| {metric} | {' | '.join(_number(values.get(metric)) for values in stages.values())} |")
    return "\n".join(lines) + "\n"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
