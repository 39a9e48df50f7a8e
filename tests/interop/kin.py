"""Folders as transformers writes them for Llama, SmolLM2, Qwen3 and a small Llama for stories: their shapes and their kinds of
tokenizers, small and with drawn weights."""

import json
from dataclasses import dataclass, field

from small_models import TEXTS, noisy

from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.huggingface import added_token, alphabet

SHAPE = {
    "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
}  # fmt: skip
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
QWEN2 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def behind(first):
    """GPT-2's pattern behind another cut; a Split of its own leaves nothing for it to do."""
    second = {**BYTE_LEVEL, "use_regex": first["type"] != "Split"}
    return {"type": "Sequence", "pretokenizers": [first, second]}


def split(pattern):
    return behind({"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False})


@dataclass(frozen=True)
class Kin:
    kind: str
    """Of the classes of transformers: Llama or Qwen3."""
    config: dict
    cut: dict
    special: tuple[str, ...] = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    model: dict = field(default_factory=dict)
    normalizer: dict | None = None


KIN = {
    "smollm2": Kin(
        "Llama", {"num_key_value_heads": 2, "tie_word_embeddings": True, "rms_norm_eps": 1e-5, "rope_theta": 1e5},
        behind({"type": "Digits", "individual_digits": True}),
    ),
    "llama3": Kin(
        "Llama", {"num_key_value_heads": 1, "head_dim": 32, "rms_norm_eps": 1e-5, "rope_theta": 5e5},
        split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")), ("<|begin_of_text|>", "<|end_of_text|>"), {"ignore_merges": True},
    ),
    "stories": Kin("Llama", {"rms_norm_eps": 1e-2}, BYTE_LEVEL, ("<|endoftext|>",)),
    "qwen3": Kin(
        "Qwen3", {"num_key_value_heads": 2, "head_dim": 16, "rope_theta": 1e6}, split(QWEN2), normalizer={"type": "NFC"},
    ),
    "qwen3 tied": Kin("Qwen3", {"num_key_value_heads": 2, "head_dim": 32, "tie_word_embeddings": True}, split(QWEN2)),
}  # fmt: skip


def save_words(folder, kin):
    """A `tokenizer.json` of this kind; the number of its tokens."""
    folder.mkdir(parents=True, exist_ok=True)
    learned = Tokenizer.train(TEXTS, vocab_size=300, pattern=QWEN2)
    names = ["".join(alphabet()[byte] for byte in learned.token_bytes(id)) for id in range(learned.vocab_size - 9)]
    merges = [f"{names[left]} {names[right]}" for left, right in learned.merges]
    vocabulary = {name: id for id, name in enumerate(names)}
    content = {
        "version": "1.0",
        "added_tokens": [{"id": len(names) + i, **added_token(name)} for i, name in enumerate(kin.special)],
        "normalizer": kin.normalizer,
        "pre_tokenizer": kin.cut,
        "post_processor": BYTE_LEVEL,
        "decoder": BYTE_LEVEL,
        "model": {"type": "BPE", "vocab": vocabulary, "merges": merges, **kin.model},
    }
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return len(names) + len(kin.special)


def save_kin(transformers, folder, name):
    """A folder as `save_pretrained` leaves it, and the model that it holds."""
    kin = KIN[name]
    size = save_words(folder, kin)
    ids = {"vocab_size": size, "bos_token_id": size - len(kin.special), "eos_token_id": size - 1}
    config = getattr(transformers, f"{kin.kind}Config")(**SHAPE, **ids, **kin.config)
    model = noisy(getattr(transformers, f"{kin.kind}ForCausalLM")(config))
    model.save_pretrained(folder)
    return model
