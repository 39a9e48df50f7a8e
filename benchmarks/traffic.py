"""What many GPUs send each other in a step, on paper: the table of docs/scaling.md. Nothing is run.

    python benchmarks/traffic.py

Rings move (n - 1) / n of a tensor through each of n members for a reduce-scatter or an all-gather. Collectives of several nodes
are taken as NCCL does them, with one ring for each network card: of what a GPU of an eight-GPU node sends, an eighth goes through
its network card and the rest over NVLink.
"""

from __future__ import annotations

from dataclasses import dataclass

from nutshell.plan.plan import draft_plan
from nutshell.plan.recipe import Recipe

NVLINK_BYTES = 450e9
"""A second in one direction, one H100 (fourth generation, 900 GB/s both ways)."""
NETWORK_BYTES = 50e9
"""A second in one direction, one card of 400 Gb/s for each GPU."""


@dataclass(frozen=True, kw_only=True)
class Traffic:
    """Of one GPU in one step."""

    nvlink_bytes: float
    network_bytes: float
    state_bytes: float
    """Weights, gradients and optimizer state that lie in its memory."""

    @property
    def seconds(self) -> float:
        """Alone, nothing overlapped with anything; both kinds of links at their full rate at once."""
        return max(self.nvlink_bytes / NVLINK_BYTES, self.network_bytes / NETWORK_BYTES)


def traffic(parameters: float, gpus: int, per_node: int, design: str, *, state: float = 6.0, gather: float = 3.0) -> Traffic:
    """fp32 master weights and gradients, products in bf16; `state` bytes of optimizer for a parameter (Muon 4, AdamW 8),
    `gather` bytes of a gathered one (2 in the blocks, 4 in embeddings and head; 3 where half of them are there).

    replicated: reduce-scatter of fp32 gradients, each rank updates its part, all-gather of fp32 weights.
    fsdp: weights sharded over all GPUs; all-gather before forward and before backward, fp32 reduce-scatter.
    hsdp: the same inside each node, and an all-reduce of every GPU's gradient shard between the nodes.
    ValueError for another design or GPUs that do not fill their nodes.
    """
    if gpus % per_node or design not in ("replicated", "fsdp", "hsdp"):
        raise ValueError(
            f"{gpus} GPUs, {per_node} a node, design {design!r}; accepted: whole nodes, and replicated, fsdp or hsdp."
        )
    nodes = gpus // per_node
    moved = parameters * (4 + 4 if design == "replicated" else gather + gather + 4)
    if design == "hsdp":
        shard = 4 * parameters / per_node
        inside, between = moved * (per_node - 1) / per_node, 2 * (nodes - 1) / nodes * shard
        held = parameters * (4 + 4 + state) / per_node
    else:
        inside = moved * (gpus - 1) / gpus
        between = inside / per_node if nodes > 1 else 0.0
        inside -= between
        held = parameters * ((4 + 4 + state / gpus) if design == "replicated" else (4 + 4 + state) / gpus)
    return Traffic(nvlink_bytes=inside, network_bytes=between, state_bytes=held)


def main() -> None:
    plan = draft_plan(Recipe(depth=28, gpu="64xH100"))
    parameters = sum(plan.parameters.values())
    print("| GPUs | design | NVLink GB | network GB | ms | held GB |\n|---|---|---|---|---|---|")
    for gpus, design in ((8, "replicated"), (8, "fsdp"), (64, "replicated"), (64, "fsdp"), (64, "hsdp")):
        found = traffic(parameters, gpus, 8, design, state=5.86, gather=2.94)
        sizes = " | ".join(f"{x / 1e9:.2f}" for x in (found.nvlink_bytes, found.network_bytes))
        print(f"| {gpus} | {design} | {sizes} | {1e3 * found.seconds:.0f} | {found.state_bytes / 1e9:.2f} |")
    for exponent in (19, 20, 21):
        seconds = plan.flops_per_token * 2**exponent / (64 * 989e12 * 0.45)
        print(f"compute of 2^{exponent} tokens on 64 H100 at 45%: {1e3 * seconds:.0f} ms")


if __name__ == "__main__":
    main()
