"""Bits per byte that each type of GGUF costs, on a run's own validation text.

    python benchmarks/quantization.py runs/portable                    the newest base model of a run of --architecture portable
    python benchmarks/quantization.py runs/portable --tokens 65536     quicker

Each file is exported, read back with the `gguf` package (pip install gguf) and turned into fp32 weights, with which the model is
scored in fp32. llama.cpp computes with rounded activations too, which is not in these numbers.
"""

import argparse
import tempfile
from pathlib import Path

import torch
from gguf import GGUFReader, quants

from nutshell.checkpoint import latest, load_model
from nutshell.data.loader import PretrainLoader
from nutshell.data.shards import open_shards
from nutshell.eval.bpb import bits_per_byte
from nutshell.interop.gguf import TYPES, export_gguf, ggml_name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--tokens", type=int, default=262_144)
    options = parser.parse_args()
    folder = latest(options.run / "pretrain")
    model, tok, _ = load_model(folder)
    if not model.config.qk_norm:
        parser.error(f"{folder} has Llama's shape, whose queries lie otherwise in a GGUF. Accepted: portable with qk_norm.")
    loader = PretrainLoader(open_shards(options.run / "data"), tok.encode_batch, tok.bos_id, 8, model.config.context + 1)
    batches = loader.val_batches(options.tokens)
    exact = bits_per_byte(model, batches, tok.token_byte_lengths())
    millions = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"{millions:.2f}M parameters, depth {model.config.depth}, width {model.config.width}, {options.tokens:,} tokens")
    print(f"{'weights':8} {'MB':>8} {'bpb':>8} {'cost':>8}\n{'model':8} {'':8} {exact:8.4f}")
    names = list(model.state_dict())
    with tempfile.TemporaryDirectory() as scratch:
        for kind in TYPES:
            file = export_gguf(folder, Path(scratch) / kind, kind)
            tensors = {t.name: torch.tensor(quants.dequantize(t.data, t.tensor_type)) for t in GGUFReader(file).tensors}
            model.load_state_dict({name: tensors[ggml_name(name)] for name in names})
            bpb = bits_per_byte(model, batches, tok.token_byte_lengths())
            print(f"{kind:8} {file.stat().st_size / 1e6:8.2f} {bpb:8.4f} {bpb - exact:+8.4f}")


if __name__ == "__main__":
    main()
