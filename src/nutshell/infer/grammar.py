"""JSON that always parses: before a token is drawn, those that could not go on with it are ruled out.

The package `llguidance` (https://github.com/guidance-ai/llguidance) makes a grammar over bytes of a JSON schema and walks the
vocabulary as a tree, so that the tokens that may come next are found in about 0.1 ms of 65,536. It is optional.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

ANY_OBJECT: Mapping[str, Any] = {"type": "object"}
WHITESPACE = r"[ \n]{0,12}"
"""Between two signs of JSON: enough for an indented line, and an end to what a weak model would repeat for ever."""
MAX_SYMBOLS = 20_000
"""Of a grammar: 2,000 optional fields, which take half a second to compile. What takes longer is refused."""


class GrammarError(RuntimeError):
    """The schema asks for too much, or for characters that the vocabulary lacks. The model is well."""


class JsonGrammars:
    """Makes grammars for one tokenizer, whose tokens `ends` end a reply. ImportError where `llguidance` is not installed."""

    def __init__(self, tok: Any, ends: Iterable[int]) -> None:
        import llguidance

        self._library = llguidance
        words = llguidance.TokenizerWrapper(_Words(tok))
        self._tokenizer = llguidance.LLTokenizer(words, n_vocab=tok.vocab_size, eos_token=sorted(ends))

    def compile(self, schema: Mapping[str, Any] = ANY_OBJECT) -> Grammar:
        """The grammar of the JSON texts that fit `schema`. ValueError where it asks for what a grammar cannot promise."""
        library = self._library
        limits = library.LLParserLimits(max_grammar_size=MAX_SYMBOLS, verbose_errors=False)
        try:
            text = library.LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides={"whitespace_pattern": WHITESPACE})
            matcher = library.LLMatcher(self._tokenizer, text, log_level=0, limits=limits)
            matcher.compute_bitmask()  # some limits are only met here
            wrong = matcher.get_error()
        except ValueError as error:
            wrong = str(error)
        if wrong:
            raise ValueError(f"this schema cannot be followed: {wrong.splitlines()[0]}")
        return Grammar(matcher)


class Grammar:
    """What a reply may be; any number of replies follow it at once."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def start(self) -> GrammarState:
        return GrammarState(self._matcher.deep_copy())


class GrammarState:
    """Where in the grammar one reply is."""

    def __init__(self, matcher: Any) -> None:
        self._matcher = matcher

    def rule_out(self, logits: NDArray[np.float32]) -> None:
        """Set the logits (V,) of tokens that cannot come next to -inf. GrammarError where nothing can."""
        allowed = np.frombuffer(self._matcher.compute_logit_bias(), dtype=np.uint8)
        if self._matcher.is_error():  # then it allows the end of the reply, in the middle of the JSON
            raise GrammarError(f"this reply cannot go on as its schema asks: {self._matcher.get_error().splitlines()[0]}")
        logits[allowed == 0] = -np.inf

    def take(self, token_id: int) -> bool:
        """The reply goes on with this token. Returns whether it is complete: nothing may come behind it."""
        fits = self._matcher.consume_token(token_id)  # not where no token spells what must come; the next `rule_out` says so
        return bool(fits and self._matcher.is_stopped())


class _Words:
    """A tokenizer as `llguidance` reads it: the bytes of each token."""

    def __init__(self, tok: Any) -> None:
        self._tok = tok
        self.tokens = [tok.token_bytes(token_id) for token_id in range(tok.vocab_size)]
        self.special_token_ids = sorted(tok.special_tokens.values())
        self.bos_token_id = self.eos_token_id = tok.bos_id

    def __call__(self, text: bytes) -> list[int]:
        ids: list[int] = self._tok.encode(text.decode("utf-8"))
        return ids
