"""How much memory a training step takes, part by part, and how many rows fit: arithmetic on the shape, nothing is run.

On CPU the activations are those that the hand-written gradients save; tests compare them with what autograd really holds. On a
GPU a compiled step keeps what Inductor's partitioner chooses: 19.6 widths a layer for `speed`, 18.4 for `portable`. The tests ask
the partitioner itself and hold the count to within 10%. It keeps both relu and its square, because the weight's gradient is a
product with the square.

`shard` is the recipe's: what the ranks divide, the optimizer's state alone or the weights and gradients too (FSDP2).
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import replace

from nutshell.model.config import SMEAR_CHANNELS, ModelConfig
from nutshell.model.flops import parameters_by_group
from nutshell.plan.hardware import GIB, VISIBLE, Hardware

CARDS_GIB = (8, 12, 24, 80)  # a plan says how many rows fit cards of these sizes
MOST_ROWS = 4096
GPU_CONTEXT_BYTES = 1.2e9  # driver, kernels, workspaces of cuBLAS, buffers of NCCL
FRAGMENTATION = 0.05  # of what is allocated
QUERY_BLOCK = 256  # of attention in blocks (model/attention.py)


def state_bytes(model: ModelConfig, ranks: int = 1, shard: str = "state") -> dict[str, int]:
    """Bytes of fp32 weights, fp32 gradients and optimizer state that one rank holds.

    AdamW keeps two numbers for a parameter, Muon one for each and one for each line of the longer side.
    """
    groups = parameters_by_group(model)
    total = sum(groups.values())
    muon = groups["attention"] + groups["mlp"]
    narrow = model.depth * (4 * max(model.width, model.heads * model.head_dim) + 8 * model.width)
    held = 4 * total // (ranks if shard == "weights" else 1)
    return {
        "weights": held,
        "gradients": held,
        "optimizer": (8 * (total - muon) + 4 * (muon + narrow)) // ranks,
    }


def muon_bytes(model: ModelConfig, ranks: int = 1) -> int:
    """Most that a step of Muon holds besides its state: four fp32 copies of the largest group of matrices of one shape."""
    groups = parameters_by_group(model)
    return 16 * max(groups["attention"], groups["mlp"] // 2) // ranks


def gathered_bytes(model: ModelConfig, *, dtype: str) -> int:
    """Most that a rank holds of weights that lie divided: the head and its gradient until the backward pass ends, and twice a
    block's or an embedding's weights and gradients: those in use, and those that are fetched or sent meanwhile."""
    groups = parameters_by_group(model)
    size = 4 if dtype == "float32" else 2
    embedding = 4 * model.vocab_size * model.width
    block = size * (groups["attention"] + groups["mlp"]) // model.depth
    return 2 * embedding + 4 * max(block, embedding)


def activation_bytes(model: ModelConfig, *, dtype: str, gpu: bool, shard: str = "state") -> tuple[int, int]:
    """(bytes for each row, bytes whatever the rows) that the forward pass keeps for the backward pass, without the loss."""
    C, A, KV = model.width, model.heads * model.head_dim, model.kv_heads * model.head_dim
    T, size = model.context, 4 if dtype == "float32" else 2
    groups = parameters_by_group(model)
    mlp = groups["mlp"] / (model.depth * C)  # channels of all its matrices together
    if model.architecture == "gpt2":
        return _gpt2_activations(model, size, gpu=gpu, copied=size == 2 and shard != "weights")
    weighted = "norms" in groups  # SwiGLU and weighted norms keep more, and there are no residual scales
    elements = 0.0  # of one token
    for layer, window in enumerate(model.windows()):
        if gpu:
            # Residual twice, norms twice (C each); queries and keys before and after rotation or norm; values; output; MLP.
            elements += 4 * C + 2 * (A + KV) + KV + A + mlp
            if model.residual_scales and not weighted:
                elements += C  # the residual before its scale, for the scale's gradient
        else:
            seen, pairs = _blocks(T, window)
            # Residual, two norms; queries and keys; scaled queries; keys and values of each block; output; MLP.
            elements += (4 if weighted else 3) * C + (A + KV) + A + 2 * A * seen + A + mlp * (4 / 3 if weighted else 1 / 2)
            elements += model.heads * pairs + model.heads + 2 * model.kv_heads + 2  # softmax; inverse norms
        if "value embeddings" in groups and model.has_value_embedding(layer):
            elements += KV + 2 * model.kv_heads
    elements += 4 * C + SMEAR_CHANNELS  # embedding and its norm, smear, x0, backout's last norm
    # Copies of the block matrices in the compute dtype. In fp32, and of gathered weights, only queries and keys are copied.
    copies = groups["attention"] + groups["mlp"] if size == 2 and shard != "weights" else model.depth * C * (A + KV)
    return int(elements * size * T), copies * size


def _gpt2_activations(model: ModelConfig, size: int, *, gpu: bool, copied: bool) -> tuple[int, int]:
    """`activation_bytes` of GPT-2: nothing is rotated or normed in attention, GELU keeps what is before and behind it. The count
    for a GPU is the same arithmetic with whole queries, keys and values; no partitioner was asked."""
    C, T, W = model.width, model.context, model.mlp_width
    layer: float = 2 * C + 2 * C + 4 + C + 2 * W  # residuals, their norms with mean and deviation; attention's output; MLP
    if gpu:
        layer += 3 * C + model.heads
    else:
        seen, pairs = _blocks(T, T)
        layer += C + 2 * C * seen + model.heads * pairs  # scaled queries; keys and values of each block; softmax
    groups = parameters_by_group(model)
    weights = groups["attention"] + groups["mlp"] if copied else 0
    return int((model.depth * layer + 2 * C) * size * T), weights * size


def _blocks(T: int, window: int) -> tuple[float, float]:
    """(keys copied, pairs scored) for each token by attention in blocks of queries."""
    block = min(QUERY_BLOCK, window, T)
    keys = pairs = 0
    for start in range(0, T, block):
        end = min(start + block, T)
        first = max(0, start - window + 1)
        keys += end - first
        pairs += (end - start) * (end - first)
    return keys / T, pairs / T


def loss_bytes(model: ModelConfig, rows: int, *, dtype: str, gpu: bool) -> int:
    """Most that model/loss.py holds."""
    C, V, tokens = model.width, model.vocab_size, rows * model.context
    size = 4 if dtype == "float32" else 2
    chunk = min(tokens, 8192 if gpu else 1024) * V
    logits = 2 * chunk * size if gpu else chunk * size + 3 * 4 * min(chunk, 2**19)  # a compiled pass; pieces in fp32 in place
    head_gradient, of_a_chunk = 4 * V * C, V * C * size
    head_copy = 0 if size == 4 else V * C * size
    return head_gradient + of_a_chunk + head_copy + tokens * C * size + logits  # and the gradient of the hidden states


def memory_by_part(model: ModelConfig, rows: int, hardware: Hardware, shard: str = "state") -> dict[str, int]:
    """Bytes of each part of a step of one of the machine's ranks, with micro-batches of `rows`; the sum is the most it holds.

    "muon" is what an optimizer step needs beyond the activations, which are gone by then.
    """
    dtype, gpu, ranks = hardware.dtype, hardware.on_gpu, hardware.world_size
    shard = shard if ranks > 1 else "state"
    each, fixed = activation_bytes(model, dtype=dtype, gpu=gpu, shard=shard)
    parts = {
        **state_bytes(model, ranks, shard),
        "activations": rows * each + fixed,
        "loss": loss_bytes(model, rows, dtype=dtype, gpu=gpu),
    }
    if shard == "weights":
        parts["gathered"] = gathered_bytes(model, dtype=dtype)
    parts["muon"] = max(0, muon_bytes(model, ranks) - parts["activations"] - parts["loss"])
    if gpu:
        parts["overhead"] = int(GPU_CONTEXT_BYTES + FRAGMENTATION * sum(parts.values()))
    return parts


def fitting_rows(model: ModelConfig, hardware: Hardware, shard: str = "state") -> int:
    """Most rows a micro-batch may have in the machine's memory; 0 where not even one fits, `MOST_ROWS` where it is unknown."""
    if not hardware.memory_bytes:
        return MOST_ROWS
    rows = range(1, MOST_ROWS + 1)
    return bisect_right(rows, hardware.memory_bytes, key=lambda n: sum(memory_by_part(model, n, hardware, shard).values()))


def fitting_cards(model: ModelConfig, ranks: int = 1, shard: str = "state") -> dict[str, int]:
    """Rows that fit GPUs of the common sizes, in bf16."""
    cards = Hardware(device="cuda", dtype="bfloat16", world_size=ranks)
    sizes = {f"{size} GB": int(size * GIB * VISIBLE) for size in CARDS_GIB}
    return {name: fitting_rows(model, replace(cards, memory_bytes=memory), shard) for name, memory in sizes.items()}


def most_rows(model: ModelConfig, hardware: Hardware, shard: str, asked: int = 0) -> int:
    """`fitting_rows`. ValueError where not even one row fits, or not those `asked` for, with the sizes."""

    def gigabytes(rows: int) -> str:
        parts = memory_by_part(model, rows, hardware, shard)
        listed = ", ".join(f"{name} {size / GIB:.1f}" for name, size in parts.items())
        return f"{sum(parts.values()) / GIB:.1f} GB ({listed})"

    most = fitting_rows(model, hardware, shard)
    a_rank = " a rank" if hardware.world_size > 1 else ""
    where = f"{hardware.gpu or hardware.device} has {hardware.memory_bytes / GIB:.0f} GB{a_rank}"
    if not most:
        sharded = "--shard weights, " if fitting_rows(model, hardware, "weights") else ""
        raise ValueError(
            f"depth {model.depth}, width {model.width} does not fit: one row of {model.context} tokens takes {gigabytes(1)}, "
            f"and {where}. Use {sharded}a smaller --depth or --context, or a larger machine."
        )
    if asked > most:
        raise ValueError(f"micro_batch_size is {asked}, which takes {gigabytes(asked)}, and {where}: {most} rows fit.")
    return most
