"""One kind of fact: its pairs of subject and answer, and the ways to state it and to ask for it.

Placeholders of every template: {s} subject, {a} answer, {S} and {A} with a capital first letter, {an_s} and {an_a} with
"a" or "an" in front, {An_s} and {An_a} likewise with a capital, {s0} and {s1} the subject's first word and the rest,
{np} the relation's noun phrase (or clause), {Np} the same with a capital.
"""

from dataclasses import dataclass, field
from functools import cached_property

NOUN_QUESTIONS = (
    "What is {np}?",
    "Tell me {np}.",
    "Can you tell me {np}?",
    "Do you know {np}?",
    "Please tell me {np}.",
    "I want to know {np}.",
    "{Np}?",
    "Name {np}.",
)
CLAUSE_QUESTIONS = (
    "Tell me {np}.",
    "Can you tell me {np}?",
    "Do you know {np}?",
    "Please tell me {np}.",
    "I want to know {np}.",
)
NOUN_HELD_OUT = "I am curious what {np} is."
CLAUSE_HELD_OUT = "I am curious {np}."


def lines(text: str) -> tuple[tuple[str, str], ...]:
    """Pairs from lines of the form "subject: answer"."""
    pairs = (line.split(": ", 1) for line in text.strip().splitlines())
    return tuple((subject, answer) for subject, answer in pairs)


def same_for(answer: str, subjects: str) -> tuple[tuple[str, str], ...]:
    """Pairs of every subject, separated by spaces (an underscore stands for a space), with the one answer."""
    return tuple((subject.replace("_", " "), answer) for subject in subjects.split())


def with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact. All templates may use the placeholders of the module's docstring."""

    name: str
    pairs: tuple[tuple[str, str], ...]
    np: str
    """What is asked for, as in "the capital of {s}"; with `clause`, as in "how many legs {an_s} has"."""
    reply: str
    """The assistant's sentence, also a statement of the documents."""
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Questions of the tests only. They occur in no training text."""
    follow_ups: tuple[str, ...] = ()
    """Short questions that make sense after a question of the same relation."""
    clause: bool = False
    also_true: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By subject: answers that are not given but would not be wrong either, so never offered as wrong options."""

    @cached_property
    def training_questions(self) -> tuple[str, ...]:
        return self.questions + (CLAUSE_QUESTIONS if self.clause else NOUN_QUESTIONS)

    @cached_property
    def test_questions(self) -> tuple[str, ...]:
        return (*self.held_out, CLAUSE_HELD_OUT if self.clause else NOUN_HELD_OUT)

    @cached_property
    def answers(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(answer for _, answer in self.pairs))

    def wrong_answers(self, subject: str, answer: str) -> list[str]:
        """Answers of other subjects that are wrong for this one."""
        right = (answer, *self.also_true.get(subject, ()))
        return [other for other in self.answers if other not in right]

    def fill(self, template: str, subject: str, answer: str) -> str:
        """The template with its placeholders filled in."""
        first, _, rest = subject.partition(" ")
        values = {
            "s": subject,
            "a": answer,
            "S": capital(subject),
            "A": capital(answer),
            "s0": first,
            "s1": rest,
            "an_s": with_article(subject),
            "An_s": capital(with_article(subject)),
            "an_a": with_article(answer),
            "An_a": capital(with_article(answer)),
        }
        phrase = self.np.format(**values)
        return capital(template.format(**values, np=phrase, Np=capital(phrase)))
