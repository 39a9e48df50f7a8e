"""All facts: pages and questions for training, and test questions held out by their phrasing."""

import random
from dataclasses import dataclass
from functools import cache

from nutshell.data.primer.problem import Message, Problem, assistant, user
from nutshell.data.primer.relation import Relation, capital, relations

OPTION_LETTERS = "ABCDE"
YES_OR_NO = 0.08
TELL_ABOUT = 0.05
"""How often a question asks whether a statement is true, or for everything known about a subject."""
LOWER_CASE_IN_DOCUMENTS = 0.2
"""How often a question on a page is lower case without its last mark, as many users write."""
LETTER_ONLY = 0.35
"""How often a multiple-choice question asks for the letter alone."""
LETTER_ONLY_REQUESTS = ("Reply with the letter only.", "Answer with the letter.", "Only the letter, please.")
ABOUT_REQUESTS = (
    "Tell me about {s}.",
    "What do you know about {s}?",
    "Tell me something about {s}.",
    "What can you tell me about {s}?",
)
CHOICE_REQUESTS = ("", "", "", "Which one is right?", "Choose one.", "Pick the right answer.", "A, B, C or D?")


@dataclass(frozen=True, eq=False)
class Fact:
    """A subject and its answer in a relation, with every sentence about it, made once."""

    relation: Relation
    subject: str
    answer: str
    reply: str
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    test_questions: tuple[str, ...]
    follow_ups: tuple[str, ...]
    wrong: tuple[str, ...]
    """Answers of the same relation that are wrong here."""

    def wrong_reply(self, wrong: str) -> str:
        return self.relation.fill(self.relation.reply, self.subject, wrong)


@cache
def facts() -> tuple[Fact, ...]:
    """Every fact, relation by relation."""
    return tuple(_fact(relation, *pair) for relation in relations() for pair in relation.pairs)


def _fact(relation: Relation, subject: str, answer: str) -> Fact:
    def fill(templates: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(relation.fill(template, subject, answer) for template in templates)

    reply = relation.fill(relation.reply, subject, answer)
    return Fact(
        relation=relation,
        subject=subject,
        answer=answer,
        reply=reply,
        statements=(reply, *fill(relation.statements)),
        questions=fill(relation.training_questions),
        test_questions=fill(relation.test_questions),
        follow_ups=fill(relation.follow_ups),
        wrong=tuple(relation.wrong_answers(subject, answer)),
    )


@cache
def _by_relation() -> tuple[tuple[Fact, ...], ...]:
    return tuple(tuple(fact for fact in facts() if fact.relation is relation) for relation in relations())


@cache
def _by_subject() -> tuple[tuple[Fact, ...], ...]:
    """Facts about subjects that are in several relations, such as France or the dog."""
    groups: dict[str, list[Fact]] = {}
    for fact in facts():
        groups.setdefault(fact.subject, []).append(fact)
    return tuple(tuple(group) for group in groups.values() if len(group) >= 3)


def facts_turns(rng: random.Random, turns: int = 1) -> list[Message]:
    """A question about a fact; later turns ask for the same of other subjects ("And of Italy?")."""
    fact = rng.choice(facts())
    chance = rng.random()
    if turns == 1 and chance < YES_OR_NO:
        return _yes_or_no(rng, fact)
    if turns == 1 and chance < YES_OR_NO + TELL_ABOUT:
        return _tell_about(rng, rng.choice(_by_subject()))
    messages = [user(rng.choice(fact.questions)), assistant(fact.reply)]
    if turns > 1 and fact.follow_ups:
        group = _by_relation()[relations().index(fact.relation)]
        for other in rng.sample(group, min(turns - 1, len(group) - 1)):
            if other is not fact:
                messages += [user(rng.choice(other.follow_ups)), assistant(other.reply)]
    return messages


def _yes_or_no(rng: random.Random, fact: Fact) -> list[Message]:
    """A statement to confirm or to correct."""
    if rng.random() < 0.5:
        return [user(f"Is this true? {fact.reply}"), assistant(f"Yes, that is true. {fact.reply}")]
    wrong = fact.wrong_reply(rng.choice(fact.wrong))
    return [user(f"Is this true? {wrong}"), assistant(f"No, that is not true. {fact.reply}")]


def _tell_about(rng: random.Random, group: tuple[Fact, ...]) -> list[Message]:
    """Up to three things about a country or an animal."""
    subject = group[0].subject if group[0].relation.chapter == "world" else f"the {group[0].subject}"
    told = " ".join(fact.reply for fact in group[:3])
    return [user(rng.choice(ABOUT_REQUESTS).format(s=subject)), assistant(told)]


def choices_turns(rng: random.Random) -> list[Message]:
    """A multiple-choice question with lettered options."""
    question, reply = _choice(rng, rng.choice(facts()))
    return [user(question), assistant(reply)]


def _choice(rng: random.Random, fact: Fact) -> tuple[str, str]:
    count = min(rng.choice((2, 3, 4, 4, 4)), len(fact.wrong) + 1)
    options = [fact.answer, *rng.sample(fact.wrong, count - 1)]
    rng.shuffle(options)
    mark = rng.choice((")", ")", "."))
    listed = "\n".join(f"{OPTION_LETTERS[index]}{mark} {option}" for index, option in enumerate(options))
    letter = OPTION_LETTERS[options.index(fact.answer)]
    question = f"{rng.choice(fact.questions)}\n{listed}"
    if rng.random() < LETTER_ONLY:
        return f"{question}\n{rng.choice(LETTER_ONLY_REQUESTS)}", letter
    request = rng.choice(CHOICE_REQUESTS)
    if request == "A, B, C or D?" and count < 4:
        request = ""
    return f"{question}\n{request}".rstrip("\n"), f"{fact.reply} The answer is {letter}."


def facts_document(rng: random.Random) -> str:
    """A page of facts: about one relation, about one subject, mixed, as questions and answers, or as a quiz."""
    chance = rng.random()
    if chance < 0.2:
        group = rng.choice(_by_subject())
        several = rng.sample(group, len(group))
        return capital(" ".join(rng.choice(fact.statements) for fact in several + rng.sample(group, 2)))
    if chance < 0.4:
        group = rng.choice(_by_relation())
        chosen = rng.sample(group, min(len(group), rng.randint(4, 9)))
        return " ".join(rng.choice(fact.statements) for fact in chosen)
    chosen = [rng.choice(facts()) for _ in range(rng.randint(4, 9))]
    if chance < 0.6:
        return " ".join(rng.choice(fact.statements) for fact in chosen)
    if chance < 0.92:
        return "\n".join(f"Question: {_asked(rng, fact)}\nAnswer: {fact.reply}" for fact in chosen)
    pairs = (_choice(rng, fact) for fact in chosen[:4])
    return "\n".join(f"Question: {question}\nAnswer: {reply}" for question, reply in pairs)


def _asked(rng: random.Random, fact: Fact) -> str:
    question = rng.choice(fact.questions)
    return question.lower().rstrip(".?") if rng.random() < LOWER_CASE_IN_DOCUMENTS else question


def held_out_facts(rng: random.Random) -> Problem:
    """A test problem: a fact in a held-out phrasing, its reply, and the replies with three wrong answers."""
    fact = rng.choice(facts())
    wrong = rng.sample(fact.wrong, min(3, len(fact.wrong)))
    options = [fact.reply, *map(fact.wrong_reply, wrong)]
    rng.shuffle(options)
    return Problem(
        kind="facts",
        messages=[user(rng.choice(fact.test_questions))],
        answer=fact.reply,
        options=tuple(options),
    )
