"""One reply in the making: what its tokens mean, with tool calls, stop strings and text that is complete UTF-8.

A request knows nothing of batches. The engine asks which tokens are `pending` (not yet in the cache), and hands it each token it
sampled; `accept` answers with the deltas a reader sees.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Literal

from nutshell.infer.calculator import calculate
from nutshell.infer.sampling import Sampling
from nutshell.infer.tools import Tool

Finish = Literal["stop", "length", "cancelled"]
Kind = Literal["text", "tool", "output"]


@dataclass(slots=True)
class Delta:
    """One token of a reply as it is produced."""

    request: Request
    token_id: int
    """-1 where the delta is no token: text that was held back, or the end of a cancelled request."""
    text: str = ""
    """Complete characters that became readable with this token; never a special token's name."""
    kind: Kind = "text"
    """`tool` is what the model wrote for its tool, `output` the result that was forced in."""
    logprob: float | None = None
    top: Sequence[tuple[int, float]] = ()
    finish: Finish | None = None


@dataclass(frozen=True)
class Completion:
    """A whole reply."""

    ids: list[int]
    mask: list[int]
    """1 = the model sampled this token, 0 = it was forced in."""
    text: str
    """What the model says, without tool calls and their results."""
    finish: Finish


@dataclass(frozen=True)
class Vocabulary:
    """The tokenizer with the ids that the engine acts upon."""

    tok: Any
    ends: frozenset[int]
    python_start: int
    python_end: int
    output_start: int
    output_end: int

    @classmethod
    def of(cls, tok: Any) -> Vocabulary:
        """A tokenizer of others may lack the tokens of a chat or of tools: -1 stands for these, which no model ever says."""
        known = tok.special_tokens
        names = [f"<|{name}|>" for name in ("python_start", "python_end", "output_start", "output_end")]
        return cls(tok, frozenset(tok.end_ids), *(known[name] if set(names) <= set(known) else -1 for name in names))


@dataclass(eq=False, repr=False)
class Request:
    """A prompt, what was asked for, and the reply so far."""

    vocabulary: Vocabulary
    prompt: list[int]
    sampling: Sampling
    limit: int
    """Most tokens of the reply: max_tokens or what the context has left."""
    number: int = 0
    """Place in the order of arrival."""
    tools: bool = True
    tool: Tool = calculate
    streaming: bool = True
    """Whether deltas are wanted; without them text is only decoded once, at the end."""
    stream: tuple[int, ...] = ()
    """Which random numbers of the seed are this request's."""
    dropped: int = 0
    """Oldest messages that were left out because the conversation is longer than the context."""
    truncated: bool = False
    """Whether the beginning of the last message was cut too."""
    mask: list[int] = field(default_factory=list)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.random = self.sampling.random(*self.stream)
        self.grammar = self.sampling.grammar.start() if self.sampling.grammar else None
        self.tokens = list(self.prompt)  # and the reply
        self.blocks: list[int] = []  # of the KV cache; these five are the scheduler's
        self.cached = 0  # tokens that are in them
        self.known = 0  # full blocks that others may find
        self.parent = 0  # name of the last of these
        self.cancelled = False
        self.error: BaseException | None = None  # that ended it
        self.answer: Future[Any] | None = None  # of a slow tool; until it is done nothing is pending
        self._inside_call = False
        self._expression: list[int] = []
        self._spoken: list[list[int]] = [[]]  # before, between and behind calls
        self._held = ""  # text that may yet turn out to begin a stop string
        watched = self.streaming or bool(self.sampling.stop)
        self._decoder = self.vocabulary.tok.stream() if watched else None
        self._text: list[str] = []

    @property
    def ids(self) -> list[int]:
        """The reply so far."""
        return self.tokens[len(self.prompt) :]

    @property
    def pending(self) -> list[int]:
        """Tokens that the model must see next; none while a tool is at work and at the end."""
        return [] if self.finish or self.answer is not None else self.tokens[self.cached :]

    def completion(self) -> Completion:
        text = "".join(self._text) if self._decoder else "".join(map(self.vocabulary.tok.decode, self._spoken))
        return Completion(self.ids, self.mask, text, self.finish or "cancelled")

    def cancel(self, error: BaseException | None = None) -> list[Delta]:
        """End it before its time, because nobody wants it any more or for an error."""
        self.finish, self.error = "cancelled", error
        if self.answer is not None:
            self.answer.cancel()  # where its tool has not begun, it never does
        return [Delta(self, -1, finish="cancelled")] if self.streaming else []

    def accept(self, token_id: int, logprob: float | None = None, top: Sequence[tuple[int, float]] = ()) -> list[Delta]:
        """Take the token the model sampled, and what must be forced behind it, or set `finish`."""
        self.tokens.append(token_id)
        self.mask.append(1)
        forced: list[int] = []
        kind: Kind = "tool" if self._inside_call else "text"
        tail = ""
        if token_id in self.vocabulary.ends:
            self.finish = "stop"
        elif self._inside_call:
            forced = self._inside(token_id)
        elif self.tools and token_id == self.vocabulary.python_start:
            self._inside_call, self._expression, kind = True, [], "tool"
            self._spoken.append([])
            tail = self._show("", last=True) if self._decoder else ""
        else:
            self._spoken[-1].append(token_id)
            if self.grammar is not None and self.grammar.take(token_id):
                self.finish = "stop"
        forced = self._within_limit(forced)
        deltas = [Delta(self, -1, tail)] if tail else []
        if self._decoder:
            deltas.append(Delta(self, token_id, self._read(token_id, kind), kind, logprob, top))
        if forced:
            deltas += self._force(forced)
        if self.finish and deltas:
            deltas[-1].finish = self.finish
        return deltas if self.streaming else []

    def resume(self) -> list[Delta]:
        """Go on where a slow tool has answered meanwhile."""
        if self.answer is None or not self.answer.done():
            return []
        answer, self.answer = self.answer, None
        try:
            forced = self._output(answer.result())
        except Exception as error:  # the tool itself is broken: this reply ends, others go on
            return self.cancel(error)
        deltas = self._force(self._within_limit(forced))
        if self.finish:
            deltas.append(Delta(self, -1, finish=self.finish))
        return deltas if self.streaming else []

    def _within_limit(self, forced: list[int]) -> list[int]:
        """Ends the reply where `forced` fills it; what does not fit is left out whole: half a result would be a wrong one."""
        length = len(self.mask) + len(forced)
        if self.finish is None and length >= self.limit:
            self.finish = "length"
        return forced if length <= self.limit else []

    def _output(self, result: str | None) -> list[int]:
        if result is None:
            return []
        return [self.vocabulary.output_start, *self.vocabulary.tok.encode(result), self.vocabulary.output_end]

    def _inside(self, token_id: int) -> list[int]:
        """A token of the expression; what must be forced behind it: the result, once the expression is complete."""
        words = self.vocabulary
        if token_id == words.python_start:
            self._expression = []
        elif token_id != words.python_end:
            self._expression.append(token_id)
        else:
            self._inside_call = False
            try:
                result = self.tool(words.tok.decode(self._expression))
                if not isinstance(result, Future):
                    return self._output(result)
            except Exception as error:  # ends this reply alone, as that of a slow tool does
                result = Future()
                result.set_exception(error)
            self.answer = result
        return []

    def _force(self, tokens: list[int]) -> list[Delta]:
        self.tokens += tokens
        self.mask += [0] * len(tokens)
        if self._decoder is None or not tokens:
            return []
        deltas = [Delta(self, token, self._decoder.push(token), "output") for token in tokens]
        deltas[-1].text += self._decoder.flush()
        return deltas

    def _read(self, token_id: int, kind: Kind) -> str:
        """The text that becomes readable with this token."""
        assert self._decoder is not None
        text = self._decoder.push(token_id)
        if kind == "text":
            return self._show(text, last=self.finish is not None)
        ends = self.finish is not None or token_id == self.vocabulary.python_end
        return text + self._decoder.flush() if ends else text

    def _show(self, text: str, last: bool) -> str:
        """What of the held text and `text` can be shown now; ends the reply where a stop string appears."""
        assert self._decoder is not None
        text = self._held + text + (self._decoder.flush() if last else "")
        self._held = ""
        stops = self.sampling.stop
        found = [place for stop in stops if (place := text.find(stop)) >= 0]
        if found:
            text, self.finish = text[: min(found)], "stop"
        elif stops and not last:
            longest = min(max(map(len, stops)) - 1, len(text))
            for size in range(longest, 0, -1):
                if any(stop.startswith(text[-size:]) for stop in stops):
                    text, self._held = text[:-size], text[-size:]
                    break
        self._text.append(text)
        return text
