"""How the next token is chosen, for many rows at once and each row with its own random numbers.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random

import torch
from torch import Tensor

from nutshell.infer.grammar import Grammar

try:
    from nutshell.tokenizer._bpe import draw as native_draw
except ImportError:  # an extension that was built before it had one
    native_draw = None  # type: ignore[assignment]

MIN_TEMPERATURE = 1e-6  # below it fp32 cannot tell the second best from impossible
MAX_TOP_LOGPROBS = 100


class DamagedModelError(RuntimeError):
    """Nothing can be drawn from what a model says."""

    exit_code = 1

    def __init__(self) -> None:
        super().__init__("the model's output is NaN or infinite: its weights are damaged, or its training diverged.")


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """What one request wants; checked when it is made."""

    max_tokens: int = 256
    """Longest reply in tokens, forced tool output included."""
    temperature: float = 1.0
    """0 takes the most likely token; 1 draws from the model's own distribution."""
    top_k: int = 0
    """Draw among this many most likely tokens; 0 is off."""
    top_p: float = 1.0
    """Draw among the most likely tokens that together reach this probability (arXiv 1904.09751); 1 is off."""
    min_p: float = 0.0
    """Draw among tokens at least this likely relative to the likeliest (arXiv 2407.01082); 0 is off."""
    repetition_penalty: float = 1.0
    """Logits of tokens that the prompt or the reply holds are divided by this, negative ones multiplied (arXiv 1909.05858)."""
    presence_penalty: float = 0.0
    """Taken off the logits of tokens that the reply holds."""
    frequency_penalty: float = 0.0
    """Taken off the logit of a token as often as the reply holds it."""
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    """Added to the logits of these token ids, -100 to 100."""
    seed: int | None = None
    """The same seed draws the same random numbers; None differs each time. With native decoding the reply is then the same
    whatever else is generated at the time, in every dtype. In torch that holds in fp32; in bf16 and fp16 the rows beside it
    change how logits are rounded, and near ties may fall otherwise."""
    stop: tuple[str, ...] = ()
    """Texts that end the reply; they are not part of it."""
    grammar: Grammar | None = None
    """What the reply must be, for example JSON of a schema (`JsonGrammars.compile`). Tools are then off."""
    top_logprobs: int | None = None
    """Report the log-probability of each token and of this many most likely ones; None reports nothing."""

    def __post_init__(self) -> None:
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop or ()
        _require(
            isinstance(stop, list | tuple) and all(isinstance(text, str) and text for text in stop),
            "stop",
            self.stop,
            "texts of at least one character",
        )
        object.__setattr__(self, "stop", tuple(stop))
        _require(_is_whole(self.max_tokens) and self.max_tokens >= 1, "max_tokens", self.max_tokens, "1 or more")
        _require(
            _is_number(self.temperature) and 0 <= self.temperature < math.inf,
            "temperature",
            self.temperature,
            "a finite number of 0 or more; 0 takes the most likely token",
        )
        _require(_is_whole(self.top_k) and self.top_k >= 0, "top_k", self.top_k, "0 (off) or more")
        _require(_is_number(self.top_p) and 0 < self.top_p <= 1, "top_p", self.top_p, "above 0, up to 1 (off)")
        _require(_is_number(self.min_p) and 0 <= self.min_p <= 1, "min_p", self.min_p, "0 (off) to 1")
        penalty = self.repetition_penalty
        _require(_is_number(penalty) and 0 < penalty <= 10, "repetition_penalty", penalty, "above 0, up to 10; 1 is off")
        for name in ("presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            _require(_is_number(value) and -2 <= value <= 2, name, value, "-2 to 2; 0 is off")
        _require(
            isinstance(self.logit_bias, Mapping)
            and all(
                _is_whole(id) and id >= 0 and _is_number(bias) and -100 <= bias <= 100 for id, bias in self.logit_bias.items()
            ),
            "logit_bias",
            self.logit_bias,
            "numbers of -100 to 100 by token id",
        )
        _require(self.seed is None or _is_whole(self.seed), "seed", self.seed, "a whole number or None")
        _require(all(isinstance(text, str) and text for text in self.stop), "stop", stop, "texts of at least one character")
        _require(
            self.top_logprobs is None or (_is_whole(self.top_logprobs) and 0 <= self.top_logprobs <= MAX_TOP_LOGPROBS),
            "top_logprobs",
            self.top_logprobs,
            f"None (off) or 0 to {MAX_TOP_LOGPROBS}",
        )

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias) or self.grammar is not None

    def random(self, *stream: int) -> Random:
        """The random numbers of one row: of the seed and `stream`, or of the machine's entropy without a seed."""
        return Random() if self.seed is None else Random("/".join(str(part) for part in (self.seed, *stream)))


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)


def _require(fine: bool, name: str, value: object, accepted: str) -> None:
    if not fine:
        raise ValueError(f"{name} is {value!r}; accepted: {accepted}.")


def sample(logits: Tensor, sampling: Sampling | Sequence[Sampling], randoms: Random | Sequence[Random]) -> Tensor:
    """Next tokens of logits (V,) or (B, V): a tensor () or (B,) on the same device.

    Each row has its own settings and takes one number of its own generator, so what it draws does not depend on the
    rows beside it. `random.Random` and not torch.Generator: a number costs 50 ns, and a seed means the same on every
    device.
    """
    if logits.dim() == 1:
        return sample(logits.unsqueeze(0), sampling, randoms)[0]
    settings = [sampling] * len(logits) if isinstance(sampling, Sampling) else sampling
    generators = [randoms] * len(logits) if isinstance(randoms, Random) else randoms
    drawn = [row for row, setting in enumerate(settings) if setting.temperature > 0]
    if not drawn:
        return logits.argmax(dim=-1)
    some = logits if len(drawn) == len(settings) else logits[drawn]
    found = draw(some, [settings[row] for row in drawn], [generators[row].random() for row in drawn])
    if len(drawn) == len(settings):
        return found
    chosen = logits.argmax(dim=-1)
    chosen[drawn] = found
    return chosen


def adjusted(logits: Tensor, sampling: Sampling, prompt: Sequence[int], reply: Sequence[int]) -> Tensor:
    """Logits (V,) of one row after penalties and biases; a token id that the vocabulary lacks changes nothing."""
    logits = logits.clone()
    if sampling.repetition_penalty != 1:
        seen = torch.tensor(sorted({*prompt, *reply}), device=logits.device)
        values = logits[seen]
        logits[seen] = torch.where(values > 0, values / sampling.repetition_penalty, values * sampling.repetition_penalty)
    if reply and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(reply)
        times = torch.tensor(list(counts.values()), dtype=logits.dtype, device=logits.device)
        logits[list(counts)] -= sampling.presence_penalty + sampling.frequency_penalty * times
    for token_id, bias in sampling.logit_bias.items():
        if token_id < len(logits):
            logits[token_id] += bias
    return logits


def draw(logits: Tensor, settings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """Invert each row's cumulative distribution at its uniform number: (B, V) -> (B,). On CPU in native code."""
    if native_draw is None or logits.device.type != "cpu" or logits.dtype != torch.float32 or logits.stride(1) != 1:
        return draw_in_torch(logits, settings, uniforms)
    reach = (len(logits) - 1) * logits.stride(0) + logits.size(1)
    rows = [
        (max(setting.temperature, MIN_TEMPERATURE), setting.top_k, setting.top_p, setting.min_p, uniform)
        for setting, uniform in zip(settings, uniforms, strict=True)
    ]
    return torch.tensor(native_draw((logits.data_ptr(), reach), logits.stride(0), logits.size(1), rows))


def draw_in_torch(logits: Tensor, settings: Sequence[Sampling], uniforms: Sequence[float]) -> Tensor:
    """`draw` on any device: what the native code is tested against."""
    device, V = logits.device, logits.size(-1)
    exact = torch.float32 if device.type == "mps" else torch.float64  # 32k fp32 additions lose the rare tokens
    restricted = any(setting.top_k or setting.top_p < 1 or setting.min_p for setting in settings)
    logits, order = logits.float(), None
    top_k = [min(setting.top_k or V, V) for setting in settings]
    if restricted:
        logits, order = logits.topk(max(top_k), dim=-1)  # most likely first
    temperature = _column([max(setting.temperature, MIN_TEMPERATURE) for setting in settings], torch.float32, device)
    scaled = (logits - logits.amax(dim=-1, keepdim=True)) / temperature
    if restricted:
        position = torch.arange(scaled.size(-1), device=device)
        scaled = scaled.masked_fill(position >= _column(top_k, torch.long, device), -math.inf)
    probability = scaled.softmax(dim=-1)
    if restricted:
        top_p = _column([setting.top_p for setting in settings], exact, device)
        min_p = _column([setting.min_p for setting in settings], torch.float32, device)
        before = probability.cumsum(dim=-1, dtype=exact) - probability
        left_out = ((before >= top_p) & (top_p < 1)) | (probability < min_p * probability[:, :1])
        probability = probability.masked_fill(left_out, 0)  # the first always stays
    cumulative = probability.cumsum(dim=-1, dtype=exact)
    target = _column(uniforms, exact, device).clamp(max=1 - 1e-7) * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True).clamp(max=cumulative.size(-1) - 1)  # (B, 1)
    return (drawn if order is None else order.gather(1, drawn)).squeeze(1)


def _column(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device).unsqueeze(1)


def log_probabilities(logits: Tensor, chosen: Tensor, count: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """Of each row of logits (B, V): the log-probability of its token chosen (B,), and its `count` likeliest tokens.

    Of the raw fp32 logits, before temperature and restrictions, as evaluation harnesses expect. Where the chosen token
    is as likely as the likeliest it stands first, so that a greedy choice is recognised by its id and by its number.
    DamagedModelError where they are no numbers.
    """
    table = logits.float().log_softmax(dim=-1)
    own = table.gather(1, chosen.unsqueeze(1)).squeeze(1).tolist()
    if any(map(math.isnan, own)):
        raise DamagedModelError
    values, ids = table.topk(min(count, table.size(-1)), dim=-1)
    tops = []
    for token_id, logprob, row_ids, row_values in zip(chosen.tolist(), own, ids.tolist(), values.tolist(), strict=True):
        top = list(zip(row_ids, row_values, strict=True))
        if top and logprob == top[0][1] and token_id != top[0][0]:
            rest = [entry for entry in top if entry[0] != token_id]
            top = [(token_id, logprob), *rest][:count]
        tops.append(top)
    return own, tops
