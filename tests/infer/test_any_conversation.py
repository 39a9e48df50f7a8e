"""Whatever is said, a conversation fits the context and keeps what matters: nanochat 581, F2, F26."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.infer.conversation import fit_conversation
from nutshell.tokenizer import Tokenizer
from nutshell.tokenizer.chat import render, split_example, split_turns, tidy_messages

TOK = Tokenizer.train(["what is it? it is what it is, naïve 日本語"], vocab_size=290)
texts = st.text(st.sampled_from("what is it?\n 日本語é<|bos>"), min_size=1, max_size=60)
parts = st.lists(st.builds(lambda kind, text: {"type": kind, "text": text},
                           st.sampled_from(["text", "python", "python_output"]), texts), min_size=1, max_size=3)  # fmt: skip


@st.composite
def conversations(draw, *, open_end: bool):
    """Turns of user and assistant, perhaps behind a system message; `open_end`: the last message is the user's."""
    messages = [{"role": "system", "content": draw(texts)}] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0 if open_end else 1, 6))):
        messages += [{"role": "user", "content": draw(texts)}, {"role": "assistant", "content": draw(texts | parts)}]
    return [*messages, {"role": "user", "content": draw(texts)}] if open_end else messages


@given(messages=conversations(open_end=True), context=st.integers(8, 120), max_tokens=st.integers(1, 200))
def test_a_prompt_leaves_room_for_a_reply(messages, context, max_tokens):
    fitted = fit_conversation(messages, TOK, context, max_tokens)
    special = TOK.special_id
    assert fitted.ids[:2] == [TOK.bos_id, special("<|user_start|>")]
    assert fitted.ids[-2:] == [special("<|user_end|>"), special("<|assistant_start|>")]
    assert fitted.ids.count(TOK.bos_id) == 1
    assert len(fitted.ids) + min(max_tokens, 16, context // 4) <= context
    assert fitted.dropped % 2 == 0
    turns = [message for message in messages if message["role"] != "system"]
    assert fitted.dropped <= len(turns) - 1
    if not fitted.truncated:  # what is left is a conversation, laid out as always
        system = messages[:1] if messages[0]["role"] == "system" else []
        assert fitted.ids == [*render([*system, *turns[fitted.dropped :]], TOK)[0], special("<|assistant_start|>")]
    whole = len(render(messages, TOK)[0]) + 1
    if whole + min(max_tokens, context // 4) <= context:
        assert (fitted.dropped, fitted.truncated) == (0, False)
    assert fitted.ids[-3] == render(messages, TOK)[0][-2]  # the end of the question is never lost


@given(messages=conversations(open_end=False), context=st.integers(8, 120))
def test_an_answer_is_continued_as_an_answer_however_long_it_is(messages, context):
    messages = messages[-2:]
    whole, special = render(messages, TOK)[0][:-1], TOK.special_id
    fitted = fit_conversation(messages, TOK, context, 16)
    opened = whole.index(special("<|user_end|>"))
    answer = whole[opened + 2 :]
    end = fitted.ids.index(special("<|user_end|>"))
    assert fitted.ids[:2] == whole[:2]
    assert fitted.ids[end + 1] == special("<|assistant_start|>")
    question, left = fitted.ids[2:end], fitted.ids[end + 2 :]
    assert whole[2:opened][len(whole[2:opened]) - len(question) :] == question
    assert answer[len(answer) - len(left) :] == left
    assert left == answer or not question  # the question goes first
    assert fitted.truncated == (fitted.ids != whole)
    assert len(fitted.ids) + min(16, context // 4) <= context or not fitted.truncated


@given(messages=conversations(open_end=False), most=st.integers(4, 120))
def test_a_long_conversation_is_learned_in_parts_that_lose_nothing(messages, most):
    split = split_turns(messages, TOK, most)
    system = messages[:1] if messages[0]["role"] == "system" else []
    assert all(part[: len(system)] == system for part in split)
    assert [message for part in split for message in part[len(system) :]] == messages[len(system) :]
    for part in split:
        assert len(render(part, TOK)[0]) <= most or len(part) == len(system) + 2


@given(text=texts.filter(lambda text: not text.isspace()), most=st.integers(4, 60))
def test_a_long_document_is_learned_in_parts_that_lose_nothing(text, most):
    halves = split_example({"text": text}, TOK, most)
    assert "".join(part["text"] for part in halves) == text
    assert all(len(TOK.encode(part["text"])) < most or len(part["text"]) < 2 for part in halves)


@given(
    st.lists(st.builds(lambda role, content: {"role": role, "content": content},
                       st.sampled_from(["system", "developer", "user", "assistant", "tool", "function"]),
                       st.none() | st.just("") | texts | st.lists(texts.map(lambda t: {"type": "text", "text": t}))), max_size=7)
)  # fmt: skip
def test_whatever_a_client_resends_is_answered(messages):
    """System first, then user and assistant in turn; nothing that was said is lost."""
    tidied = tidy_messages(messages)

    def said(messages):
        contents = [message["content"] or "" for message in messages]
        return "".join(c if isinstance(c, str) else "".join(part["text"] for part in c) for c in contents)

    turns = tidied[1:] if tidied and tidied[0]["role"] == "system" else tidied
    assert [message["role"] for message in turns] == ["user", "assistant"] * (len(turns) // 2) + ["user"] * (len(turns) % 2)
    kept = "".join(said(tidied).split())
    for message in messages:
        assert "".join(said([message]).split()) in kept
    if not turns:
        return
    if turns[-1]["role"] == "user":
        assert fit_conversation(tidied, TOK, 4096, 16).dropped == 0
    else:
        assert messages[-1]["role"] == "assistant"


def test_a_context_too_small_for_any_question_is_named():
    with pytest.raises(ValueError, match="the context is 4 tokens; accepted for a chat: at least 8"):
        fit_conversation([{"role": "user", "content": "a"}], TOK, 4, 16)
