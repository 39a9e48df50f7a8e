"""The primer: the same for the same seed, well formed, in the promised mixture."""

import re
from collections import Counter
from itertools import islice

import pytest

from nutshell.data import primer
from nutshell.data.primer.book import phrases
from nutshell.data.primer.conversations import CONVERSATION_WEIGHTS, SINGLE, WITH_FOLLOW_UPS
from nutshell.data.primer.documents import DOCUMENT_SHARES, WRITERS
from nutshell.data.primer.facts import facts
from nutshell.data.primer.letters import counting, measuring, spelling
from nutshell.data.primer.sums import OPERATORS, SPOKEN, Sum


def flat(conversation):
    """All text of a conversation, one message a line, parts separated by spaces."""
    contents = (message["content"] for message in conversation["messages"])
    return "\n".join(c if isinstance(c, str) else " ".join(part["text"] for part in c) for c in contents)


@pytest.fixture(scope="module")
def pages():
    return list(primer.documents(3, 600_000))


@pytest.fixture(scope="module")
def chats():
    return list(primer.conversations(3, 4000))


def test_the_same_seed_gives_the_same_pages_and_a_longer_run_goes_on(pages):
    assert list(primer.documents(3, 600_000)) == pages
    longer = list(islice(primer.documents(3, 10**9), len(pages)))
    assert longer == pages
    assert list(primer.documents(4, 10_000))[:5] != pages[:5]


def test_the_same_seed_gives_the_same_conversations(chats):
    assert list(primer.conversations(3, 200)) == chats[:200]
    assert list(primer.conversations(4, 20)) != chats[:20]


def test_documents_stop_after_the_asked_characters(pages):
    written = sum(map(len, pages))
    assert 600_000 <= written < 600_000 + len(pages[-1])
    assert list(primer.documents(0, 0)) == []


def test_every_kind_keeps_its_share_of_the_characters(pages):
    marks = {
        "sums": r"^(Question: .*\nCalculator|\d+ )",
        "letters": r"^(I (spell|count)|Question: .*\nAnswer: I (spell|count))",
    }
    characters = Counter()
    for page in pages:
        characters[next((kind for kind, mark in marks.items() if re.search(mark, page)), "other")] += len(page)
    for kind in ("sums", "letters"):
        assert characters[kind] / characters.total() == pytest.approx(DOCUMENT_SHARES[kind], abs=0.02)


def test_shares_and_weights_add_up_to_one_and_each_has_a_writer():
    assert sum(DOCUMENT_SHARES.values()) == pytest.approx(1)
    assert sum(CONVERSATION_WEIGHTS.values()) == pytest.approx(1)
    assert set(DOCUMENT_SHARES) == set(WRITERS)
    assert set(CONVERSATION_WEIGHTS) == {*SINGLE, *WITH_FOLLOW_UPS}


def test_pages_hardly_repeat(pages):
    assert len(set(pages)) > 0.95 * len(pages)
    sentences = Counter(sentence for page in pages for sentence in re.split(r"(?<=[.?!])\s", page))
    assert sentences.most_common(1)[0][1] < 0.01 * sum(sentences.values())


def test_text_is_clean(pages, chats):
    text = "\n".join(pages + [flat(chat) for chat in chats])
    dirt = re.findall(r"[{}]|  |\.\.|\?\?|,\.| \.|\bNone\b", text)
    assert not dirt
    assert text.isascii()
    # "a" before a vowel is right only where a, the letter, is meant (as in "how many a are in")
    wrong = Counter(re.findall(r"\ba [aeio]\w+", text))
    assert set(wrong) <= {f"a {word}" for word in ("in", "is", "are", "appear", "appears", "occur", "it")}
    assert not re.findall(r"\ban [^aeiouAEIOUh\W]\w+", text)


def test_conversations_alternate_and_end_with_the_assistant(chats):
    for chat in chats:
        messages = chat["messages"]
        if messages[0]["role"] == "system":
            messages = messages[1:]
        assert [message["role"] for message in messages] == ["user", "assistant"] * (len(messages) // 2)
        assert 2 <= len(messages) <= 14
        for message in messages:
            assert message["content"]
            assert isinstance(message["content"], str) or message["role"] == "assistant"


def test_tool_calls_hold_the_expression_its_value_and_the_sentence():
    chats = primer.conversations(0, 500, kinds=["sums"])
    answers = [message["content"] for chat in chats for message in chat["messages"] if message["role"] == "assistant"]
    assert len(answers) > 500
    for call, output, said in answers:
        assert [call["type"], output["type"], said["type"]] == ["python", "python_output", "text"]
        a, operator, b = re.fullmatch(r"(\d+)([-+*/])(\d+)", call["text"]).groups()
        value = Sum(int(a), operator, int(b)).result
        assert output["text"] == str(value)
        assert said["text"] == f"{a} {operator} {b} = {value}."
        if operator == "/":
            assert int(a) == value * int(b)


def test_kinds_can_be_chosen():
    chats = list(primer.conversations(0, 50, kinds=["spelling"]))
    assert all(
        "I spell" in message["content"] for chat in chats for message in chat["messages"] if message["role"] == "assistant"
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: primer.documents(0, -1), "characters must be 0 or more, got -1"),
        (lambda: primer.conversations(0, -2), "count must be 0 or more, got -2"),
        (lambda: primer.conversations(0, 1, kinds=["poems"]), "poems"),
        (lambda: primer.conversations(0, 1, kinds=[]), "kinds must be one or more"),
        (lambda: primer.held_out("poems", 0, 1), "not for 'poems'"),
        (lambda: primer.held_out("facts", 0, -1), "count must be 0 or more"),
        (lambda: primer.rl_problems(0, 1, {"facts": 1.0}), "sums, letters, vowels"),
    ],
)
def test_bad_arguments_are_named_at_once(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


def test_letters_are_spelled_and_counted_in_one_format():
    assert spelling("tree") == "I spell tree: t r e e."
    assert counting("banana", "a") == ("I count a in banana: b0 a1 n1 a2 n2 a3. The letter a appears 3 times in banana.")
    assert counting("dog", "o").endswith("The letter o appears 1 time in dog.")
    assert measuring("cat") == "I count the letters of cat: c1 a2 t3. The word cat has 3 letters."


def test_counts_in_conversations_are_right(chats):
    found = re.findall(r"The letter (\w) appears (\d) times? in (\w+)\.", "\n".join(map(flat, chats)))
    assert len(found) > 500
    assert all(word.count(letter) == int(count) for letter, count, word in found)
    share = Counter(int(count) for _, count, _ in found)
    assert min(share[0], share[2]) > 0.1 * len(found)  # neither 0 nor 2 is rare, or "1" would be a fair guess


def test_facts_are_unambiguous_and_phrased_in_many_ways():
    assert len(facts()) >= 400
    replies_by_question = {}
    for fact in facts():
        assert len(fact.wrong) >= 3
        assert fact.answer not in fact.wrong
        assert len(set(fact.questions)) >= 8
        assert len(set(fact.test_questions)) >= 2
        for question in fact.questions:
            replies_by_question.setdefault(question, set()).add(fact.reply)
    assert all(len(replies) == 1 for replies in replies_by_question.values())


def test_a_few_facts_by_hand():
    replies = {fact.reply for fact in facts()}
    assert {
        "The capital of France is Paris.",
        "The symbol of gold is Au.",
        "The day after Sunday is Monday.",
        "The month before January is December.",
        "A spider has eight legs.",
        "An octagon has eight sides.",
        "The letter after Y is Z.",
        "The third planet from the sun is Earth.",
        "There are sixty minutes in an hour.",
    } <= replies


def test_every_operator_has_questions():
    assert set(OPERATORS) == set(SPOKEN)
    for spoken in SPOKEN.values():
        assert phrases("sums", spoken)
        assert phrases("sums", f"{spoken}, a story")


def test_an_identity_fills_what_the_model_says_of_itself_and_nothing_else():
    own = primer.Identity(name="Acorn", maker="the physics class")
    plain = [str(example) for example in primer.conversations(3, 3000)]
    filled = [str(example) for example in primer.conversations(3, 3000, identity=own)]
    assert not any("Nutshell" in text or "person who ran" in text for text in filled)
    assert any("by the physics class" in text for text in filled)
    assert any("The physics class trained me" in text for text in filled)
    assert any("with the nutshell codebase" in text for text in filled)  # that is its name
    same = [before == after for before, after in zip(plain, filled, strict=True) if "Nutshell" not in before]
    assert sum(same) > 0.95 * len(same)
    pages = "\n".join(primer.documents(3, 200_000, identity=own))
    assert "Acorn" in pages
    assert "Nutshell" not in pages
