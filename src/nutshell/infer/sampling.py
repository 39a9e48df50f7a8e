"""How the next token is chosen, for many rows at once and each row with its own random numbers. Without torch.

Legend: B rows, V vocabulary.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from nutshell.infer.grammar import Grammar
from nutshell.tokenizer._bpe import draw as native_draw

Logits = NDArray[np.float32]

MIN_TEMPERATURE = 1e-6  # below it fp32 cannot tell the second best from impossible
MIN_PENALTY = 1e-6  # below it fp32 logits become infinite
MOST_TOKENS = 1 << 31  # that a vocabulary could have
MAX_TOP_LOGPROBS = 100


class DamagedModelError(RuntimeError):
    """Nothing can be drawn from what a model says."""

    exit_code = 1

    def __init__(self) -> None:
        super().__init__("the model's output is NaN or infinite: its weights are damaged, or its training diverged.")


class Draw(NamedTuple):
    """How one token is drawn: what of `Sampling` is needed for it, and the number that decides."""

    temperature: float
    top_k: int
    top_p: float
    min_p: float
    uniform: float
    """In 0..1: where the cumulative distribution is inverted."""

    @property
    def restricted(self) -> bool:
        """Whether some tokens are left out."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0


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
        texts = isinstance(stop, list | tuple) and all(isinstance(text, str) and text for text in stop)
        biases = isinstance(self.logit_bias, Mapping) and all(
            _is_whole(id, 0) and _is_number(bias, -100, 100) for id, bias in self.logit_bias.items()
        )
        penalty, tops = self.repetition_penalty, self.top_logprobs
        for name, fine, accepted in (
            ("max_tokens", _is_whole(self.max_tokens, 1), "1 or more"),
            ("temperature", _is_number(self.temperature, 0, sys.float_info.max), "a finite number of 0 or more; 0 is greedy"),
            ("top_k", _is_whole(self.top_k, 0), "0 (off) or more"),
            ("top_p", _is_number(self.top_p, 0, 1) and self.top_p > 0, "above 0, up to 1 (off)"),
            ("min_p", _is_number(self.min_p, 0, 1), "0 (off) to 1"),
            ("repetition_penalty", _is_number(penalty, 0, 10) and penalty > 0, "above 0, up to 10; 1 is off"),
            ("presence_penalty", _is_number(self.presence_penalty, -2, 2), "-2 to 2; 0 is off"),
            ("frequency_penalty", _is_number(self.frequency_penalty, -2, 2), "-2 to 2; 0 is off"),
            ("logit_bias", biases, "numbers of -100 to 100 by token id"),
            ("seed", self.seed is None or _is_whole(self.seed), "a whole number or None"),
            ("stop", texts, "texts of at least one character"),
            ("top_logprobs", tops is None or _is_whole(tops, 0, MAX_TOP_LOGPROBS), f"None (off) or 0 to {MAX_TOP_LOGPROBS}"),
        ):
            if not fine:
                raise ValueError(f"{name} is {getattr(self, name)!r}; accepted: {accepted}.")
        object.__setattr__(self, "stop", tuple(stop))

    @property
    def adjusts(self) -> bool:
        """Whether logits are changed before a token is chosen."""
        penalties = (self.repetition_penalty, self.presence_penalty, self.frequency_penalty)
        return penalties != (1, 0, 0) or bool(self.logit_bias) or self.grammar is not None

    def draw(self, random: Random) -> Draw | None:
        """How the next token is drawn; None where the likeliest is taken. A token takes one number of its own row's generator, so
        it does not depend on the rows beside it. `random.Random` and not torch.Generator: a number costs 50 ns, and a seed means
        the same on every device."""
        if self.temperature == 0:
            return None
        top_k = min(self.top_k, MOST_TOKENS)
        return Draw(max(self.temperature, MIN_TEMPERATURE), top_k, self.top_p, self.min_p, random.random())

    def random(self, *stream: int) -> Random:
        """The random numbers of one row: of the seed and `stream`, or of the machine's entropy without a seed."""
        return Random() if self.seed is None else Random("/".join(str(part) for part in (self.seed, *stream)))


def _is_whole(value: object, least: float = -math.inf, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object, least: float, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most


def draw(logits: Logits, draws: Sequence[Draw]) -> list[int]:
    """Invert the cumulative distribution of each row of logits (B, V) at its uniform number: (B,). `draw_in_torch` does so on an
    accelerator."""
    assert logits.dtype == np.float32
    assert logits.strides[1] == logits.itemsize
    stride = logits.strides[0] // logits.itemsize
    return native_draw((logits.ctypes.data, (len(logits) - 1) * stride + logits.shape[1]), stride, logits.shape[1], draws)


def adjusted(logits: Logits, sampling: Sampling, prompt: Sequence[int], reply: Sequence[int]) -> Logits:
    """Logits (V,) of one row after penalties and biases; a token id that the vocabulary lacks changes nothing."""
    logits = logits.copy()
    if sampling.repetition_penalty != 1:
        seen = sorted({*prompt, *reply})
        values, penalty = logits[seen], np.float32(max(sampling.repetition_penalty, MIN_PENALTY))
        logits[seen] = np.where(values > 0, values / penalty, values * penalty)
    if reply and (sampling.presence_penalty or sampling.frequency_penalty):
        counts = Counter(reply)
        times = np.array(list(counts.values()), dtype=np.float32)
        logits[list(counts)] -= np.float32(sampling.presence_penalty) + np.float32(sampling.frequency_penalty) * times
    for token_id, bias in sampling.logit_bias.items():
        if token_id < len(logits):
            logits[token_id] += bias
    return logits


def log_probabilities(logits: Logits, chosen: Sequence[int], count: int) -> tuple[list[float], list[list[tuple[int, float]]]]:
    """Of each row of logits (B, V): the log-probability of its token chosen (B,), and its `count` likeliest tokens.

    Of the raw fp32 logits, before temperature and restrictions, as evaluation harnesses expect. Where the chosen token
    is as likely as the likeliest it stands first, so that a greedy choice is recognised by its id and by its number.
    DamagedModelError where they are no numbers.
    """
    largest = logits.max(axis=1, keepdims=True)
    if not np.isfinite(largest).all():
        raise DamagedModelError
    shifted = logits - largest
    table = shifted - np.log(np.exp(shifted).sum(axis=1, dtype=np.float64, keepdims=True)).astype(np.float32)
    own = table[np.arange(len(table)), chosen].tolist()
    count = min(count, table.shape[1])
    places = np.argpartition(-table, max(0, count - 1), axis=1)[:, :count]
    tops = []
    for token_id, logprob, row, ids in zip(chosen, own, table, places, strict=True):
        top = sorted(((int(id), float(row[id])) for id in ids), key=lambda entry: (-entry[1], entry[0]))
        if top and logprob == top[0][1] and token_id != top[0][0]:
            rest = [entry for entry in top if entry[0] != token_id]
            top = [(token_id, logprob), *rest][:count]
        tops.append(top)
    return own, tops
