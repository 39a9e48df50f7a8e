"""The bodies of requests as pydantic models: OpenAI's fields, and those of vLLM that clients use."""

import contextlib
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, FailFast, Field, ValidationInfo, field_validator, model_validator

from nutshell.serve.errors import APIError, shortened
from nutshell.tokenizer.chat import tidy_messages
from nutshell.tokenizer.tool_calls import join_tool_calls

MAX_CHOICES = 16
MAX_BIASES = 300  # as many as OpenAI takes
MAX_MESSAGES = 1024
MAX_PARTS = 256
MAX_STOPS = 16
MAX_STOP_CHARACTERS = 256
MAX_TOP_LOGPROBS = 20

TOOL_PARTS = ("python", "python_output")
"""Parts of an assistant message beside "text": what it asked the calculator, and what came back."""

Number = Annotated[float, Field(allow_inf_nan=False)]


class Message(BaseModel):
    """One message; `content` is text, or text parts (and, of an assistant, the tool parts of an earlier answer)."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Any = ""
    tool_calls: list[Any] | None = None
    tool_call_id: Any = None
    function_call: Any = None

    @field_validator("content")
    @classmethod
    def _checked_content(cls, content: Any, info: ValidationInfo) -> Any:
        """Checked by hand, because pydantic reports one error for each type of a union."""
        if content is None or isinstance(content, str):
            return content or ""  # None: of a message that was a tool call
        if not isinstance(content, list):
            raise ValueError(f"content must be a string or a list of parts, not {type(content).__name__}")
        if len(content) > MAX_PARTS:
            raise ValueError(f"a message takes at most {MAX_PARTS} parts, not {len(content)}")
        for part in content:
            if not isinstance(part, dict) or "type" not in part:
                raise ValueError(
                    f"a part of a message is an object such as {{'type': 'text', 'text': '...'}}, not {shortened(part)}"
                )
            kind = part["type"]
            if kind not in ("text", *TOOL_PARTS):
                raise ValueError(f"content part {str(kind)[:40]!r} is not supported: this model reads text only")
            if not isinstance(part.get("text"), str):
                raise ValueError(f"a content part of type {kind!r} needs a string in 'text'")
            if kind != "text" and info.data.get("role", "assistant") != "assistant":
                raise ValueError(f"tool parts belong to messages of the assistant, not of the {info.data['role']}")
        return [{"type": part["type"], "text": part["text"]} for part in content]


def conversation_of(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages with tool calls as parts of the answers that made them.

    Left out are calls without a result, for which the model would wait, and what is no call. A result without a call is text.
    """
    dumped = [message.model_dump(exclude_none=True) for message in messages]
    with contextlib.suppress(ValueError):
        dumped = join_tool_calls(dumped)
    for message in dumped:
        if (message.get("tool_calls") or message.get("function_call")) and isinstance(parts := message["content"], list):
            kinds = [part["type"] for part in parts] + [None]
            message["content"] = [
                part for part, kind, following in zip(parts, kinds, kinds[1:], strict=False)
                if kind != "python" or following == "python_output"
            ]  # fmt: skip
    return dumped


class StreamOptions(BaseModel):
    include_usage: bool | None = None


class SamplingFields(BaseModel):
    """What chat and text completions share. Unknown fields are ignored, as clients send many."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: Number | None = Field(default=None, ge=0, le=2)
    top_p: Number | None = Field(default=None, ge=0, le=1)
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000)
    min_p: Number | None = Field(default=None, ge=0, le=1)
    repetition_penalty: Number | None = Field(default=None, gt=0, le=10)
    presence_penalty: Number | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: Number | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[Number, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=MAX_BIASES
    )
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stop: str | list[str] | None = None
    seed: int | None = Field(default=None, ge=-(2**63), le=2**63 - 1)
    response_format: dict[str, Any] | None = None

    @field_validator("response_format")
    @classmethod
    def _known_format(cls, wanted: dict[str, Any] | None) -> dict[str, Any] | None:
        kind = wanted.get("type") if wanted else "text"
        if kind not in ("text", "json_object", "json_schema"):
            raise ValueError(f"type is {shortened(kind)}; accepted: 'text', 'json_object', 'json_schema'")
        if kind == "json_schema" and not isinstance(_schema_of(wanted), dict):
            raise ValueError("type json_schema needs the schema, an object, as json_schema.schema")
        return wanted

    def json_schema(self) -> dict[str, Any] | None:
        """What the answer must fit; None where it is text."""
        wanted = self.response_format or {"type": "text"}
        if wanted["type"] == "json_schema":
            return dict(_schema_of(wanted))
        return {"type": "object"} if wanted["type"] == "json_object" else None

    @field_validator("stop", mode="before")
    @classmethod
    def _short_stops(cls, stop: Any) -> Any:
        stops = [stop] if isinstance(stop, str) else stop
        if stops is None:
            return None
        if not isinstance(stops, list) or not all(isinstance(one, str) for one in stops):
            raise ValueError("stop must be a string or a list of strings")
        if len(stops) > MAX_STOPS or any(len(one) > MAX_STOP_CHARACTERS for one in stops):
            raise ValueError(f"stop takes at most {MAX_STOPS} strings of at most {MAX_STOP_CHARACTERS} characters")
        return [one for one in stops if one]

    def include_usage(self) -> bool:
        return bool(self.stream_options and self.stream_options.include_usage)


class ChatRequest(SamplingFields):
    """Body of `POST /v1/chat/completions`."""

    messages: Annotated[list[Message], FailFast(), Field(min_length=1, max_length=MAX_MESSAGES)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    include_tool_calls: bool | None = None
    """Report what the model called by itself in OpenAI's form too; it has the results already."""
    tools: list[Any] | None = None
    functions: list[Any] | None = None

    tool_choice: Any = None

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        return self

    def refuse_tools(self, ignore: bool) -> None:
        """APIError for functions of the client's: without them it would seem that the model never wants one.

        Those pass that it must not call now (`tool_choice: none`), and with `ignore` those that it need not call.
        """
        if not (self.tools or self.functions) and self.tool_choice not in (None, "auto", "none"):
            raise APIError(400, "tool_choice demands a call, and no tools are sent; leave this field out", param="tool_choice")
        name = "tools" if self.tools else "functions"
        passed_over = self.tool_choice == "none" or (ignore and self.tool_choice in (None, "auto"))
        if (self.tools or self.functions) and not passed_over:
            message = f"{name}: this model calls no functions of the client's; leave this field out"
            raise APIError(400, f"{message} (or start the server with --ignore-tools)", param=name)

    def wanted_tokens(self) -> int | None:
        """Most tokens of the answer. None: as many as the context allows, as for 0 and less, which some clients send."""
        wanted = self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens
        return wanted if wanted and wanted > 0 else None

    def conversation(self) -> list[dict[str, Any]]:
        return tidy_messages(conversation_of(self.messages))


class TextRequest(SamplingFields):
    """Body of `POST /v1/completions`: texts, or token ids as they are."""

    prompt: Any
    max_tokens: int | None = 16
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_TOP_LOGPROBS)] | None = None
    truncate_prompt_tokens: int | None = Field(default=None, ge=2, le=1_000_000)  # vLLM's: at most so many, the last ones
    suffix: str | None = None
    best_of: int | None = None

    @field_validator("prompt")
    @classmethod
    def _list_of_prompts(cls, prompt: Any) -> list[str] | list[list[int]]:
        """Checked by hand, because pydantic reports one error for each type of a union."""
        if prompt is None:
            return [""]
        if isinstance(prompt, str):
            return [prompt]
        if isinstance(prompt, list) and prompt:
            if all(isinstance(one, str) for one in prompt):
                return prompt
            arrays = [prompt] if all(_is_id(one) for one in prompt) else prompt
            if all(isinstance(ids, list) and ids and all(_is_id(one) for one in ids) for ids in arrays):
                return arrays
        raise ValueError("prompt must be a string, a list of strings, token ids, or a list of lists of token ids, none empty")

    @field_validator("suffix")
    @classmethod
    def _no_suffix(cls, suffix: str | None) -> None:
        if suffix:
            raise ValueError("this model was not trained to fill in the middle; leave this field out")

    @model_validator(mode="after")
    def _consistent(self) -> "TextRequest":
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of is not supported; leave it out, or send the value of n")
        if self.max_tokens is not None and self.max_tokens < 0:
            self.max_tokens = None  # as in a chat: what the context allows
        if self.truncate_prompt_tokens is not None and self.echo:
            raise ValueError("truncate_prompt_tokens leaves out what echo says again; send one of them")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens is 0, so there is nothing to answer; ask for tokens, or send echo: true")
        return self


class TokenizeRequest(BaseModel):
    """Body of `POST /tokenize`: a text, or a conversation as the model reads it."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES)] | None = None
    add_special_tokens: bool = True

    @model_validator(mode="after")
    def _one_of_both(self) -> "TokenizeRequest":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt (a text) or messages (a conversation)")
        return self


class DetokenizeRequest(BaseModel):
    """Body of `POST /detokenize`."""

    model: str | None = None
    tokens: Annotated[list[Annotated[int, Field(ge=0, strict=True)]], FailFast()]


def _schema_of(response_format: dict[str, Any] | None) -> Any:
    given = (response_format or {}).get("json_schema")
    return given.get("schema") if isinstance(given, dict) else None


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
