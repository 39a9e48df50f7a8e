"""The verbs that carry models to other programs and from them: export, import."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from nutshell.cli.arguments import parse_arguments


def export(arguments: list[str]) -> Any:
    """Write a model for other programs: transformers, vLLM, llama.cpp, Ollama, nanochat, ONNX Runtime, any browser."""
    options = parse_arguments(
        "export", arguments, export.__doc__,
        _format={"choices": ["hf", "gguf", "nanochat", "onnx", "html"],
                 "help": "hf: a folder for transformers and vLLM; gguf: a file for llama.cpp and Ollama; "
                         "nanochat: a base directory of its; onnx: the forward pass; html: a page that answers offline"},
        _model={"type": os.path.expanduser, "help": "run folder or model folder"},
        _out={"type": os.path.expanduser, "help": "folder to make; of html the file"},
        type={"help": "weights of gguf: f32, f16, q8_0 (default) or q4_0"},
        nanochat={"action": "store_true", "help": "hf: speed as transformers' NanoChatForCausalLM, where its switches allow it"},
    )  # fmt: skip
    from nutshell.checkpoint import find
    from nutshell.interop.gguf import export_gguf
    from nutshell.interop.hf_export import export_hf
    from nutshell.interop.html import export_html
    from nutshell.interop.nanochat import export_nanochat
    from nutshell.interop.onnx import export_onnx

    for given, name, of in ((options.type, "--type", "gguf"), (options.nanochat, "--nanochat", "hf")):
        if given and options.format != of:
            raise ValueError(f"{name} is for {of}, and this is {options.format}. Leave it out.")
    model, out = find(options.model), Path(options.out)
    if options.format == "gguf":
        written = export_gguf(model, out, options.type or "q8_0")
    elif options.format == "onnx":
        written = export_onnx(model, out)
    elif options.format == "nanochat":
        written = export_nanochat(model, out)
    elif options.format == "html":
        written = export_html(model, out)
    else:
        written = export_hf(model, out, nanochat=options.nanochat)
    size = sum(file.stat().st_size for file in (out, *out.rglob("*")) if file.is_file())
    print(f"{written}  {size / 1e6:.1f} MB")
    return {"path": str(written), "bytes": size}


def import_(arguments: list[str]) -> Any:
    """Make a model folder of another program's: transformers (GPT-2, Qwen3, Llama, NanoChat), nanochat."""
    options = parse_arguments(
        "import", arguments, import_.__doc__,
        _format={
            "choices": ["hf", "nanochat"],
            "help": "hf: a folder of transformers (GPT-2, Qwen3, Llama, NanoChat, or exported here); nanochat: its checkpoint",
        },
        _folder={"type": os.path.expanduser, "help": "folder to read"},
        out={"required": True, "type": os.path.expanduser, "help": "model folder to make"},
        chat={"action": "store_true", "help": "hf: add the special tokens of chats, for `nutshell sft --init-from`"},
    )  # fmt: skip
    from nutshell.interop.hf_import import import_hf
    from nutshell.interop.nanochat import import_nanochat

    out = Path(options.out)
    folder = Path(options.folder)
    model = import_nanochat(folder, out) if options.format == "nanochat" else import_hf(folder, out, chat=options.chat)
    parameters = sum(p.numel() for p in model.parameters())
    print(f"{out}  {model.config.architecture}, {parameters / 1e6:.1f}M parameters, {model.config.vocab_size} tokens")
    return {"path": str(out), "architecture": model.config.architecture, "parameters": parameters}
