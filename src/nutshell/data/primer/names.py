"""Names of the people in the stories and word problems, and a helper for lists of words."""

GIRLS = ("Anna", "Lily", "Mia", "Nora", "Ella", "Ruby", "Zoe", "Emma", "Rosa", "Ivy", "Amy", "Kate", "Lucy", "Sara")
BOYS = ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Tim", "Finn", "Omar", "Adam", "Noah", "Paul", "Hugo", "Dan")
NAMES = GIRLS + BOYS


def listed(text: str, separator: str | None = None) -> tuple[str, ...]:
    """The words of a text, or what its separator separates."""
    return tuple(text.split(separator))
