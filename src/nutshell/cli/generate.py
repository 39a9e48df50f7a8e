"""The verb `generate`: a base model goes on with a text."""

from __future__ import annotations

from typing import Any

from nutshell.cli.arguments import parse_arguments, read_text, typed
from nutshell.cli.model import DEVICE, MODEL, open_model


def generate(arguments: list[str]) -> Any:
    """Continue a text, as a base model does: no chat, no tools."""
    takes_value = [False, *(a in ("-p", "--prompt", "--file") for a in arguments)]
    arguments = ["--file=-" if a == "-" and not takes_value[i] else a for i, a in enumerate(arguments)]
    options = parse_arguments(
        "generate", arguments, generate.__doc__, _model=MODEL,
        prompt={"short": ["-p"], "type": typed, "default": None, "help": "the text; without any the model begins a document"},
        file={"default": None, "help": "a UTF-8 file that holds the text; - (or just -) is standard input"},
        samples={"type": int, "default": 1, "help": "how many continuations"},
        max_tokens={"type": int, "default": 200, "help": "longest continuation"},
        temperature={"type": float, "default": 0.8, "help": "0 always takes the most likely token"},
        top_k={"type": int, "default": 200, "help": "draw among this many tokens; 0 is off"},
        top_p={"type": float, "default": 1.0, "help": "draw among the tokens that together reach this probability; 1 is off"},
        seed={"type": int, "default": None, "help": "the same seed draws the same texts"}, device=DEVICE,
    )  # fmt: skip
    if options.prompt is not None and options.file is not None:
        raise ValueError("the text is given twice. Accepted: one of -p TEXT, --file FILE and - (standard input).")
    if options.samples < 1:
        raise ValueError(f"--samples is {options.samples}; accepted: 1 or more.")
    text = options.prompt or "" if options.file is None else read_text(options.file).removeprefix("\ufeff")
    from nutshell.infer.engine import Engine
    from nutshell.infer.sampling import Sampling

    settings = {name: getattr(options, name) for name in ("max_tokens", "temperature", "top_k", "top_p", "seed")}
    model, tok = open_model(options.model, options.device)
    prompt = [tok.bos_id, *tok.encode(text)]
    replies = Engine(model, tok).sample([prompt], options.samples, Sampling(**settings), tools=False)[0]
    print(f"\n{'-' * 16}\n".join(text + reply.text for reply in replies))
    return {"prompt": text, "completions": [{"text": r.text, "tokens": len(r.ids), "finish": r.finish} for r in replies]}
