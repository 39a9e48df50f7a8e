"""What native decoding costs in bits per byte, by the kind of its weights.

    python benchmarks/precision.py runs/demo runs/demo/data/val-00000.parquet

Each token of the text is predicted from those before it, through the cache, 32 documents at a time. The reference is torch, fp32.
"""

import argparse
import math
from itertools import islice

import torch

import nutshell
from nutshell.data.text import read_documents
from nutshell.infer.blocks import Chunk
from nutshell.infer.native import NativeRunner
from nutshell.infer.runner import Runner
from nutshell.infer.torch_runner import TorchRunner
from nutshell.model.kv_blocks import blocks_of

KINDS = {"float32": (torch.float32, False), "bfloat16": (torch.bfloat16, False), "int8": (torch.bfloat16, True)}
ROWS = 32


def negative_log_likelihoods(runner: Runner, rows: list[list[int]]) -> list[float]:
    """In nats, of each row's tokens behind the first."""
    blocks = blocks_of(max(map(len, rows)))
    sums = [0.0] * len(rows)
    for place in range(max(map(len, rows)) - 1):
        live = [row for row, ids in enumerate(rows) if place + 1 < len(ids)]
        chunks = [
            Chunk([rows[row][place]], place, rows[row][place - 1] if place else -1, range(row * blocks, (row + 1) * blocks))
            for row in live
        ]
        logits, _ = runner.forward(chunks)
        table = torch.from_numpy(logits).log_softmax(-1)
        for at, row in enumerate(live):
            sums[row] -= float(table[at, rows[row][place + 1]])
    return sums


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a run, or the folder of a model")
    parser.add_argument("text", help="documents that it was not trained on")
    parser.add_argument("--documents", type=int, default=128)
    options = parser.parse_args()
    model, tok = nutshell.load(options.model)
    context = model.config.context
    texts = [[tok.bos_id, *tok.encode(text)][:context] for text in islice(read_documents(options.text), options.documents)]
    bytes_read = sum(len(tok.decode_bytes(ids[1:])) for ids in texts)
    print(f"{len(texts)} documents, {sum(map(len, texts)):,} tokens, {bytes_read:,} bytes")
    shape, reference = (tok.vocab_size, ROWS, context), None
    with torch.inference_mode():
        for name, (dtype, int8) in {"torch, float32": (torch.float32, False), **KINDS}.items():
            frozen = model.set_precision(dtype).for_inference()
            runner = TorchRunner(frozen, *shape) if reference is None else NativeRunner(frozen, *shape, int8=int8)
            nats = sum(sum(negative_log_likelihoods(runner, texts[at : at + ROWS])) for at in range(0, len(texts), ROWS))
            bits = nats / math.log(2) / bytes_read
            reference = reference or bits
            print(f"  {name:16} {bits:.5f} bits per byte  {bits / reference - 1:+.4%}")


if __name__ == "__main__":
    main()
