"""`/tokenize`, `/detokenize` and `/tokenizer_info`: the tokenizer for clients that count or cut by tokens.

The shapes are vLLM's, which evaluation harnesses read. Special tokens in a text are plain text here too.
"""

from typing import Any

from fastapi import Request

from nutshell.serve.api import DetokenizeRequest, TokenizeRequest, conversation_of
from nutshell.serve.errors import APIError
from nutshell.serve.models import LoadedModel
from nutshell.serve.service import Service
from nutshell.tokenizer.chat import CHAT_TEMPLATE, render, render_prompt, tidy_messages


async def tokenize(service: Service, request: Request) -> dict[str, Any]:
    body = await service.read(request, TokenizeRequest)
    _, model = await service.model(body.model)
    tokens = await service.off_loop(_to_ids, body, model)
    return {"tokens": tokens, "count": len(tokens), "max_model_len": model.context}


def _to_ids(body: TokenizeRequest, model: LoadedModel) -> list[int]:
    try:
        if body.messages is not None:
            messages = tidy_messages(conversation_of(body.messages))
            continued = bool(messages) and messages[-1]["role"] == "assistant"
            return render(messages, model.tok)[0][:-1] if continued else render_prompt(messages, model.tok)
        return [model.tok.bos_id] * body.add_special_tokens + model.tok.encode(body.prompt or "")
    except ValueError as error:
        raise APIError(400, str(error), param="prompt" if body.messages is None else "messages") from error


async def detokenize(service: Service, request: Request) -> dict[str, Any]:
    body = await service.read(request, DetokenizeRequest)
    _, model = await service.model(body.model)
    if body.tokens and max(body.tokens) >= model.tok.vocab_size:
        message = f"the token {max(body.tokens)} is not in the vocabulary; accepted: 0 to {model.tok.vocab_size - 1}"
        raise APIError(400, message, param="tokens")
    return {"prompt": await service.off_loop(model.tok.decode, body.tokens)}


async def tokenizer_info(service: Service, model_id: str | None) -> dict[str, Any]:
    _, model = await service.model(model_id)
    tok, special = model.tok, model.tok.special_tokens
    bos = next(name for name, token_id in special.items() if token_id == tok.bos_id)
    eos = "<|assistant_end|>" if "<|assistant_end|>" in special else bos
    return {
        "tokenizer_class": "PreTrainedTokenizerFast", "vocab_size": tok.vocab_size, "model_max_length": model.context,
        "bos_token": bos, "bos_token_id": tok.bos_id, "eos_token": eos, "eos_token_id": special[eos],
        "pad_token": bos, "special_tokens": special, "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
