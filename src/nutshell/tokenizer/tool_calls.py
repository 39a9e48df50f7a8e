"""OpenAI's tool calls and their results, as the parts of one answer that chat.py lays out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any


def join_tool_calls(messages: Sequence[Any]) -> list[Any]:
    """Messages with OpenAI's tool calls in the layout's own form, one answer of several parts: a call is its `python` part, the
    `tool` message behind it the `python_output`, and what the assistant says next goes on in the same answer. Other messages
    stay as they are; `developer` means system. ValueError for a result without a call, and weights that differ in an answer.
    """
    joined: list[Any] = []
    answer: dict[str, Any] | None = None  # an answer with calls that what follows may go on with
    for index, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        calls = _calls_of(message) if role == "assistant" else []
        if role in ("tool", "function"):
            _add_result(answer["content"] if answer else [], message, index)
        elif calls or (role == "assistant" and answer is not None):
            parts = _as_parts(message.get("content") or [], index)
            parts += [{"type": "python", "text": _call_text(call, index), "id": call.get("id")} for call in calls]
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


def _calls_of(message: dict[str, Any]) -> list[Any]:
    """The calls of an assistant's message, also in the older form of one `function_call`."""
    calls, older = message.get("tool_calls"), message.get("function_call")
    return calls if isinstance(calls, list) and calls else [{"function": older}] if older else []


def _add_result(parts: list[Any], message: dict[str, Any], index: int) -> None:
    """Put a tool's result behind its call, which is where the engine puts it: the call of its id, or the first without one."""
    kinds = [part.get("type") if isinstance(part, dict) else None for part in parts] + [None]
    waiting = [n for n, kind in enumerate(kinds) if kind == "python" and kinds[n + 1] != "python_output"]
    named = [n for n in waiting if parts[n].get("id") == message.get("tool_call_id")]
    if not waiting:
        raise ValueError(f"message {index} is a tool's without an assistant's tool call before it that it answers")
    texts = [part.get("text") if isinstance(part, dict) else part for part in _as_parts(message.get("content") or [], index)]
    parts.insert((named or waiting)[0] + 1, {"type": "python_output", "text": "".join(map(str, texts))})


def _as_parts(content: Any, index: int) -> list[Any]:
    if not isinstance(content, (str, list)):
        raise ValueError(f"message {index} has the content {content!r:.80}; it must be a string or a list of parts")
    return [{"type": "text", "text": content}] if isinstance(content, str) else list(content)


def _call_text(call: Any, index: int) -> str:
    """A call as text: the code itself for a tool that takes one text (a calculator, Python), else `name({"argument": ...})`."""
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise ValueError(f"message {index} has a tool call that is no object with a function and its name: {call!r:.80}")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):  # OpenAI's own models may write what is no JSON
            return f"{function['name']}({arguments})"
    values = list(arguments.values()) if isinstance(arguments, dict) else []
    if function["name"] in ("python", "calculator", "code_interpreter") and len(values) == 1 and isinstance(values[0], str):
        return values[0]
    return f"{function['name']}({json.dumps(arguments, ensure_ascii=False)})"
