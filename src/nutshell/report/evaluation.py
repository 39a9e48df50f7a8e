"""The page of `nutshell eval --report`: scores, what CORE is made of, and examples."""

from __future__ import annotations

from typing import Any

from nutshell.report.document import Block, Heading, Sample, Table, Text, markdown


def page(model: str, results: dict[str, Any], settings: dict[str, Any]) -> str:
    """The results as Markdown."""
    blocks: list[Block] = [Heading(f"Evaluation of {model}", 1), Text(", ".join(f"{k} {v}" for k, v in settings.items()))]
    rows = []
    for name, result in results.items():
        low, high = result["interval"]
        numbers = (f"{result['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{result['baseline']:.4f}", str(result["count"]))
        rows.append([name, *numbers])
    blocks.append(Table(["task", "accuracy", "95% interval", "guessing", "items"], rows))
    for name, result in results.items():
        if "pass_at_k" in result:
            chances = ", ".join(f"pass@{k} {value:.4f}" for k, value in result["pass_at_k"].items())
            blocks.append(Text(f"{name}: {chances}"))
        blocks += [Text(f"{name}: {note}.") for note in result["notes"]]
    if "core" in results:
        parts = results["core"]["tasks"].items()
        rows = [[label, f"{part['accuracy']:.4f}", f"{part['centered']:.4f}", str(part["count"])] for label, part in parts]
        blocks += [Heading("CORE"), Table(["task", "accuracy", "centred", "items"], rows)]
    examples = [(name, example) for name, result in results.items() for example in result["examples"]]
    blocks += [Heading("Examples")] if examples else []
    for name, example in examples:
        verdict = "right" if example["right"] else f"wrong, the answer is {example['answer']}"
        blocks.append(Sample(f"{name}, {verdict}", f"{example['question']}\n\n> {example['reply']}"))
    return markdown(blocks)
