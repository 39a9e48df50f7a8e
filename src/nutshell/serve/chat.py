"""`POST /v1/chat/completions`: a conversation becomes a prompt that fits, and the engine's reply an answer."""

from dataclasses import replace

from fastapi import Request
from fastapi.responses import Response

from nutshell.infer.conversation import FittedConversation, fit_conversation
from nutshell.infer.grammar import Grammar
from nutshell.infer.sampling import Sampling
from nutshell.infer.tools import tool_name
from nutshell.serve.api import ChatRequest, SamplingFields
from nutshell.serve.completions import Completion
from nutshell.serve.errors import APIError
from nutshell.serve.models import LoadedModel
from nutshell.serve.service import Service
from nutshell.tokenizer.chat import BLANK


async def answer_chat(service: Service, request: Request) -> Response:
    """Take the request's slots, tokenize off the event loop, hand the prompt to the worker, and answer."""
    body = await service.read(request, ChatRequest)
    body.refuse_tools(service.ignore_tools)
    offer, model = await service.model(body.model)
    check_biases(body, model)
    choices = body.n or 1
    handle = service.reserve(model.worker, choices, "n", request)
    try:
        budget = min(body.wanted_tokens() or model.context, model.context)
        fitted = await _fit(service, body, model, budget)
        completion = Completion(handle, model.tok, offer.id, len(fitted.ids), bool(body.logprobs))
        if body.include_tool_calls and model.engine.tool is not None:
            completion.tool = tool_name(model.engine.tool)
        if fitted.dropped:
            completion.note = {"nutshell": {"dropped_messages": fitted.dropped}}
        max_tokens = min(budget, model.context - len(fitted.ids))
        top_logprobs = (body.top_logprobs or 0) if body.logprobs else None
        grammar = await json_grammar(service, body, model)
        samplings = [sampling_of(body, max_tokens, index, top_logprobs, grammar) for index in range(choices)]
        handle.submit(fitted.ids, samplings, completion.deliver)
    except BaseException:
        handle.close()
        raise
    return await service.answer(completion, body, request)


async def _fit(service: Service, body: ChatRequest, model: LoadedModel, max_tokens: int) -> FittedConversation:
    """The conversation as a prompt that leaves room for an answer."""
    messages = await service.off_loop(body.conversation)
    try:
        fitted = await service.off_loop(fit_conversation, messages, model.tok, model.context, max_tokens)
    except ValueError as error:
        raise APIError(400, str(error), param="messages") from error
    if fitted.truncated:
        system = messages[0]["content"] if messages[0]["role"] == "system" else ""
        if messages[-1]["role"] == "assistant":
            message = f"the answer to go on with fills this model's context of {model.context} tokens; begin a new conversation"
            raise APIError(400, message, param="messages", code="context_length_exceeded")
        too_long = "system prompt" if len(str(system)) > len(str(messages[-1]["content"])) else "last message"
        message = f"the {too_long} does not fit this model's context of {model.context} tokens, answer included"
        raise APIError(400, f"{message}; send a shorter one", param="messages", code="context_length_exceeded")
    if fitted.dropped and BLANK in [message["content"] for message in messages[:2]]:
        fitted = replace(fitted, dropped=fitted.dropped - 1)  # put before a greeting, not sent
    return fitted


def check_biases(body: SamplingFields, model: LoadedModel) -> None:
    """A bias that nothing can follow is refused: its ids are likely those of another model."""
    if body.logit_bias and (largest := max(body.logit_bias)) >= model.tok.vocab_size:
        message = f"logit_bias names the token {largest}; this model's tokens are 0 to {model.tok.vocab_size - 1}"
        raise APIError(400, message, param="logit_bias")


async def json_grammar(service: Service, body: SamplingFields, model: LoadedModel) -> Grammar | None:
    """What `response_format` asks for, compiled off the event loop; None for text."""
    schema = body.json_schema()
    if schema is None:
        return None
    try:
        return await service.off_loop(lambda: model.json_grammars.compile(schema))
    except ImportError as error:
        fix = "send {'type': 'text'}, or start the server after: pip install 'nutshell-lm[json]'"
        raise APIError(400, f"this server lacks llguidance, which makes JSON; {fix}", param="response_format") from error
    except ValueError as error:
        raise APIError(400, str(error), param="response_format") from error


def sampling_of(
    body: SamplingFields, max_tokens: int, index: int, top_logprobs: int | None, grammar: Grammar | None = None
) -> Sampling:
    """With OpenAI's defaults. With a seed, choice 0 is what `n: 1` would give, and choice i has the seed plus i."""
    top_p = 1.0 if body.top_p is None else body.top_p
    temperature = 1.0 if body.temperature is None else body.temperature
    return Sampling(
        max_tokens=max_tokens,
        temperature=temperature if top_p > 0 else 0.0,
        top_p=top_p if top_p > 0 else 1.0,
        top_k=max(0, body.top_k or 0),
        min_p=body.min_p or 0.0,
        repetition_penalty=1.0 if body.repetition_penalty is None else body.repetition_penalty,
        presence_penalty=body.presence_penalty or 0.0,
        frequency_penalty=body.frequency_penalty or 0.0,
        logit_bias=body.logit_bias or {},
        seed=None if body.seed is None or body.seed < 0 else (body.seed + index) % 2**63,  # -1 means "any" to clients
        stop=tuple(body.stop or ()),
        grammar=grammar,
        top_logprobs=top_logprobs,
    )
