"""The table and the plot of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.plan.law import Law, Point


def page(law: Law, points: list[Point], left_out: list[dict[str, Any]] | None = None) -> str:
    """The fit and its points, in Markdown."""
    lines = [
        f"Bits per byte on {law.text}, vocabulary {law.vocab_size}: "
        f"`bpb = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}`, "
        f"N matrix parameters, D training tokens. Error at its {law.points} points: {law.error:.2%}.",
        "",
        "| matrix parameters | tokens | FLOPs | bpb | fit |",
        "|---:|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {p.parameters:,.0f} | {p.tokens:,.0f} | {p.flops:.2e} | {p.bpb:.4f} | {law.bpb(p.parameters, p.tokens):.4f} |"
        for p in sorted(points, key=lambda p: (p.parameters, p.tokens))
    ]
    lines += [f"\nNot run, for lack of time: depth {cell['depth']} on {cell['tokens']:,.0f} tokens." for cell in left_out or []]
    return "\n".join(lines)


def draw(law: Law, points: list[Point], file: Path) -> None:
    """Points and fit over tokens, a colour for each size."""
    from matplotlib.figure import Figure  # not at import: it takes half a second

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axis = figure.subplots()
    sizes = sorted({p.parameters for p in points})
    colours = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"]  # Okabe and Ito's
    first, last = min(p.tokens for p in points), max(p.tokens for p in points)
    reach = [first * (2 * last / first) ** (i / 60) for i in range(61)]  # twice as far as was swept
    for number, size in enumerate(sizes):
        colour = colours[number % len(colours)]
        mine = [p for p in points if p.parameters == size]
        axis.plot(reach, [law.bpb(size, tokens) for tokens in reach], color=colour, linewidth=1.2)
        axis.plot(
            [p.tokens for p in mine], [p.bpb for p in mine], "o", color=colour, label=f"{size / 1e6:.2f}M matrix parameters"
        )
    axis.set_xscale("log")
    axis.set_xlabel("training tokens")
    axis.set_ylabel(f"bits per byte on {law.text}")
    axis.grid(True, color="#E4E4E4", linewidth=0.8)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(file, dpi=110)
