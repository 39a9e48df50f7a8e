"""Machines that a plan can be made for without having them: a table, and nothing that needs torch.

Memory and dense bf16 peaks are meant to be those of the vendors' data sheets (consumer cards: with fp32 accumulation). Prices are
rough guesses for one rented card an hour; give --usd-per-hour to say better. The MFU is an assumption: nothing was run.
nanochat's public record says about 0.6 on H100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

GIB = 2**30
VISIBLE = 0.985
"""Share of a card's nominal memory that programs see (79 of 80 GB on H100)."""
ASSUMED_MFU = 0.45
DECODE_SECONDS_PER_LAYER = 2.5e-4
"""Of one decoding step on a GPU, however many rows: some 30 small kernels a layer, launched one after the other. Assumed."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Several cards of one kind."""

    name: str
    cards: int
    memory_bytes: int
    """Of one card."""
    peak_flops: float
    """Dense bf16 FLOP/s of one card."""
    usd_per_hour: float
    """Of all cards."""


# name: (memory in GiB, dense bf16 peak in FLOP/s, dollars an hour)
CARDS: dict[str, tuple[float, float, float]] = {
    "H100": (80, 989e12, 3.0),
    "H200": (141, 989e12, 3.5),
    "B200": (180, 2250e12, 5.0),
    "GH200": (96, 989e12, 2.0),
    "A100": (80, 312e12, 1.8),
    "A100-40GB": (40, 312e12, 1.3),
    "L40S": (48, 362e12, 1.0),
    "A10G": (24, 70e12, 1.0),
    "L4": (24, 121e12, 0.7),
    "RTX5090": (32, 209e12, 0.6),
    "RTX4090": (24, 165e12, 0.4),
    "RTX3090": (24, 71e12, 0.25),
    "RTX4070": (12, 58e12, 0.15),
    "RTX3060": (12, 25e12, 0.1),
    "RTX4060": (8, 30e12, 0.1),
}


def parse_machine(text: str) -> Machine:
    """'H100', '8xH100', 'RTX 4090' as a machine. ValueError names what is accepted."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?([A-Za-z0-9 -]+?)\s*", text)
    name = re.sub(r"\s", "", match[2]).upper() if match else ""
    found = next((card for card in CARDS if card.upper() == name), None)
    cards = int(match[1] or 1) if match else 0
    if found is None or not 1 <= cards <= 4096:
        raise ValueError(
            f"gpu is {text!r}; accepted: one of {', '.join(CARDS)}, with the number of cards in front where there are several: "
            "8xH100."
        )
    memory, peak, price = CARDS[found]
    return Machine(
        name=f"{cards}x{found}" if cards > 1 else found, cards=cards, memory_bytes=int(memory * GIB * VISIBLE), peak_flops=peak,
        usd_per_hour=cards * price,
    )  # fmt: skip
