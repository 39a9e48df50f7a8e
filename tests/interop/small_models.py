"""Small models whose every weight matters, as folders."""

import torch
from decoding import Rows

from nutshell import checkpoint
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.tokenizer import Tokenizer

TEXTS = ["the cat sat on the mat, naïve café; 日本語 and 12 + 345 = 357\n\n  so it is, isn't it", "lower lowest low"] * 9
CHATS = [
    [{"role": "user", "content": "What is 12 + 345? It's naïve, 日本語"}],
    [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "the cat\n\n  sat   "}],
    [{"role": "user", "content": "low"}, {"role": "assistant", "content": "lower"}, {"role": "user", "content": "lowest"}],
]


def noisy(model):
    """Drawn weights and noise: output projections of zero would hide attention and MLP, norm weights of 1 themselves."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def save_folder(folder, *, pattern="qwen2", **changes):
    """A model folder with drawn weights and a small tokenizer."""
    tok = Tokenizer.train(TEXTS, vocab_size=320, pattern=pattern)
    shape = {"depth": 2, "width": 64, "heads": 4, "kv_heads": 2, "head_dim": 16, "context": 256}
    portable = {"architecture": "portable", "mlp_width": 96, "window_pattern": "L"}
    gpt2 = {**portable, "kv_heads": 4, "tied": True}
    more = {"speed": {}, "portable": portable, "gpt2": gpt2}[changes.get("architecture", "portable")]
    config = ModelConfig(**{**shape, **more, "vocab_size": tok.vocab_size, "bos_id": tok.bos_id, **changes})
    torch.manual_seed(0)
    return checkpoint.save_model_folder(folder, noisy(build_model(config)), tok)


def greedy(model, prompt, count):
    """The `count` most likely tokens behind a prompt, one pass from the start for each. (Whole rows would not do: there a start
    token hides what is before it, in decoding, as elsewhere, it does not.)"""
    ids = list(prompt)
    for _ in range(count):
        logits = Rows(model, 1).feed(torch.tensor([ids]), last_only=True)
        ids.append(int(logits[0, -1].argmax()))
    return ids[len(prompt) :]
