"""One kind of fact: its pairs of subject and answer, and the ways to state it and to ask for it.

They are read from book/*.ini, a section a relation:

    noun = the capital of {s}            what is asked for; `clause` where that is a clause, as in "how many legs {an_s} has"
    reply = The capital of {s} is {a}.   the assistant's sentence, also a statement of the documents
    pairs = France: Paris; Italy: Rome   subject: answer; or groups = two: duck, hen (answer: subjects); or turned = capital,
                                         which are the pairs of that relation, the answer for the subject
    statements, questions, held out, follow-ups: templates, one a line
    also true = bread: milk, cream       by subject, answers that are not given but would not be wrong either

Placeholders of every template: {s} subject, {a} answer, {S} and {A} with a capital first letter, {an_s} and {an_a} with
"a" or "an" in front, {An_s} and {An_a} likewise with a capital, {s0} and {s1} the subject's first word and the rest,
{np} what is asked for, {Np} the same with a capital.
"""

from configparser import ConfigParser
from dataclasses import dataclass
from functools import cache, cached_property

from nutshell.data.primer.book import BOOK, entries

CHAPTERS = ("world", "animals", "things", "language")
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


def with_article(noun: str) -> str:
    return f"{'an' if noun[0].lower() in 'aeiou' else 'a'} {noun}"


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A kind of fact; the fields are those of its section."""

    chapter: str
    np: str
    clause: bool
    reply: str
    pairs: tuple[tuple[str, str], ...]
    statements: tuple[str, ...]
    questions: tuple[str, ...]
    held_out: tuple[str, ...]
    """Questions of the tests only. They occur in no training text."""
    follow_ups: tuple[str, ...]
    """Short questions that make sense after a question of the same relation."""
    also_true: dict[str, tuple[str, ...]]
    """Never offered as wrong options."""

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


@cache
def relations() -> tuple[Relation, ...]:
    """All of the book, chapter by chapter."""
    found: dict[str, Relation] = {}
    for chapter in CHAPTERS:
        sections = ConfigParser(interpolation=None, delimiters=("=",), comment_prefixes=("#",))
        sections.read_string((BOOK / f"{chapter}.ini").read_text(encoding="utf-8"))
        for name in sections.sections():
            fields = dict(sections[name])
            if "turned" in fields:
                pairs = [(answer, subject) for subject, answer in found[fields["turned"]].pairs]
            else:
                pairs = [(s, answer) for answer, several in _pairs(fields.get("groups", "")) for s in several.split(", ")]
                pairs += _pairs(fields.get("pairs", ""))
            found[name] = Relation(
                chapter=chapter,
                np=fields.get("clause") or fields["noun"],
                clause="clause" in fields,
                reply=fields["reply"],
                pairs=tuple(pairs),
                statements=entries(fields["statements"]),
                questions=entries(fields["questions"]),
                held_out=entries(fields["held out"]),
                follow_ups=entries(fields["follow-ups"]),
                also_true={subject: tuple(others.split(", ")) for subject, others in _pairs(fields.get("also true", ""))},
            )
    return tuple(found.values())


def _pairs(text: str) -> list[tuple[str, str]]:
    """The two sides of each "left: right"."""
    sides = (entry.partition(": ") for entry in entries(text))
    return [(left, right) for left, _, right in sides]
