"""`POST /v1/completions`: texts are continued as they are, and their own tokens scored where `echo` asks for `logprobs`."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import Response

from nutshell.infer.grammar import Grammar
from nutshell.serve.api import TextRequest
from nutshell.serve.chat import check_biases, json_grammar, sampling_of
from nutshell.serve.completions import Completion, Logprob
from nutshell.serve.errors import APIError
from nutshell.serve.models import LoadedModel
from nutshell.serve.scoring import Scored, score_prompt
from nutshell.serve.service import Service
from nutshell.serve.worker import RequestHandle


async def answer_texts(service: Service, request: Request) -> Response:
    """Take a slot for each choice of each prompt, tokenize off the event loop, and answer."""
    body = await service.read(request, TextRequest)
    offer, model = await service.model(body.model)
    check_biases(body, model)
    handle = service.reserve(model.worker, len(body.prompt) * (body.n or 1), "prompt" if len(body.prompt) > 1 else "n", request)
    try:
        prompts, dropped = await service.off_loop(_to_ids, body, model)
        grammar = await json_grammar(service, body, model)
        completion = TextCompletion(handle, model, offer.id, body, prompts)
        completion.note = {"nutshell": {"dropped_tokens": dropped}} if dropped else {}
        await completion.begin(grammar)
    except BaseException:
        handle.close()
        raise
    return await service.answer(completion, body, request)


def _to_ids(body: TextRequest, model: LoadedModel) -> tuple[list[list[int]], int]:
    """Prompts as token ids, with <|bos|> before texts, and how many tokens were left out where the request allows that. APIError
    for a prompt that the model cannot read."""
    prompts, dropped = [], 0
    for number, prompt in enumerate(body.prompt):
        ids = [model.tok.bos_id, *model.tok.encode(prompt)] if isinstance(prompt, str) else prompt
        if max(ids) >= model.tok.vocab_size:
            message = f"prompt {number} has the token {max(ids)}; this model's tokens are 0 to {model.tok.vocab_size - 1}"
            raise APIError(400, message, param="prompt")
        too_many = max(0, len(ids) - (body.truncate_prompt_tokens or len(ids)))
        if too_many:
            begin = int(isinstance(prompt, str))  # <|bos|> stays
            ids, dropped = [*ids[:begin], *ids[begin + too_many :]], dropped + too_many
        room = model.context - (body.max_tokens != 0)
        if len(ids) > room:
            message = f"prompt {number} has {len(ids)} tokens; this model's context leaves {room} for it"
            raise APIError(400, f"{message}; send a shorter one", param="prompt", code="context_length_exceeded")
        prompts.append(ids)
    return prompts, dropped


class TextCompletion(Completion):
    """Answers to some prompts: choice i of n to prompt p has the index p n + i."""

    kind, id_prefix = "text_completion", "cmpl"

    def __init__(self, handle: RequestHandle, model: LoadedModel, model_id: str, body: TextRequest, prompts: list[list[int]]):
        super().__init__(handle, model.tok, model_id, sum(map(len, prompts)), body.logprobs is not None)
        self.model, self.body, self.prompts, self.n = model, body, prompts, body.n or 1
        self.echoed: list[list[Scored]] = []  # of each prompt, without the <|bos|> that was put before a text

    async def begin(self, grammar: Grammar | None) -> None:
        """Score what is echoed, and hand what has to be generated to the engine.

        The one greedy token that evaluation harnesses ask for is known once its prompt is scored.
        """
        body = self.body
        plain = not (body.logit_bias or body.presence_penalty or body.frequency_penalty or body.stop or grammar)
        greedy = body.temperature == 0 and plain and (body.repetition_penalty or 1) == 1
        if body.echo and body.logprobs is not None:
            engine, count = self.model.engine, body.logprobs
            jobs = [self.handle.compute(partial(score_prompt, engine, ids, count)) for ids in self.prompts]
            for index, (scored, following) in enumerate(await asyncio.gather(*map(asyncio.wrap_future, jobs))):
                self.echoed.append(self._without_bos(index, scored))
                if body.max_tokens == 1 and greedy:
                    for choice in self.choices[index * self.n : (index + 1) * self.n]:
                        choice.take(following, "length")
        if body.max_tokens == 0:
            for choice in self.choices:
                choice.finish = "length"
        if all(choice.finish for choice in self.choices):
            return
        for index, ids in enumerate(self.prompts):
            max_tokens = min(self.model.context - len(ids), body.max_tokens or self.model.context)
            samplings = [sampling_of(body, max_tokens, i, body.logprobs, grammar) for i in range(self.n)]
            self.handle.submit(ids, samplings, self.deliver, first=index * self.n, tools=False)

    def _without_bos(self, index: int, scored: "list[Scored]") -> "list[Scored]":
        """The tokens of a text alone; nothing is said to predict its first, as clients expect."""
        if not isinstance(self.body.prompt[index], str):
            return scored
        return [entry._replace(logprob=None, top=()) if number == 0 else entry for number, entry in enumerate(scored[1:])]

    def echo_text(self, index: int) -> str:
        """What stands before the text of choice `index`."""
        prompt = self.body.prompt[index // self.n]
        if not self.body.echo:
            return ""
        return prompt if isinstance(prompt, str) else self.tok.decode(prompt)

    async def whole(self) -> dict[str, Any]:
        async for deltas in self.deltas():
            for index, delta in deltas:
                self.choices[index].add(delta)
        choices = []
        for index, choice in enumerate(self.choices):
            echoed = self.echoed[index // self.n] if self.echoed else []
            said = [*echoed, *choice.logprobs]
            choices.append({
                "index": index, "text": self.echo_text(index) + choice.text(self.tok), "finish_reason": choice.finish,
                "logprobs": text_logprobs(said, self.tok) if self.want_logprobs else None,
            })  # fmt: skip
        return {**self.base, "choices": choices, "usage": self.usage(), **self.note}

    async def chunks(self, include_usage: bool) -> AsyncIterator[dict[str, Any]]:
        base: dict[str, Any] = {**self.base, "usage": None} if include_usage else self.base
        offsets = [0] * len(self.choices)

        def chunk(index: int, text: str, said: Sequence[Logprob], finish: str | None) -> dict[str, Any]:
            logprobs = text_logprobs(said, self.tok, offsets[index]) if self.want_logprobs else None
            offsets[index] += len(text)
            return {**base, "choices": [{"index": index, "text": text, "logprobs": logprobs, "finish_reason": finish}]}

        for index, choice in enumerate(self.choices):
            echoed = self.echoed[index // self.n] if self.echoed else []
            if self.body.echo or choice.finish:
                text = self.echo_text(index) + choice.text(self.tok)
                yield chunk(index, text, [*echoed, *choice.logprobs], choice.finish)
        async for deltas in self.deltas():
            for index, delta in deltas:
                said = self.choices[index].add(delta)
                if delta.text or said or delta.finish:
                    finish = self.choices[index].finish if delta.finish else None
                    yield chunk(index, delta.text, said, finish)
        if include_usage:
            yield {**base, "choices": [], "usage": self.usage(), **self.note}


def token_name(token_id: int, tok: Any) -> str:
    """How a token is spelled as a key: its text; bytes that are no text by themselves as OpenAI spells them."""
    raw = tok.token_bytes(token_id)
    if not raw:
        return next((name for name, special in tok.special_tokens.items() if special == token_id), "")
    try:
        return str(raw.decode())
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def text_logprobs(said: Sequence[Logprob], tok: Any, offset: int = 0) -> dict[str, Any]:
    """The `logprobs` object of a text completion. Of a place's likeliest tokens the chosen one is always shown."""
    stream, offsets, tops = tok.stream(), [], []
    for token_id, logprob, top in said:
        offsets.append(offset)
        offset += len(stream.push(token_id))
        shown = {} if logprob is None else {token_id: logprob, **dict(top)}
        tops.append(None if logprob is None else {token_name(one, tok): max(value, -9999.0) for one, value in shown.items()})
    return {
        "tokens": [token_name(entry[0], tok) for entry in said],
        "token_logprobs": [None if entry[1] is None else max(entry[1], -9999.0) for entry in said],
        "top_logprobs": tops, "text_offset": offsets,
    }  # fmt: skip
