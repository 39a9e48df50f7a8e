"""Whatever a model says, its reply is what the tokens spell, up to the first stop string, however it is cut into tokens."""

from hypothesis import given
from hypothesis import strategies as st

from nutshell.infer.request import Request, Vocabulary
from nutshell.infer.sampling import Sampling
from nutshell.tokenizer import Tokenizer

TOK = Tokenizer.train(["the cat sat on the mat, naïve 日本語 ☃"] * 2, vocab_size=320)
VOCABULARY = Vocabulary.of(TOK)
words = st.text(st.sampled_from("the cat日☃é"), min_size=1, max_size=4)


def reply_of(tokens, *, stop=(), limit=64, tools=False, tool=None, streaming=True):
    """The request after these tokens or its end, and its deltas."""
    request = Request(VOCABULARY, [TOK.bos_id], Sampling(stop=tuple(stop)), limit, tools=tools, tool=tool, streaming=streaming)
    deltas = []
    for token in tokens:
        deltas += request.accept(token)
        if request.finish:
            break
    return request, deltas


@given(
    tokens=st.lists(st.integers(0, TOK.vocab_size - 1) | words.flatmap(lambda t: st.sampled_from(TOK.encode(t))), max_size=40),
    stop=st.lists(words, max_size=2), limit=st.integers(1, 40),
)  # fmt: skip
def test_the_text_is_what_the_tokens_spell_up_to_a_stop(tokens, stop, limit):
    tokens = [token for token in tokens if token not in VOCABULARY.ends] + [
        VOCABULARY.python_end,
        TOK.special_id("<|assistant_end|>"),
    ]
    request, deltas = reply_of(tokens, stop=stop, limit=limit)
    text, finish, decoder = "", "length", TOK.stream()
    for count, token in enumerate(tokens, 1):  # the same, one token at a time, with nothing held back
        ended = token in VOCABULARY.ends
        text += decoder.push(token) + (decoder.flush() if ended or count == limit else "")
        places = [place for one in stop if (place := text.find(one)) >= 0]
        if places or ended or count == limit:
            text, finish = (text[: min(places)], "stop") if places else (text, "stop" if ended else "length")
            break
    assert (request.completion().text, request.finish) == (text, finish)
    assert "".join(delta.text for delta in deltas) == text
    assert [delta.finish for delta in deltas][-1] == finish
    assert all(delta.finish is None for delta in deltas[:-1])
    assert request.ids == tokens[:count]
    assert request.mask == [1] * count
    if not stop:
        assert reply_of(tokens, limit=limit, streaming=False)[0].completion().text == text


@given(
    said=st.lists(st.one_of(words, words.map(lambda text: (text,)), st.sampled_from("日".encode())), max_size=5),
    answers=st.booleans(),
    limit=st.integers(1, 60),
)
def test_forced_results_stand_behind_their_calls_or_not_at_all(said, answers, limit):
    """A pair is a call, a number a byte of a character. The mask tells what was forced, and half a result is never there."""
    special = TOK.special_id
    calls = iter([text for (text,) in (part for part in said if isinstance(part, tuple))])
    tokens = []
    for part in said:
        if isinstance(part, tuple):
            tokens += [VOCABULARY.python_start, *TOK.encode(*part), VOCABULARY.python_end]
        else:
            tokens += TOK.encode(part) if isinstance(part, str) else [part]
    asked = []

    def tool(expression):
        asked.append(expression)
        return f"={expression}" if answers else None

    request, deltas = reply_of([*tokens, special("<|assistant_end|>")], limit=limit, tools=True, tool=tool)
    assert asked == [call for _, call in zip(asked, calls, strict=False)]
    sampled = [token for token, own in zip(request.ids, request.mask, strict=True) if own]
    assert sampled == [*tokens, special("<|assistant_end|>")][: len(sampled)]
    assert len(request.ids) <= limit
    forced, place = [], 0
    while place < len(request.ids):
        if request.mask[place]:
            place += 1
            continue
        end = request.ids.index(VOCABULARY.output_end, place)  # each is whole
        assert request.ids[place - 1] == VOCABULARY.python_end
        assert request.ids[place] == VOCABULARY.output_start
        forced.append(TOK.decode(request.ids[place:end]))
        assert not any(request.mask[place : end + 1])
        place = end + 1
    assert forced == [f"={call}" for call in asked][: len(forced)] if answers else not forced
    assert "".join(d.text for d in deltas if d.kind == "text") == request.completion().text
    whole, _ = reply_of([*tokens, special("<|assistant_end|>")], limit=limit, tools=True, tool=tool, streaming=False)
    assert whole.completion() == request.completion()
