"""The table of an ablation: bits per byte with their spread over seeds, and paired differences to the baseline."""

from __future__ import annotations

import statistics
from typing import Any

from nutshell.metrics import duration
from nutshell.report.document import markdown_table


def summarise(cells: dict[str, dict[str, Any]], baseline: str) -> list[dict[str, Any]]:
    """One row for each variant of {variant: {seed: result}}: means over its seeds, and its paired difference to the baseline.

    Each seed's bpb is compared with the baseline's of the same seed, so what a seed does to both cancels out. The standard error
    is that of the mean of these differences.
    """
    rows = []
    for name, by_seed in cells.items():
        finite = {seed: result for seed, result in by_seed.items() if result["bpb"] is not None}
        bpb = [result["bpb"] for result in finite.values()]
        pairs = [
            result["bpb"] - other["bpb"]
            for seed, result in finite.items()
            if (other := cells[baseline].get(seed)) and other["bpb"] is not None and name != baseline
        ]
        rows.append(
            {
                "variant": name,
                "seeds": len(by_seed),
                "diverged": len(by_seed) - len(finite),
                "bpb": statistics.mean(bpb) if bpb else None,
                "bpb_deviation": statistics.stdev(bpb) if len(bpb) > 1 else None,
                "difference": statistics.mean(pairs) if pairs else None,
                "standard_error": statistics.stdev(pairs) / len(pairs) ** 0.5 if len(pairs) > 1 else None,
                "tokens_per_second": statistics.mean(r["tokens_per_second"] for r in finite.values()) if finite else None,
                "seconds": statistics.mean(r["seconds"] for r in finite.values()) if finite else None,
            }
        )
    return rows


def page(record: dict[str, Any]) -> str:
    """The table in Markdown."""
    forms = {"bpb_deviation": ".4f", "difference": "+.4f", "standard_error": ".4f", "tokens_per_second": ",.0f"}
    rows = []
    for row in record["variants"]:
        bpb = [f"{row['bpb']:.4f}"] if row["bpb"] is not None else []
        diverged = [f"({row['diverged']} diverged)" if bpb else "diverged"] if row["diverged"] else []
        numbers = ["" if row[name] is None else format(row[name], form) for name, form in forms.items()]
        seconds = "" if row["seconds"] is None else duration(row["seconds"])
        rows.append([row["variant"], str(row["seeds"]), " ".join(bpb + diverged), *numbers, seconds])
    head = ["variant", "seeds", "bpb", "deviation", "difference", "standard error", "tokens/s", "time"]
    note = (
        "Validation bits per byte after pretraining (lower is better), standard deviation over seeds, and the mean difference "
        f"to `{record['baseline']}` of the same seed with its standard error. A difference below two standard errors is noise."
    )
    return f"{markdown_table(head, rows)}\n\n{note}"
