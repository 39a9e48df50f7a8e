"""Nothing that the primer tests occurs in what it trains on: neither numbers, nor words, nor phrasings."""

import re
from itertools import chain

import pytest

from nutshell.data import primer
from nutshell.data.primer.facts import facts
from nutshell.data.primer.sums import (
    held_out_numbers,
    held_out_pairs,
    is_held_out_number,
    is_held_out_pair,
)
from nutshell.data.primer.words import held_out_words, is_held_out_word, training_words

PAGES_CHARACTERS = 3_000_000
CONVERSATIONS = 8000
RL_PROBLEMS = 4000

NUMBERS_IN_EXPRESSION = re.compile(r"(\d+) ?(?:[-+*x/]|plus|minus|times|divided by) ?(\d+)")
SPELLED = re.compile(r"I spell (\w+):|I count \w in (\w+):|I count the (?:letters|vowels) of (\w+):")


def held_out_questions():
    return [question for fact in facts() for question in fact.test_questions]


def normal(text):
    """Lower case, words and digits only: what stays of a phrasing however it is typed."""
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))


@pytest.fixture(scope="module")
def training_text():
    def contents(messages):
        for message in messages:
            content = message["content"]
            yield from [content] if isinstance(content, str) else (part["text"] for part in content)

    chats = primer.conversations(11, CONVERSATIONS)
    problems = primer.rl_problems(11, RL_PROBLEMS)
    return "\n".join(
        chain(
            primer.documents(11, PAGES_CHARACTERS),
            chain.from_iterable(contents(chat["messages"]) for chat in chats),
            chain.from_iterable(contents(problem.messages) for problem in problems),
        )
    )


@pytest.fixture(scope="module")
def test_problems():
    return {kind: list(primer.held_out(kind, 0, 500)) for kind in ("facts", "sums", "letters", "vowels")}


def question(problem):
    return problem.messages[-1]["content"]


def test_held_out_numbers_occur_nowhere(training_text):
    seen = {int(number) for number in re.findall(r"(?<!\d)\d{3}(?!\d)", training_text)}
    assert len(seen) > 700  # the sample is large enough to have met most of the 900
    assert not seen & set(held_out_numbers())


def test_held_out_pairs_are_never_the_operands_of_a_sum(training_text):
    pairs = {(int(a), int(b)) for a, b in NUMBERS_IN_EXPRESSION.findall(training_text)}
    assert len(pairs) > 5000
    assert not [pair for pair in pairs if is_held_out_pair(*pair)]


def test_held_out_words_occur_nowhere(training_text):
    found = set(re.findall(r"[a-z]+", training_text.lower())) & set(held_out_words())
    assert not found


def test_no_held_out_word_is_spelled_or_counted(training_text):
    spelled = {"".join(groups) for groups in SPELLED.findall(training_text)}
    assert len(spelled) > 5000
    assert not [word for word in spelled if is_held_out_word(word)]


def test_held_out_phrasings_occur_nowhere(training_text):
    words = normal(training_text).split()
    asked = " " + " ".join(words) + " "
    runs = set(zip(words, words[1:], words[2:], words[3:], strict=False))

    def occurs(phrasing):
        own = normal(phrasing).split()
        possible = all(run in runs for run in zip(own, own[1:], own[2:], own[3:], strict=False))
        return possible and f" {' '.join(own)} " in asked  # the cheap test first: a search reads the whole text

    assert occurs("What is the capital of France?")
    assert not [phrasing for phrasing in held_out_questions() if occurs(phrasing)]


def test_held_out_phrasings_differ_from_every_trained_one():
    """Exhaustive, where the sample above may miss a phrasing."""
    trained = {normal(text) for fact in facts() for text in (*fact.questions, *fact.follow_ups, *fact.statements)}
    assert not [phrasing for phrasing in held_out_questions() if normal(phrasing) in trained]


def test_every_sum_of_the_tests_is_held_out(test_problems):
    for problem in test_problems["sums"]:
        a, b = [int(number) for number in re.findall(r"\d+", question(problem))]
        assert is_held_out_number(a) or is_held_out_number(b) or is_held_out_pair(a, b)
        assert int(problem.answer) in (a + b, a - b, b - a, a * b)
        assert int(problem.answer) >= 0


def test_every_word_of_the_tests_is_held_out(test_problems):
    real = 0
    for problem in test_problems["letters"]:
        words = [word for word in re.findall(r"[a-z]+", question(problem)) if is_held_out_word(word) and len(word) > 2]
        assert words
        real += bool(set(words) & set(held_out_words()))
        assert problem.answer in {str(word.count(letter)) for word in words for letter in "abcdefghijklmnopqrstuvwxyz"}
    assert real > 0.6 * len(test_problems["letters"])


def test_vowels_are_counted_right_both_ways(test_problems, training_text):
    for problem in test_problems["vowels"]:
        word = next(word for word in re.findall(r"[a-z]+", question(problem)) if word in held_out_words())
        assert int(problem.answer) == len(re.findall("[aeiou]", word))
    said = re.findall(r"The word (\w+) has (\d) vowels?\.", training_text)
    worked_out = re.findall(r"I count the vowels of (\w+): ([a-z0-9 ]+)\. The word \1 has", training_text)
    assert len(said) > 2 * len(worked_out) > 50
    assert all(int(count) == len(re.findall("[aeiou]", word)) for word, count in said)
    assert all(re.sub(r"[\d ]", "", steps) == word for word, steps in worked_out)


def test_every_fact_of_the_tests_has_one_right_and_three_wrong_replies(test_problems):
    replies = {fact.reply for fact in facts()}
    phrasings = set(held_out_questions())
    for problem in test_problems["facts"]:
        assert question(problem) in phrasings
        assert len(set(problem.options)) == 4
        assert [option for option in problem.options if option in replies] == [problem.answer]


def test_held_out_parts_are_about_as_large_as_promised():
    assert 50 <= len(held_out_numbers()) <= 100
    assert 250 <= len(held_out_pairs()) <= 450
    assert 80 <= len(held_out_words()) <= 200
    assert len(training_words()) > 800


def test_test_problems_differ_and_stay_the_same(test_problems):
    for kind, problems in test_problems.items():
        assert len({question(problem) for problem in problems}) == len(problems)
        assert list(primer.held_out(kind, 0, 100)) == problems[:100]


def test_rl_problems_have_right_answers():
    for problem in primer.rl_problems(2, 400):
        if problem.kind == "sums":
            a, b = [int(number) for number in re.findall(r"\d+", question(problem))]
            results = {a + b, a - b, b - a, a * b, a // b if b else 0}
            assert int(problem.answer) in results
        else:
            assert 0 <= int(problem.answer) <= 8
