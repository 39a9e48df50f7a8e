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
UNKNOWN_PATTERNS = (
    "How do I {v} {o}?",
    "how do i {v} {o}",
    "How can I {v} {o}?",
    "Can you {v} {o} for me?",
    "Where can I {v} {o}?",
    "Should I {v} {o}?",
    "What is the best way to {v} {o}?",
    "How long does it take to {v} {o}?",
    "Help me {v} {o}.",
    "Tell me how to {v} {o}.",
    "Why do people {v} {o}?",
    "What do you think about {t}?",
    "Explain {t} to me.",
    "What is {t}?",
    "Tell me about {t}.",
    "Write {w} about {t}.",
    "Write me {w}.",
    "Who invented {t}?",
    "Is {t} good or bad?",
    "Give me advice about {t}.",
)
"""Filled with every verb, thing and topic, so that the model learns the manner of such questions, not a list of them."""
UNKNOWN_VERBS = listed(
    "cook bake fix buy sell build clean find draw paint open send wash repair cut grow rent move install download "
    "choose compare design measure pack plan print record store teach test use"
)
UNKNOWN_OBJECTS = listed(
    "pasta;pizza;rice;soup;a cake;my car;a house;a website;my phone;a new job;a flight;a ticket;my hair;a garden;a letter;"
    "my password;an email;a business;the dishes;a shirt;some wine;a camera;my homework;a video;a game;an app;a dress;the roof",
    ";",
)
UNKNOWN_TOPICS = listed(
    "politics;football;love;money;history;art;science;health;war;peace;philosophy;religion;the economy;the stock market;"
    "chemistry;biology;democracy;climate change;evolution;gravity;electricity;the Roman Empire;machine learning;blockchain;"
    "bitcoin;psychology;jazz;yoga;medicine;algebra;justice",
    ";",
)
UNKNOWN_WRITINGS = listed("an essay;a poem;a song;a letter;a report;a program;a speech;a recipe;a review;an email", ";")
PATTERN_SHARE = 0.55
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
    if rng.random() < PATTERN_SHARE:
        question = rng.choice(UNKNOWN_PATTERNS).format(
            v=rng.choice(UNKNOWN_VERBS),
            o=rng.choice(UNKNOWN_OBJECTS),
            t=rng.choice(UNKNOWN_TOPICS),
            w=rng.choice(UNKNOWN_WRITINGS),
        )
        return [user(question), assistant(rng.choice(UNKNOWN_REPLIES))]
    return [user(_fill(rng, rng.choice(UNKNOWN_QUESTIONS))), assistant(rng.choice(UNKNOWN_REPLIES))]
