"""Names of the people in the stories and word problems."""

GIRLS = ("Anna", "Lily", "Mia", "Nora", "Ella", "Ruby", "Zoe", "Emma", "Rosa", "Ivy", "Amy", "Kate", "Lucy", "Sara")
BOYS = ("Tom", "Ben", "Sam", "Max", "Leo", "Jack", "Tim", "Finn", "Omar", "Adam", "Noah", "Paul", "Hugo", "Dan")
NAMES = GIRLS + BOYS
