"""The verb `data`: the training text as shards, text from elsewhere, and what a file of conversations holds."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from nutshell.cli import hub
from nutshell.cli.arguments import parse_arguments
from nutshell.cli.recipe import read_recipe


def data(arguments: list[str]) -> Any:
    """Write the training text as shards: the primer, or your own files. `data download` fetches named text, `data import`
    takes any files, `data stats` looks at conversations."""
    if arguments and (verb := {"download": hub.download, "import": hub.import_data, "stats": stats}.get(arguments[0])):
        return verb(arguments[1:])
    recipe = read_recipe("data", arguments, data.__doc__)
    from nutshell.data.mixed import open_corpus
    from nutshell.run.lock import run_lock
    from nutshell.runtime import start_runtime
    from nutshell.train.prepare import check_data, prepare_data

    check_data(recipe)
    with run_lock(Path(recipe.out)):
        folder = prepare_data(recipe, start_runtime(device=recipe.device))
    shards = open_corpus(folder)
    documents = (text for block in range(shards.blocks("train")) for text in shards.read("train", block))
    # The beginning of one, with control characters spelled out.
    sample = "".join(c if c.isprintable() or c == "\n" else repr(c)[1:-1] for c in next(documents, "")[:300])
    blocks = f"{shards.blocks('train')} training blocks, {shards.blocks('val')} validation blocks"
    print(f"{folder}: {blocks}. A document begins:\n\n{sample}")
    return {"folder": str(folder), "train_blocks": shards.blocks("train"), "val_blocks": shards.blocks("val")}


def stats(arguments: list[str]) -> Any:
    """Say what data for fine-tuning holds: format, rows, turns, tokens, lengths against the context, duplicates, bad rows."""
    asked = parse_arguments(
        "data stats", arguments, stats.__doc__,
        _files={"nargs": "+", "help": "conversations in any format, or text: files or folders"},
        tokenizer={"help": "a tokenizer's folder, to count tokens"},
        model={"help": "a run or model folder: its tokenizer and context"},
        context={"type": int, "help": "longest row of training, in tokens (default: the model's)"},
    )  # fmt: skip
    from nutshell.data.conversations import find_conversations
    from nutshell.data.text import read_documents
    from nutshell.text_files import kind_of
    from nutshell.tokenizer.chat import parse_messages

    tok, context = _tokenizer(asked.tokenizer, asked.model)
    if all(kind_of(Path(file)) in (".txt", ".md") for file in asked.files):
        examples: list[dict[str, Any]] = [{"text": text} for text in read_documents(asked.files)]
        facts: dict[str, Any] = {"rows": len(examples), "formats": {"text": len(examples)}, "bad": {}, "first_bad": ""}
    else:
        found = find_conversations(asked.files, check=parse_messages)
        examples = found.examples
        facts = {"rows": len(examples), "formats": dict(found.formats), "bad": dict(found.bad), "first_bad": found.first_bad}
        facts["without_answer"] = found.unlearned
    facts |= _turns(examples)
    if tok is not None:
        facts |= _lengths(examples, tok, asked.context or context)
    print(_page(facts))
    return facts


def _tokenizer(tokenizer: str | None, model: str | None) -> tuple[Any, int]:
    """The tokenizer that was named and the model's context; None and 0 where nothing was."""
    from nutshell.tokenizer import Tokenizer

    if not model:
        return (Tokenizer.load(tokenizer).with_special_tokens() if tokenizer else None), 0
    from nutshell.model_folder import find, load_config

    folder = find(model)
    return Tokenizer.load(tokenizer or folder).with_special_tokens(), load_config(folder).context


def _turns(examples: list[dict[str, Any]]) -> dict[str, Any]:
    roles = Counter(message["role"] for example in examples for message in example.get("messages", []))
    parts = Counter(
        part["type"] for example in examples for message in example.get("messages", []) if isinstance(message["content"], list)
        for part in message["content"]
    )  # fmt: skip
    seen = Counter(json.dumps(example, sort_keys=True) for example in examples)
    return {"messages": dict(roles), "tool_calls": parts["python"], "duplicates": len(examples) - len(seen)}


def _lengths(examples: list[dict[str, Any]], tok: Any, context: int) -> dict[str, Any]:
    """Tokens of rows as training renders them, and what a context does to those that are longer."""
    import numpy as np

    from nutshell.tokenizer.chat import render_example, split_example

    rendered = [render_example(example, tok) for example in examples]
    lengths = np.array([len(ids) for ids, _ in rendered] or [0])
    facts: dict[str, Any] = {
        "tokens": int(lengths.sum()), "learned": sum(sum(mask) for _, mask in rendered),
        "length": {name: int(np.percentile(lengths, q)) for name, q in (("50%", 50), ("90%", 90), ("99%", 99), ("longest", 100))},
    }  # fmt: skip
    if context:
        longer = [example for example, length in zip(examples, lengths, strict=False) if length > context + 1]
        parts = [part for example in longer for part in split_example(example, tok, context + 1)]
        over = [len(render_example(part, tok)[0]) - context - 1 for part in parts]
        cropped = [tokens for tokens in over if tokens > 0]
        facts |= {"context": context, "longer": len(longer), "parts": len(parts)}
        facts |= {"cropped": len(cropped), "cropped_tokens": sum(cropped)}
    return facts


def _page(facts: dict[str, Any]) -> str:
    lines = [f"format      {', '.join(f'{count:,} rows of {name}' for name, count in facts['formats'].items()) or 'none'}"]
    if facts["messages"]:
        roles = ", ".join(f"{count:,} of the {role}" for role, count in facts["messages"].items())
        lines.append(f"messages    {roles}" + (f"; {facts['tool_calls']:,} tool calls" if facts["tool_calls"] else ""))
    if "tokens" in facts:
        share = facts["learned"] / max(1, facts["tokens"])
        lines.append(f"tokens      {facts['tokens']:,}, of which {facts['learned']:,} are learned ({share:.0%})")
        lengths = ", ".join(f"{name} {tokens:,}" for name, tokens in facts["length"].items())
        lines.append(f"length      in tokens: {lengths}")
    else:
        lines.append("tokens      not counted: give --tokenizer FOLDER or --model FOLDER")
    if facts.get("without_answer"):
        lines.append(f"unlearned   {facts['without_answer']:,} rows have no answer to learn and are left out in training")
    if "context" in facts:
        lines.append(
            f"context     {facts['longer']:,} rows are longer than {facts['context']:,} tokens; they become {facts['parts']:,} "
            f"of whole turns, {facts['cropped']:,} of which lose their end ({facts['cropped_tokens']:,} tokens)"
        )
    lines.append(f"duplicates  {facts['duplicates']:,} rows are as an earlier one")
    bad = sum(facts["bad"].values())
    lines.append(f"bad rows    {bad:,}" + "".join(f"\n            {count:,} {kind}" for kind, count in facts["bad"].items()))
    if bad:
        lines.append(f"            the first: {facts['first_bad']}")
    return "\n".join(lines)
