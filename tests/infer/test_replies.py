"""What a reader sees of a reply: tool calls, stop strings, whole characters, long conversations, many samples."""

import itertools

import pytest
import torch

from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling

GREEDY = Sampling(temperature=0, max_tokens=60)
PROMPT = [5, 6, 7]


def special(tok, *names):
    return [tok.special_id(f"<|{name}|>") for name in names]


def call(tok, expression):
    start, end = special(tok, "python_start", "python_end")
    return [start, *tok.encode(expression), end]


def result(tok, text):
    start, end = special(tok, "output_start", "output_end")
    return [start, *tok.encode(text), end]


def reply(engine, sampling=GREEDY, prompt=PROMPT, tools=True):
    request = engine.submit(prompt, sampling, tools=tools)
    deltas = []
    while engine.busy:
        deltas += engine.step()
    assert all(delta.request is request for delta in deltas)
    return deltas


def texts(deltas):
    """[(kind, text)] with neighbours of one kind joined."""
    groups = itertools.groupby((delta for delta in deltas if delta.text), key=lambda delta: delta.kind)
    return [(kind, "".join(delta.text for delta in group)) for kind, group in groups]


def test_the_result_of_a_tool_call_is_forced_in_as_one_chunk(scripted, tok):
    said = [*tok.encode("the sum "), *call(tok, "12 + 30")]
    forced = result(tok, "42")
    after = [*tok.encode(" sat"), *special(tok, "assistant_end")]
    scripted.say(3, [*said, *[0] * len(forced), *after])  # what is scripted where the result stands must not matter
    deltas = reply(Engine(scripted, tok))
    assert [delta.token_id for delta in deltas] == [*said, *forced, *after]
    assert texts(deltas) == [("text", "the sum "), ("tool", "12 + 30"), ("output", "42"), ("text", " sat")]
    assert deltas[-1].finish == "stop"
    shapes = [shape for shape in scripted.calls if shape[1] > 1]
    assert shapes == [(1, 3), (1, 1 + len(forced))]  # the prompt, then python_end with the result behind it


def test_after_a_forced_result_the_model_goes_on_as_if_it_had_been_in_the_prompt(scripted, tok):
    said = call(tok, "6*7")
    scripted.say(3, said)
    deltas = reply(Engine(scripted, tok), Sampling(temperature=0, max_tokens=30))
    ids = [delta.token_id for delta in deltas]
    fixed = [*PROMPT, *said, *result(tok, "42")]
    assert ids[: len(fixed) - 3] == fixed[3:]
    scripted.script = {}
    for token in ids[len(fixed) - 3 :]:
        assert token == int(scripted(torch.tensor([fixed]))[0, -1].argmax())
        fixed.append(token)


def test_an_invalid_expression_forces_nothing(scripted, tok):
    for expression in ("12 +", "1/0", ""):
        said = [*call(tok, expression), *tok.encode("cat"), *special(tok, "assistant_end")]
        scripted.say(3, said)
        deltas = reply(Engine(scripted, tok))
        assert [delta.token_id for delta in deltas] == said
        assert texts(deltas) == [("tool", expression)] * bool(expression) + [("text", "cat")]


def test_without_tools_nothing_is_evaluated(scripted, tok):
    said = [*call(tok, "1+1"), *special(tok, "assistant_end")]
    scripted.say(3, said)
    deltas = reply(Engine(scripted, tok), tools=False)
    assert [delta.token_id for delta in deltas] == said
    assert texts(deltas) == [("text", "1+1")]


def test_a_result_that_does_not_fit_is_not_cut(scripted, tok):
    said = call(tok, "10**50")
    scripted.say(3, said)
    deltas = reply(Engine(scripted, tok), Sampling(temperature=0, max_tokens=len(said) + 3))
    assert [delta.token_id for delta in deltas] == said
    assert deltas[-1].finish == "length"
    exact = len(said) + len(result(tok, "1" + "0" * 50))
    deltas = reply(Engine(scripted, tok), Sampling(temperature=0, max_tokens=exact))
    assert len(deltas) == exact
    assert deltas[-1].finish == "length"
    assert texts(deltas)[-1] == ("output", "1" + "0" * 50)


def test_many_rows_call_the_tool_at_different_times(scripted, tok):
    engine = Engine(scripted, tok, max_rows=4)
    scripted.say(10, [*call(tok, "12*12"), *[0] * len(result(tok, "144")), *special(tok, "assistant_end")])
    requests = [engine.submit([9] * length, GREEDY) for length in (3, 5, 9, 10, 7)]
    deltas = []
    while engine.busy:
        deltas += engine.step()
    for request in requests:
        shown = texts(delta for delta in deltas if delta.request is request)
        assert [entry for entry in shown if entry[0] != "text"] == [("tool", "12*12"), ("output", "144")]


def test_special_tokens_are_never_shown_as_text(scripted, tok):
    said = [*special(tok, "output_start", "output_end", "python_end", "user_end", "assistant_start")]
    scripted.say(3, [*said, *tok.encode("mat"), *special(tok, "assistant_end")])
    assert texts(reply(Engine(scripted, tok))) == [("text", "mat")]


def test_partial_characters_are_held_back(scripted, tok):
    text = "☃日本é!"
    said = one_by_one(tok, text)
    scripted.say(3, [*said, *special(tok, "assistant_end")])
    deltas = reply(Engine(scripted, tok))
    assert "".join(delta.text for delta in deltas) == text
    assert all("�" not in delta.text for delta in deltas)
    scripted.say(3, said[:2])
    cut = reply(Engine(scripted, tok), Sampling(temperature=0, max_tokens=2))
    assert "".join(delta.text for delta in cut) == "�"  # said only where the reply ends in the middle


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("the cat sat on", ("sat",), "the cat "),
        ("the cat sat on", ("t s",), "the ca"),
        ("aaab aab", ("aab",), "a"),
        ("the end", ("ends",), "the end"),
        ("the cat", ("mat", "cat", "e c"), "th"),
        ("the cat", ("the",), ""),
    ],
)
@pytest.mark.parametrize("streaming", [True, False])
def test_stop_strings_split_over_tokens(scripted, tok, text, stop, shown, streaming):
    scripted.say(3, [*one_by_one(tok, text), *special(tok, "assistant_end")])
    engine = Engine(scripted, tok)
    sampling = Sampling(temperature=0, max_tokens=40, stop=stop)
    if not streaming:
        [[completion]] = engine.sample([PROMPT], 1, sampling)
        assert (completion.text, completion.finish) == (shown, "stop")
        return
    deltas = reply(engine, sampling)
    assert "".join(delta.text for delta in deltas) == shown
    assert deltas[-1].finish == "stop"


def one_by_one(tok, text):
    """A token for each byte, so that every text is split everywhere."""
    single = {tok.token_bytes(i): i for i in range(tok.vocab_size)}
    return [single[bytes([byte])] for byte in text.encode()]


def test_text_held_for_a_stop_string_comes_before_a_tool_call(scripted, tok):
    scripted.say(3, [*one_by_one(tok, "a se"), *call(tok, "2+2"), *[0] * len(result(tok, "4"))])
    deltas = reply(Engine(scripted, tok), Sampling(temperature=0, max_tokens=14, stop=("sea",)))
    assert texts(deltas)[:3] == [("text", "a se"), ("tool", "2+2"), ("output", "4")]


def test_chat_streams_pieces_and_generate_continues_text(model, tok):
    engine = Engine(model, tok)
    messages = [{"role": "user", "content": "the cat"}]
    deltas = list(engine.chat(messages, temperature=0, max_tokens=12))
    assert deltas[-1].finish is not None
    assert [p.token_id for p in engine.chat(messages, temperature=0, max_tokens=12)] == [p.token_id for p in deltas]
    both = engine.generate(["the cat", "on the"], temperature=0, max_tokens=5)
    assert both == [engine.generate([prompt], temperature=0, max_tokens=5)[0] for prompt in ("the cat", "on the")]
    with pytest.raises(ValueError, match="accepted: a list of texts"):
        engine.generate("the cat")
    with pytest.raises(ValueError, match="temperature is"):
        engine.chat(messages, temperature=float("nan"))


def test_chats_and_submitted_requests_share_an_engine(model, tok):
    messages = [{"role": "user", "content": "the mat"}]
    expected = [p.token_id for p in Engine(model, tok).chat(messages, temperature=0, max_tokens=9)]
    engine = Engine(model, tok)
    request = engine.submit(PROMPT, Sampling(temperature=0, max_tokens=6), tools=False)
    one, two = (engine.chat(messages, temperature=0, max_tokens=9) for _ in range(2))
    mixed = list(itertools.zip_longest(one, two))
    assert [p.token_id for p, _ in mixed] == [p.token_id for _, p in mixed] == expected
    left = []
    while engine.busy:
        left += engine.step()
    assert {p.request for p in left} == {request}
    assert left[-1].finish is not None


def test_closing_a_chat_frees_its_row(model, tok):
    engine = Engine(model, tok, max_rows=1)
    stream = engine.chat([{"role": "user", "content": "the cat"}], max_tokens=40)
    request = next(stream).request
    stream.close()
    engine.step()
    assert request.finish is not None
    assert not engine.busy


def turns(count, length=10):
    messages = []
    for number in range(count):
        messages += [
            {"role": "user", "content": f"question {number} " + "x" * length},
            {"role": "assistant", "content": f"answer {number}"},
        ]
    return [*messages, {"role": "user", "content": "the last question"}]


def test_a_conversation_beyond_the_context_goes_on(long_model, tok):
    """nanochat issue 581."""
    engine = Engine(long_model, tok)
    messages = turns(50)
    deltas = list(engine.chat(messages, max_tokens=8, seed=1))
    request = deltas[0].request
    assert deltas[-1].finish in ("stop", "length")
    assert request.dropped % 2 == 0
    assert 0 < request.dropped < len(messages)
    assert not request.truncated
    prompt = tok.decode(request.prompt)
    assert "the last question" in prompt
    assert "question 49" in prompt
    assert "question 0 " not in prompt
    assert len(request.prompt) <= 256 - 8
    short = next(engine.chat(turns(1), max_tokens=1)).request
    assert short.dropped == 0


def test_the_system_message_stays_and_a_long_question_loses_its_beginning(tok):
    system = {"role": "system", "content": "always be kind"}
    fitted = fit_conversation([system, *turns(50)], tok, 256, 8)
    assert "always be kind" in tok.decode(fitted.ids)
    assert "question 49" in tok.decode(fitted.ids)
    assert fitted.dropped > 0
    question = {"role": "user", "content": "beginning " + "y" * 2000 + " ending"}
    for messages in ([question], [system, question], [system, *turns(3)[:-1], question]):
        fitted = fit_conversation(messages, tok, 64, 8)
        assert fitted.truncated
        assert len(fitted.ids) == 64 - 8
        assert fitted.ids[:2] == special(tok, "bos", "user_start")
        assert fitted.ids[-2:] == special(tok, "user_end", "assistant_start")
        text = tok.decode(fitted.ids)
        assert text.endswith(" ending")
        assert "beginning" not in text
        assert ("kind" in text) == (messages[0] is system)
    endless = {"role": "system", "content": "z" * 5000}
    assert len(fit_conversation([endless, question], tok, 64, 8).ids) == 56
    silent = {"role": "system", "content": ""}
    assert fit_conversation([silent, question], tok, 64, 8) == fit_conversation([question], tok, 64, 8)
    continued = fit_conversation([turns(1)[-1], {"role": "assistant", "content": "And so"}], tok, 256, 8)
    assert tok.decode(continued.ids).endswith("And so")
    with pytest.raises(ValueError, match="the context is 4 tokens"):
        fit_conversation([question], tok, 4, 1)


def test_samples_share_the_prompt_and_differ_from_the_first_token(long_model, tok):
    """nanochat issue 201."""
    prompts = [[9, 8, 7, 6, 5][: n % 4 + 2] for n in range(6)]
    engine = Engine(long_model, tok, max_rows=8)
    options = Sampling(seed=3, max_tokens=12)
    seen = []
    groups = engine.sample(prompts, 10, options, tools=False, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (60, 60)
    assert [len(group) for group in groups] == [10] * 6
    assert all(len({completion.ids[0] for completion in group}) > 2 for group in groups)
    again = Engine(long_model, tok, max_rows=3).sample(prompts, 10, options, tools=False)
    assert again == groups
    assert all(c.mask == [1] * len(c.ids) and len(c.ids) <= 12 for group in groups for c in group)
    for prompt, group in zip(prompts, groups, strict=True):  # a copied row continues as a row of its own would
        ids = [*prompt, *group[3].ids]
        logits = long_model(torch.tensor([ids]))[0]
        probability = logits.softmax(-1)
        assert all(probability[len(prompt) - 1 + i, token] > 1e-7 for i, token in enumerate(group[3].ids))


def test_greedy_samples_equal_the_full_forward(long_model, tok):
    prompts = [[5, 4, 3], [100], [7] * 40]
    groups = Engine(long_model, tok, max_rows=4).sample(prompts, 3, Sampling(temperature=0, max_tokens=10), tools=False)
    for prompt, group in zip(prompts, groups, strict=True):
        assert group[0] == group[1] == group[2]
        ids = list(prompt)
        for token in group[0].ids:
            assert token == int(long_model(torch.tensor([ids]))[0, -1].argmax())
            ids.append(token)


def test_completions_mark_what_was_forced(scripted, tok):
    said, forced = [*tok.encode("the "), *call(tok, "2+3")], result(tok, "5")
    after = [*tok.encode("mat"), *special(tok, "assistant_end")]
    scripted.say(3, [*said, *[0] * len(forced), *after])
    [[one, two]] = Engine(scripted, tok).sample([PROMPT], 2, GREEDY)
    assert one == two
    assert one.ids == [*said, *forced, *after]
    assert one.mask == [1] * len(said) + [0] * len(forced) + [1] * len(after)
    assert one.text == "the mat"
    assert one.finish == "stop"


def test_sample_refuses_nonsense(model, tok):
    with pytest.raises(ValueError, match="samples is 0"):
        Engine(model, tok).sample([[1]], 0)
    assert Engine(model, tok).sample([], 4) == []
