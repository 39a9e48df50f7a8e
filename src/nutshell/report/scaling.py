"""The table and the plot of a sweep."""

from __future__ import annotations

from typing import Any

from nutshell.plan.law import Law, Point
from nutshell.report.document import markdown_table
from nutshell.report.svg import Plot, Series


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


def sweep_plot(law: Law, points: list[Point]) -> Plot:
    """Points and fit over tokens, a colour for each size."""
    first, last = min(p.tokens for p in points), max(p.tokens for p in points)
    reach = [first * (2 * last / first) ** (i / 60) for i in range(61)]  # twice as far as was swept
    plot = Plot("The sweep and its fit", "training tokens", "bits per byte", log_x=True)
    for colour, size in enumerate(sorted({p.parameters for p in points})):
        # A value between two gaps is drawn as a dot.
        dots = [dot for p in points if p.parameters == size for dot in ((p.tokens, None), (p.tokens, p.bpb))]
        line = [(tokens, law.bpb(size, tokens)) for tokens in reach]
        tokens, bpb = zip(*line, *dots, strict=True)
        plot.series.append(Series(f"{size / 1e6:.2f}M matrix parameters", tokens, bpb, colour))
    return plot
