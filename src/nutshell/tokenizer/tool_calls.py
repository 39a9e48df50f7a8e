"""OpenAI's tool calls and their results, as the parts of one answer that chat.py lays out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def join_tool_calls(messages: Sequence[Any]) -> list[Any]:
    """Messages with OpenAI's tool calls in the layout's own form, one answer of several parts: a call is its `python` part, the
    `tool` message behind it the `python_output`, and what the assistant says next goes on in the same answer. Other messages
    stay as they are; `developer` means system. ValueError for a result without a call, and for weights that differ in an answer.
    """
    joined: list[Any] = []
    answer: dict[str, Any] | None = None  # an answer with calls that what follows may go on with
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        calls = message.get("tool_calls") if role == "assistant" else None
        if role in ("tool", "function"):
            if answer is None or not isinstance(message.get("content"), (str, list)):
                raise ValueError(f"message {index} is a tool's, which needs text and an assistant's tool call before it")
            answer["content"].append({"type": "python_output", "text": _plain(message["content"])})
        elif calls or (role == "assistant" and answer is not None):
            parts = [] if (content := message.get("content") or []) == [] else _as_parts(content)
            parts += [{"type": "python", "text": _call_text(call, index)} for call in calls or []]
            if answer is None:
                answer = {**message, "content": parts}
                joined.append(answer)
            elif (answer.get("weight"), answer.get("train")) != (message.get("weight"), message.get("train")):
                raise ValueError(f"message {index} has another weight than the tool call before it, which is of the same answer")
            else:
                answer["content"] += parts
        else:
            answer = None
            joined.append({**message, "role": "system"} if role == "developer" else message)
    return joined


def _as_parts(content: Any) -> list[Any]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _plain(content: Any) -> str:
    return "".join(str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in _as_parts(content))


def _call_text(call: Any, index: int) -> str:
    """A call as text: the code itself for a tool that takes one text (a calculator, Python), else `name({"argument": ...})`."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"message {index} has a tool call that is no object with a function and its name: {call!r:.80}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError:  # OpenAI's own models may write what is no JSON
            return f"{function['name']}({arguments})"
    values = list(arguments.values()) if isinstance(arguments, dict) else []
    if function["name"] in ("python", "calculator", "code_interpreter") and len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return f"{function['name']}({json.dumps(arguments, ensure_ascii=False)})"
