"""Machines: one table of GPUs (memory, peak, price), and what a plan knows of the machine it is made for. No torch.

Memory and dense 16-bit peaks with fp32 accumulation are those of the vendors' data sheets (which print twice that, "with
sparsity"). Prices are rough guesses for one rented card an hour; --usd-per-hour says better. The MFU is an assumption: nothing
was run here. nanochat's public record says about 0.6 on H100.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

GIB = 2**30
VISIBLE = 0.985  # share of a card's nominal memory that programs see (79 of 80 GB on H100)
ASSUMED_MFU = 0.45
DECODE_SECONDS_PER_LAYER = 2.5e-4
"""Of one decoding step on a GPU, however many rows: some 30 small kernels a layer, launched one after the other. Assumed."""

# name: (memory in GiB, dense 16-bit peak in FLOP/s, dollars an hour, 0 where nobody rents one out)
CARDS: dict[str, tuple[float, float, float]] = {
    "H100": (80, 989e12, 3.0), "H100 PCIe": (80, 756e12, 2.2), "H100 NVL": (94, 835e12, 2.8), "H200": (141, 989e12, 3.5),
    "H200 NVL": (141, 835e12, 3.2), "B200": (180, 2250e12, 5.0), "GB200": (186, 2500e12, 5.5), "GH200": (96, 989e12, 2.0),
    "H800": (80, 989e12, 0.0), "H800 PCIe": (80, 756e12, 0.0), "H20": (96, 148e12, 0.0), "MI300X": (192, 1307e12, 2.5),
    "A100": (80, 312e12, 1.8), "A100-40GB": (40, 312e12, 1.3), "A800": (80, 312e12, 0.0), "A40": (48, 150e12, 0.5),
    "A30": (24, 165e12, 0.4), "A10": (24, 125e12, 0.6), "A10G": (24, 70e12, 1.0), "L40S": (48, 362e12, 1.0),
    "L40": (48, 181e12, 0.9), "L4": (24, 121e12, 0.7), "V100": (16, 125e12, 0.5), "V100-PCIE": (16, 112e12, 0.5),
    "T4": (16, 65e12, 0.35), "RTX 5090": (32, 209e12, 0.6), "RTX 4090": (24, 165e12, 0.4), "RTX 4080": (16, 97e12, 0.3),
    "RTX 4070": (12, 58e12, 0.15), "RTX 4060": (8, 30e12, 0.1), "RTX 3090 Ti": (24, 80e12, 0.3), "RTX 3090": (24, 71e12, 0.25),
    "RTX 3060": (12, 25e12, 0.1),
}  # fmt: skip
"""By the names that drivers report, less maker and series; users may leave out the spaces."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Several cards of one kind."""

    name: str
    cards: int
    memory_bytes: int  # of one card
    peak_flops: float  # dense 16-bit FLOP/s of one card
    usd_per_hour: float  # of all cards; 0 where unknown


def parse_machine(text: str) -> Machine:
    """'H100', '8xH100', 'RTX 4090' as a machine. ValueError names what is accepted."""
    match = re.fullmatch(r"\s*(?:(\d+)\s*x\s*)?([A-Za-z0-9 -]+?)\s*", text)
    name = re.sub(r"\s", "", match[2]).upper() if match else ""
    found = next((card for card in CARDS if card.replace(" ", "").upper() == name), None)
    cards = int(match[1] or 1) if match else 0
    if found is None or not 1 <= cards <= 4096:
        accepted = ", ".join(card.replace(" ", "") for card in CARDS)
        raise ValueError(f"gpu is {text!r}; accepted: one of {accepted}, with a number in front for several: 8xH100.")
    memory, peak, price = CARDS[found]
    name = found.replace(" ", "")
    return Machine(
        name=f"{cards}x{name}" if cards > 1 else name, cards=cards, memory_bytes=int(memory * GIB * VISIBLE), peak_flops=peak,
        usd_per_hour=cards * price,
    )  # fmt: skip


def peak_flops(reported: str) -> float | None:
    """The peak of the card whose driver calls it `reported`; None for one that is not in the table, and for a slice of a card.

    Memory and form factor may follow the name.
    """
    name = re.sub(r"^(NVIDIA|AMD|Tesla|GeForce|Instinct|\s)*", "", reported)
    for card in sorted(CARDS, key=len, reverse=True):
        if re.fullmatch(re.escape(card) + r"([- ](SXM\d?|PCI[eE]|FHHL|OAM|HBM\w+|\d+GB))*", name):
            return CARDS[card][1]
    return None


@dataclass(frozen=True, kw_only=True)
class Timing:
    """What one depth takes on a machine."""

    tokens_per_second: float  # training, all ranks together
    decode_seconds: float = 0.0  # one decoding step of all rows of an RL batch
    reply_seconds: float = 0.0  # one decoding step of the rows of an evaluation; 0: that of RL, scaled by the number of rows
    forward_tokens_per_second: float = 0.0  # reading without learning, one rank; 0: three times training
    startup_seconds: float = 0.0  # by which the first step of a stage takes longer than the others (compilation)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a plan knows of the machine."""

    device: str = "cpu"
    dtype: str = "float32"
    world_size: int = 1
    threads: int = 0
    memory_bytes: int = 0  # of one rank; 0 where unknown
    gpu: str = ""  # the machine of --gpu, where the plan is for another one than this
    mfu: float = 0.0  # assumed for that machine
    timings: dict[int, Timing] = field(default_factory=dict)  # by depth; a budget needs at least one
    seconds_left: float = 0.0  # of the budget, after data, tokenizer and these measurements

    @property
    def on_gpu(self) -> bool:
        return self.device == "cuda"

    def describe(self) -> str:
        memory = f" of {self.memory_bytes / GIB:.0f} GB" if self.memory_bytes else ""
        return f"{self.world_size} x {self.gpu or self.device}{memory} in {self.dtype}"
