# mypy: ignore-errors
# (transformers sets attributes that no checker sees)
"""The `speed` architecture of nutshell for transformers (4.51 or later): the folder that holds this file opens with

    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)

Legend: B rows, T tokens, S keys, C model width, H query heads, K key/value heads, D head width, V vocabulary.

It stands alone, so that the folder needs torch and transformers only. The ideas (smear, value embeddings, residual scales,
backout, softcap, queries and keys normed after rotation) are switches of config.json; their formulas and sources are in
nutshell's docs/design.md.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

SMEAR_CHANNELS, VALUE_GATE_CHANNELS = 24, 12


class NutshellConfig(PretrainedConfig):
    model_type = "nutshell"
    attribute_map = {  # noqa: RUF012
        "num_hidden_layers": "depth",
        "hidden_size": "width",
        "num_attention_heads": "heads",
        "num_key_value_heads": "kv_heads",
        "max_position_embeddings": "context",
    }

    def __init__(
        self, vocab_size=32768, depth=12, width=768, heads=6, kv_heads=6, head_dim=128, context=2048, window_pattern="SSSL",
        short_window=0, bos_id=0, rotary_base=100_000.0, smear=True, backout=True, value_embeddings=True, residual_scales=True,
        softcap=15.0, qk_scale=1.2, **more,
    ):  # fmt: skip
        self.vocab_size, self.depth, self.width, self.heads, self.kv_heads = vocab_size, depth, width, heads, kv_heads
        self.head_dim, self.context, self.window_pattern, self.bos_id = head_dim, context, window_pattern, bos_id
        self.short_window = short_window
        self.rotary_base, self.softcap, self.qk_scale = rotary_base, softcap, qk_scale
        self.smear, self.backout, self.residual_scales = smear, backout, residual_scales
        self.value_embeddings = value_embeddings
        more["tie_word_embeddings"] = False
        super().__init__(**more)

    def window(self, layer: int) -> int:
        """How many tokens a layer attends over, itself included."""
        short = layer < self.depth - 1 and self.window_pattern[layer % len(self.window_pattern)] == "S"
        return (self.short_window or max(1, self.context // 4)) if short else self.context

    def has_value_embedding(self, layer: int) -> bool:
        return self.value_embeddings and layer % 2 == (self.depth - 1) % 2


def norm(x: Tensor) -> Tensor:
    return F.rms_norm(x, (x.size(-1),), eps=1e-6)


class Attention(nn.Module):
    def __init__(self, config: NutshellConfig, layer: int):
        super().__init__()
        self.config, self.layer = config, layer
        self.q = nn.Linear(config.width, config.heads * config.head_dim, bias=False)
        self.k = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.v = nn.Linear(config.width, config.kv_heads * config.head_dim, bias=False)
        self.out = nn.Linear(config.heads * config.head_dim, config.width, bias=False)
        if config.has_value_embedding(layer):
            self.value_gate = nn.Linear(VALUE_GATE_CHANNELS, config.kv_heads, bias=False)

    def forward(self, x: Tensor, turn: tuple[Tensor, Tensor], seen: Tensor, value_embedding: Tensor | None, cache) -> Tensor:
        config = self.config
        q, k, v = (projection(x).unflatten(-1, (-1, config.head_dim)) for projection in (self.q, self.k, self.v))
        q, k = (config.qk_scale * norm(rotate(heads, *turn)) for heads in (q, k))
        if value_embedding is not None:
            gate = 3 * torch.sigmoid(self.value_gate(x[..., :VALUE_GATE_CHANNELS]))  # (B, T, K)
            v = v + gate.unsqueeze(-1) * value_embedding.view(v.shape)
        q, k, v = (heads.transpose(1, 2) for heads in (q, k, v))
        if cache is not None:
            k, v = cache.update(k, v, self.layer)  # (B, K, S, D)
        k, v = (heads.repeat_interleave(config.heads // config.kv_heads, dim=1) for heads in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        return self.out(y.transpose(1, 2).flatten(2))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding of x (B, T, H, D), its halves turned by minus the position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos + b * sin, b * cos - a * sin], dim=-1)


class MLP(nn.Module):
    def __init__(self, config: NutshellConfig):
        super().__init__()
        self.up = nn.Linear(config.width, 4 * config.width, bias=False)
        self.down = nn.Linear(4 * config.width, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.relu(self.up(x)).square())


class Block(nn.Module):
    def __init__(self, config: NutshellConfig, layer: int):
        super().__init__()
        self.attention, self.mlp = Attention(config, layer), MLP(config)


class NutshellForCausalLM(PreTrainedModel, GenerationMixin):
    config_class = NutshellConfig
    base_model_prefix = ""
    _no_split_modules = ["Block"]  # noqa: RUF012
    _supports_sdpa = True

    def __init__(self, config: NutshellConfig):
        super().__init__(config)
        layers, kv_width = range(config.depth), config.kv_heads * config.head_dim
        self.embedding = nn.Embedding(config.vocab_size, config.width)
        gated = [str(layer) for layer in layers if config.has_value_embedding(layer)]
        self.value_embeddings = nn.ModuleDict({layer: nn.Embedding(config.vocab_size, kv_width) for layer in gated})
        self.blocks = nn.ModuleList(Block(config, layer) for layer in layers)
        self.lm_head = nn.Linear(config.width, config.vocab_size, bias=False)
        if config.residual_scales:
            self.residual_scale = nn.Parameter(torch.ones(config.depth))
            self.embedding_scale = nn.Parameter(torch.zeros(config.depth))
        if config.smear:
            self.smear_gate = nn.Linear(SMEAR_CHANNELS, 1, bias=False)
            self.smear_lambda = nn.Parameter(torch.zeros(1))
        if config.backout and config.depth >= 3:
            self.backout = nn.Parameter(torch.full((1,), 0.2))
        self.post_init()

    def get_input_embeddings(self):
        return self.embedding

    def set_input_embeddings(self, embedding):
        self.embedding = embedding

    def get_output_embeddings(self):
        return self.lm_head

    def prepare_inputs_for_generation(self, input_ids, past_key_values=None, attention_mask=None, **more):
        """With a cache just the new tokens go in, and the one before them, whose embedding is smeared into the first."""
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        return {
            "input_ids": input_ids[:, past:],
            "previous_ids": input_ids[:, past - 1] if past else None,
            "past_key_values": past_key_values,
            "attention_mask": attention_mask,
            "use_cache": more.get("use_cache", True),
        }

    def embed(self, ids: Tensor, previous_ids: Tensor | None) -> Tensor:
        x = norm(self.embedding(ids))
        if not self.config.smear:
            return x
        first = torch.zeros_like(x[:, :1]) if previous_ids is None else norm(self.embedding(previous_ids)).unsqueeze(1)
        gate = self.smear_lambda * torch.sigmoid(self.smear_gate(x[..., :SMEAR_CHANNELS]))
        return x + gate * (ids != self.config.bos_id).unsqueeze(-1) * torch.cat([first, x[:, :-1]], dim=1)

    def forward(
        self, input_ids, past_key_values=None, attention_mask=None, previous_ids=None, labels=None, use_cache=None, **_
    ):  # fmt: skip
        """Logits (B, T, V) in fp32. attention_mask (B, S) is 0 where a row is padded; it may be padded on either side."""
        config, (B, T) = self.config, input_ids.shape
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache()
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        keys = torch.arange(past + T, device=input_ids.device)
        queries = keys[past:].unsqueeze(1)
        real = torch.ones_like(keys, dtype=torch.bool) if attention_mask is None else attention_mask.bool().view(B, 1, 1, -1)
        x = x0 = self.embed(input_ids, previous_ids)
        turn = rotary(queries.view(1, T, 1, 1), config, x.dtype)
        itself = keys == queries  # padding sees itself, or its softmax would be of nothing
        for layer, block in enumerate(self.blocks):
            if config.residual_scales:
                x = self.residual_scale[layer] * x + self.embedding_scale[layer] * x0
            table = self.value_embeddings[str(layer)] if config.has_value_embedding(layer) else None
            seen = (keys <= queries) & (keys > queries - config.window(layer)) & real | itself  # (T, S) or (B, 1, T, S)
            x = x + block.attention(norm(x), turn, seen, None if table is None else table(input_ids), past_key_values)
            x = x + block.mlp(norm(x))
            if layer == config.depth // 2:
                middle = x
        if config.backout and config.depth >= 3:
            x = x - self.backout * middle
        logits = self.lm_head(norm(x)).float()
        if config.softcap:
            logits = config.softcap * torch.tanh(logits / config.softcap)
        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        return CausalLMOutputWithPast(loss, logits, past_key_values)  # the third is called `cache` in newer versions


def rotary(positions: Tensor, config: NutshellConfig, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Cosines and sines (1, T, 1, D / 2)."""
    channels = torch.arange(0, config.head_dim, 2, dtype=torch.float64, device=positions.device)
    angle = positions * config.rotary_base ** (-channels / config.head_dim)
    return angle.cos().to(dtype), angle.sin().to(dtype)
