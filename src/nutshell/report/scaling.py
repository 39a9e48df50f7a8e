"""The table and the plot of a sweep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nutshell.plan.law import Law, Point
from nutshell.report.document import markdown_table

# Okabe and Ito's colours, which colour-blind readers can tell apart too.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")


def page(law: Law, points: list[Point], left_out: list[dict[str, Any]] | None = None) -> str:
    """The fit and its points, in Markdown."""
    rows = [
        [f"{p.parameters:,.0f}", f"{p.tokens:,.0f}", f"{p.flops:.2e}", f"{p.bpb:.4f}", f"{law.bpb(p.parameters, p.tokens):.4f}"]
        for p in sorted(points, key=lambda p: (p.parameters, p.tokens))
    ]
    table = markdown_table(["matrix parameters", "tokens", "FLOPs", "bpb", "fit"], rows)
    missing = [
        f"\n\nNot run, for lack of time: depth {cell['depth']} on {cell['tokens']:,.0f} tokens." for cell in left_out or []
    ]
    return (
        f"Bits per byte on {law.text}, vocabulary {law.vocab_size}: "
        f"`bpb = {law.E:.4g} + {law.A:.4g} / N^{law.alpha:.3f} + {law.B:.4g} / D^{law.beta:.3f}`, "
        f"N matrix parameters, D training tokens. Error at its {law.points} points: {law.error:.2%}.\n\n{table}{''.join(missing)}"
    )


def draw(law: Law, points: list[Point], file: Path) -> None:
    """Points and fit over tokens, a colour for each size."""
    from matplotlib.figure import Figure  # not at import: it takes half a second

    plot = Figure(figsize=(8.0, 4.5), layout="constrained")
    panel = plot.subplots()
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(True, color="#E4E4E4", linewidth=0.8)
    sizes = sorted({p.parameters for p in points})
    first, last = min(p.tokens for p in points), max(p.tokens for p in points)
    reach = [first * (2 * last / first) ** (i / 60) for i in range(61)]  # twice as far as was swept
    for number, size in enumerate(sizes):
        colour = PALETTE[number % len(PALETTE)]
        swept = [(p.tokens, p.bpb) for p in points if p.parameters == size]
        panel.plot(reach, [law.bpb(size, tokens) for tokens in reach], color=colour, linewidth=1.2)
        panel.plot(*zip(*swept, strict=True), "o", color=colour, label=f"{size / 1e6:.2f}M matrix parameters")
    panel.set(xscale="log", xlabel="training tokens", ylabel=f"bits per byte on {law.text}")
    panel.legend(frameon=False)
    plot.savefig(file, dpi=110)
