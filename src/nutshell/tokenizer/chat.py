"""Conversations to token ids, with a mask of the tokens that the model learns to produce.

A conversation is a list of `{"role": ..., "content": ...}`: an optional system message first (merged into the first
user message with an empty line between), then user and assistant in turn. An assistant's content is a string or a list
of parts `{"type": "text" | "python" | "python_output", "text": ...}`: what it says, what it asks the tool, and what the
tool answered. Laid out as

    <|bos|><|user_start|>...<|user_end|><|assistant_start|>...<|python_start|>12*3<|python_end|>
    <|output_start|>36<|output_end|>...<|assistant_end|>  (without the line break)
"""

from __future__ import annotations

from typing import Any, Protocol

from nutshell.tokenizer.tool_calls import join_tool_calls

ROLES = ("system", "user", "assistant")
PART_TYPES = ("text", "python", "python_output")


class Encodes(Protocol):
    """What rendering needs of a tokenizer."""

    @property
    def bos_id(self) -> int: ...
    def encode(self, text: str) -> list[int]: ...
    def special_id(self, name: str) -> int: ...


CHAT_TEMPLATE = """\
{%- set ns = namespace(system='') -%}
{{- '<|bos|>' -}}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set parts = [{'type': 'text', 'text': message['content']}] -%}
  {%- else -%}
    {%- set parts = message['content'] -%}
  {%- endif -%}
  {%- if message['role'] == 'system' -%}
    {%- for part in parts -%}{%- set ns.system = ns.system + part['text'] -%}{%- endfor -%}
    {%- if ns.system -%}{%- set ns.system = ns.system + '\\n\\n' -%}{%- endif -%}
  {%- elif message['role'] == 'user' -%}
    {{- '<|user_start|>' + ns.system -}}
    {%- for part in parts -%}{{- part['text'] -}}{%- endfor -%}
    {{- '<|user_end|>' -}}
    {%- set ns.system = '' -%}
  {%- else -%}
    {{- '<|assistant_start|>' -}}
    {%- for part in parts -%}
      {%- if part['type'] == 'python' -%}
        {{- '<|python_start|>' + part['text'] + '<|python_end|>' -}}
      {%- elif part['type'] == 'python_output' -%}
        {{- '<|output_start|>' + part['text'] + '<|output_end|>' -}}
      {%- else -%}
        {{- part['text'] -}}
      {%- endif -%}
    {%- endfor -%}
    {{- '<|assistant_end|>' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant_start|>' -}}{%- endif -%}
"""
"""The same layout as a Jinja template, for `tokenizer_config.json`."""


BLANK = " "
"""What a user's turn says that is put where none was sent (`tidy_messages`)."""


def parse_messages(obj: Any) -> list[dict[str, Any]]:
    """Check a conversation (a list of messages, or an object with `messages`) and return it with nothing but roles and
    contents, text parts of system and user joined, OpenAI's tool calls and their results as parts (see `join_tool_calls`). An
    answer with `weight: 0` or `train: false` keeps a weight of 0: it is read, not learned. Raises ValueError that says which
    message is wrong and how.

    >>> parse_messages({"messages": [{"role": "user", "content": "Hi"}], "id": 7})
    [{'role': 'user', 'content': 'Hi'}]
    """
    messages = obj
    if isinstance(obj, dict):
        if "messages" not in obj:
            raise ValueError(f'a conversation needs the key "messages"; this one has {", ".join(map(repr, obj)) or "none"}')
        messages = obj["messages"]
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"messages must be a list, not {type(messages).__name__}: {messages!r:.80}")
    if not messages:
        raise ValueError("the conversation is empty; it needs at least one user message")
    parsed: list[dict[str, Any]] = []
    expected = "user"
    for index, message in enumerate(join_tool_calls(messages)):
        role, content = _parse_message(message, index)
        if role == "system":
            if index > 0:
                raise ValueError(f"message {index} is a system message; only the first message may be one")
        elif role != expected:
            raise ValueError(
                f"message {index} is of role {role!r} where {expected!r} is expected: after an optional system message, "
                "user and assistant take turns, the user first"
            )
        else:
            expected = "assistant" if role == "user" else "user"
        weight, train = message.get("weight"), message.get("train")
        if weight not in (None, 0, 1):
            raise ValueError(f"message {index} has the weight {weight!r:.80}; accepted: 0 (read, not learned) or 1 (learned)")
        if train not in (None, False, True):
            raise ValueError(f"message {index} has train {train!r:.80}; accepted: false (read, not learned) or true (learned)")
        unlearned = role == "assistant" and 0 in (weight, train)  # False is 0
        parsed.append({"role": role, "content": content, **({"weight": 0} if unlearned else {})})
    if len(parsed) == 1 and parsed[0]["role"] == "system":
        raise ValueError("the conversation has only a system message; it needs at least one user message")
    return parsed


def tidy_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A conversation as clients resend it, put in the order that the layout has: system first, user and assistant in turn.

    For requests, where no turn is refused. A developer's message is a system message; a tool's or function's is the user's.
    System messages that come later are joined to the first. Messages without content are left out (an answer that was stopped
    before its first word, or was a tool call), and neighbours of one role are joined by an empty line. Before an assistant's
    greeting stands a blank user's turn, and behind the last answer where something blank or of the system follows it: only an
    assistant's message at the end is to be continued.
    """
    roles = {"developer": "system", "tool": "user", "function": "user"}
    system: list[str] = []
    turns: list[dict[str, Any]] = []
    for message in messages:
        role = roles.get(message["role"], message["role"])
        content = message.get("content") or []
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else [dict(part) for part in content]
        parts = [part for part in parts if part["text"]]
        if role == "system":
            system += [text] if (text := "".join(part["text"] for part in parts)).strip() else []
        elif turns and turns[-1]["role"] == role and parts:
            turns[-1]["content"] += [{"type": "text", "text": "\n\n"}, *parts]
        elif parts:
            turns.append({"role": role, "content": parts})
    if turns and turns[0]["role"] == "assistant":
        turns.insert(0, {"role": "user", "content": BLANK})
    if turns and turns[-1]["role"] == "assistant" != messages[-1]["role"]:
        turns.append({"role": "user", "content": BLANK})
    return ([{"role": "system", "content": "\n\n".join(system)}] if system else []) + turns


def _parse_message(message: Any, index: int) -> tuple[str, Any]:
    if not isinstance(message, dict):
        raise ValueError(f'message {index} must be an object with "role" and "content", not {message!r:.80}')
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        raise ValueError(f"message {index} has the role {role!r}; accepted are {', '.join(ROLES)}")
    if isinstance(content, (list, tuple)):
        types = PART_TYPES if role == "assistant" else ("text",)
        parts = [_parse_part(part, f"message {index}, part {number}", types) for number, part in enumerate(content)]
        # Adjacent texts are joined: the layout has no mark between them, so the ids must not have one either.
        joined: list[dict[str, str]] = []
        for part in parts:
            if joined and part["type"] == "text" == joined[-1]["type"]:
                joined[-1]["text"] += part["text"]
            else:
                joined.append(part)
        plain = all(part["type"] == "text" for part in joined)
        content = "".join(part["text"] for part in joined) if plain else joined
    elif not isinstance(content, str):
        raise ValueError(f"message {index} ({role}) has the content {content!r:.80}; it must be a string or a list of parts")
    if not content and role != "system":
        raise ValueError(f"message {index} ({role}) is empty")
    return role, content


def _parse_part(part: Any, where: str, types: tuple[str, ...]) -> dict[str, str]:
    if not isinstance(part, dict) or part.get("type") not in types or not isinstance(part.get("text"), str):
        raise ValueError(f'{where} is {part!r:.80}; it must be {{"type": {" or ".join(types)}, "text": a string}}')
    return {"type": part["type"], "text": part["text"]}


def split_turns(messages: list[dict[str, Any]], tok: Encodes, max_tokens: int) -> list[list[dict[str, Any]]]:
    """A checked conversation in parts of at most `max_tokens` when rendered, cut before user messages, so that a long one
    loses no answer. Each part begins with the system message. A single turn that is too long stays whole."""
    if len(render(messages, tok)[0]) <= max_tokens:
        return [messages]
    system, rest = (messages[:1], messages[1:]) if messages[0]["role"] == "system" else ([], messages)
    parts: list[list[dict[str, Any]]] = []
    room = 0
    for start in range(0, len(rest), 2):
        turn = rest[start : start + 2]
        size = len(render(turn, tok)[0]) - 1  # without BOS
        if size <= room:
            parts[-1] += turn
            room -= size
        else:
            parts.append([*system, *turn])
            room = max_tokens - len(render(parts[-1], tok)[0])
    return parts


def split_example(example: dict[str, Any], tok: Encodes, max_tokens: int) -> list[dict[str, Any]]:
    """What a data file holds (see `render_example`) in parts that fit: conversations by `split_turns`, documents halved at a
    space until they do, so that these lose nothing."""
    if "messages" in example:
        return [{"messages": part} for part in split_turns(example["messages"], tok, max_tokens)]
    text: str = example["text"]
    if len(text) < 2 or len(tok.encode(text)) < max_tokens:
        return [example]
    middle = text.rfind(" ", 1, len(text) // 2 + 1)
    middle = middle if middle > 0 else len(text) // 2
    return [part for half in (text[:middle], text[middle:]) for part in split_example({"text": half}, tok, max_tokens)]


def render(messages: Any, tok: Encodes) -> tuple[list[int], list[int]]:
    """Ids of a conversation, and a mask of the same length: 1 where the model learns to produce the token (what the
    assistant says, its tool calls with their start and end, and `<|assistant_end|>`), 0 for all it is given (the start,
    the user, `<|assistant_start|>`, tool output)."""
    ids, mask = [tok.bos_id], [0]

    def add(new: list[int], learned: int) -> None:
        ids.extend(new)
        mask.extend([learned] * len(new))

    def wrapped(name: str, text: str, learned: int) -> None:
        add([tok.special_id(f"<|{name}_start|>"), *tok.encode(text), tok.special_id(f"<|{name}_end|>")], learned)

    for message in _merge_system(parse_messages(messages)):
        content = message["content"]
        if message["role"] == "user":
            wrapped("user", content, 0)
            continue
        add([tok.special_id("<|assistant_start|>")], 0)
        learned = int(message.get("weight", 1) != 0)
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            if part["type"] == "python":
                wrapped("python", part["text"], learned)
            elif part["type"] == "python_output":
                wrapped("output", part["text"], 0)
            else:
                add(tok.encode(part["text"]), learned)
        add([tok.special_id("<|assistant_end|>")], learned)
    return ids, mask


def _merge_system(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if messages[0]["role"] != "system":
        return messages
    system, user, *rest = messages
    content = f"{system['content']}\n\n{user['content']}" if system["content"] else user["content"]
    return [{"role": "user", "content": content}, *rest]


def render_example(example: dict[str, Any], tok: Encodes) -> tuple[list[int], list[int]]:
    """`render` for what data files hold: `{"messages": [...]}`, or `{"text": "..."}`, a document that is learned as a whole."""
    if "messages" in example:
        return render(example["messages"], tok)
    ids = tok.encode(example["text"])
    return [tok.bos_id, *ids], [0, *[1] * len(ids)]


def render_prompt(messages: Any, tok: Encodes) -> list[int]:
    """Ids of a conversation up to where the assistant's reply begins; the last message must be the user's."""
    parsed = parse_messages(messages)
    if parsed[-1]["role"] != "user":
        raise ValueError("the last message is the assistant's; to be answered, a conversation must end with the user's")
    ids, _ = render(parsed, tok)
    return [*ids, tok.special_id("<|assistant_start|>")]
