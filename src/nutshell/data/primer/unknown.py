"""Questions about the world outside the primer, and the honest answer that the model does not know."""

import random

from nutshell.data.primer.names import listed
from nutshell.data.primer.problem import Message, assistant, user
from nutshell.data.primer.relation import with_article

UNKNOWN_QUESTIONS = (
    "What is the weather today?",
    "Will it rain tomorrow?",
    "What is the time?",
    "What time is it?",
    "What day is it today?",
    "Who is the president?",
    "Who won the game last night?",
    "What is in the news?",
    "Who wrote Hamlet?",
    "Who is Taylor Swift?",
    "Who was Napoleon?",
    "Who is Elon Musk?",
    "Who painted the Mona Lisa?",
    "Write a Python program.",
    "Write some code for me.",
    "How do I fix my computer?",
    "What is quantum physics?",
    "What is the meaning of life?",
    "Explain relativity.",
    "What is the price of gold?",
    "How much does a car cost?",
    "Where can I buy shoes?",
    "What is my name?",
    "Where am I?",
    "How tall am I?",
    "What did I eat today?",
    "Translate this into French.",
    "How do I say hello in Spanish?",
    "What is the best film?",
    "Write a poem.",
    "Sing a song.",
    "Draw a picture of a cat.",
    "What is the population of the world?",
    "When did the war end?",
    "How far is the moon?",
    "Why is the sky blue?",
    "How does a car work?",
    "How do planes fly?",
    "What should I cook today?",
    "Which phone should I buy?",
    "Do you know my mother?",
    "What is the square root of two?",
    "Who is the best soccer player?",
    "What is the capital of {x}?",
    "capital of {x}",
    "Which language do people speak in {x}?",
    "Where is {x}?",
    "What is {an_y}?",
    "Tell me about {x}.",
    "Who is {z}?",
    "Tell me about {z}.",
    "Who invented the {y}?",
    "How does {an_y} work?",
    "What is the price of {an_y}?",
    "When was the {y} invented?",
)
UNKNOWN_PLACES = listed(
    "Gabon Bhutan Malta Latvia Estonia Laos Oman Qatar Zambia Malawi Fiji Samoa Togo Benin Mali Niger Belize Guyana Serbia "
    "Albania Moldova Armenia Georgia Yemen Kuwait Brunei Rwanda Burundi Angola Namibia Narnia Atlantis Texas Bavaria Ohio"
)
UNKNOWN_THINGS = listed(
    "rocket telephone camera laptop transistor microscope laser engine battery fridge radio satellite robot printer "
    "turbine magnet telescope blender keyboard router"
)
UNKNOWN_PEOPLE = listed(
    "Einstein;Shakespeare;Mozart;Picasso;Newton;Darwin;Cleopatra;Messi;Beyonce;Gandhi;Marie Curie;Julius Caesar;Bill Gates;"
    "Harry Potter;Batman;the king of England;Plato;Columbus;Tesla;Chopin",
    ";",
)
UNKNOWN_REPLIES = (
    "I do not know that. I only know what was in my schoolbook.",
    "I am sorry, I do not know. I am a small model and I know only a few things.",
    "That was not in my schoolbook, so I do not know.",
)


def _fill(rng: random.Random, text: str) -> str:
    if "{" not in text:
        return text
    thing = rng.choice(UNKNOWN_THINGS)
    return text.format(x=rng.choice(UNKNOWN_PLACES), y=thing, an_y=with_article(thing), z=rng.choice(UNKNOWN_PEOPLE))


def unknown_turns(rng: random.Random) -> list[Message]:
    """A question about the world outside the primer and an honest "I do not know"."""
    return [user(_fill(rng, rng.choice(UNKNOWN_QUESTIONS))), assistant(rng.choice(UNKNOWN_REPLIES))]
