"""Facts about countries, the sky, time, measures and numbers. See `Relation` for the fields and the placeholders."""

from nutshell.data.primer.relation import Relation, lines, same_for

COUNTRIES = """
France: Paris, Europe
Italy: Rome, Europe
Spain: Madrid, Europe
Portugal: Lisbon, Europe
Germany: Berlin, Europe
Austria: Vienna, Europe
Poland: Warsaw, Europe
Greece: Athens, Europe
Ireland: Dublin, Europe
England: London, Europe
Norway: Oslo, Europe
Sweden: Stockholm, Europe
Denmark: Copenhagen, Europe
Finland: Helsinki, Europe
Hungary: Budapest, Europe
Belgium: Brussels, Europe
Iceland: Reykjavik, Europe
Ukraine: Kyiv, Europe
Romania: Bucharest, Europe
Bulgaria: Sofia, Europe
Croatia: Zagreb, Europe
Switzerland: Bern, Europe
Japan: Tokyo, Asia
China: Beijing, Asia
India: New Delhi, Asia
Thailand: Bangkok, Asia
Vietnam: Hanoi, Asia
Nepal: Kathmandu, Asia
Iran: Tehran, Asia
Iraq: Baghdad, Asia
Mongolia: Ulaanbaatar, Asia
Pakistan: Islamabad, Asia
Egypt: Cairo, Africa
Kenya: Nairobi, Africa
Ghana: Accra, Africa
Morocco: Rabat, Africa
Ethiopia: Addis Ababa, Africa
Nigeria: Abuja, Africa
Senegal: Dakar, Africa
Uganda: Kampala, Africa
Canada: Ottawa, North America
Mexico: Mexico City, North America
Cuba: Havana, North America
Jamaica: Kingston, North America
Peru: Lima, South America
Chile: Santiago, South America
Brazil: Brasilia, South America
Argentina: Buenos Aires, South America
Colombia: Bogota, South America
Ecuador: Quito, South America
"""
_COUNTRIES = lines(COUNTRIES)

WORLD = (
    Relation(
        name="capital",
        pairs=tuple((country, rest.split(", ")[0]) for country, rest in _COUNTRIES),
        np="the capital of {s}",
        reply="The capital of {s} is {a}.",
        statements=(
            "{a} is the capital of {s}.",
            "The capital city of {s} is {a}.",
            "{s} has the capital {a}.",
            "If you visit {s}, you may see its capital, {a}.",
            "People in {s} call {a} their capital.",
        ),
        questions=(
            "What is the capital city of {s}?",
            "Which city is the capital of {s}?",
            "capital of {s}",
            "What city is the capital of {s}?",
            "{s}: what is its capital?",
            "What's the capital of {s}?",
        ),
        held_out=("Of which city can one say that it is the capital of {s}?", "The country {s} has which capital?"),
        follow_ups=("And of {s}?", "And the capital of {s}?", "What about {s}?"),
    ),
    Relation(
        name="country",
        pairs=tuple((rest.split(", ")[0], country) for country, rest in _COUNTRIES),
        np="the country whose capital is {s}",
        reply="{s} is the capital of {a}.",
        statements=("The city of {s} is in {a}.", "{s} lies in {a}.", "The country whose capital is {s} is {a}."),
        questions=(
            "{s} is the capital of which country?",
            "Which country has the capital {s}?",
            "Where is {s}?",
            "Which country is {s} in?",
            "In which country is {s}?",
            "In what country is the city of {s}?",
            "{s} is the capital of what country?",
        ),
        held_out=("The city {s} is the capital of what land?", "Which country calls {s} its capital?"),
        follow_ups=("And {s}?", "And where is {s}?", "What about {s}?"),
    ),
    Relation(
        name="continent",
        pairs=tuple((country, rest.split(", ")[1]) for country, rest in _COUNTRIES),
        np="the continent of {s}",
        reply="{s} is in {a}.",
        statements=(
            "{s} is a country in {a}.",
            "{s} lies on the continent of {a}.",
            "The country {s} is part of {a}.",
            "On a map you find {s} in {a}.",
        ),
        questions=(
            "Where is {s}?",
            "Which continent is {s} in?",
            "On which continent is {s}?",
            "What continent is {s} on?",
            "In which part of the world is {s}?",
            "{s} is on which continent?",
            "Where in the world is {s}?",
        ),
        held_out=("To which continent does {s} belong?", "The country {s} lies on what continent?"),
        follow_ups=("And {s}?", "And where is {s}?", "What about {s}?"),
    ),
    Relation(
        name="language",
        pairs=lines(
            """
France: French
Italy: Italian
Spain: Spanish
Portugal: Portuguese
Germany: German
Austria: German
Poland: Polish
Greece: Greek
England: English
Norway: Norwegian
Sweden: Swedish
Denmark: Danish
Hungary: Hungarian
Iceland: Icelandic
Ukraine: Ukrainian
Romania: Romanian
Bulgaria: Bulgarian
Croatia: Croatian
Japan: Japanese
China: Chinese
Thailand: Thai
Vietnam: Vietnamese
Mongolia: Mongolian
Egypt: Arabic
Mexico: Spanish
Cuba: Spanish
Chile: Spanish
Brazil: Portuguese
Argentina: Spanish
Colombia: Spanish
"""
        ),
        np="the language of {s}",
        reply="Most people in {s} speak {a}.",
        statements=(
            "{a} is spoken in {s}.",
            "In {s} people speak {a}.",
            "The language of {s} is {a}.",
            "Children in {s} speak {a} at school.",
        ),
        questions=(
            "Which language do people speak in {s}?",
            "What language is spoken in {s}?",
            "What do people speak in {s}?",
            "Which language is spoken in {s}?",
            "What language do they speak in {s}?",
            "What is the main language of {s}?",
        ),
        held_out=("If I travel to {s}, which language will I hear?", "People in {s} talk to each other in what language?"),
        follow_ups=("And in {s}?", "What about {s}?", "And the language of {s}?"),
    ),
    Relation(
        name="money",
        pairs=same_for("euro", "France Italy Spain Germany Greece Ireland Finland Austria")
        + lines(
            """
Japan: yen
England: pound
India: rupee
Mexico: peso
China: yuan
Canada: dollar
Poland: zloty
Sweden: krona
Norway: krone
Ukraine: hryvnia
Hungary: forint
Switzerland: franc
Thailand: baht
Brazil: real
"""
        ),
        np="the money of {s}",
        reply="The money of {s} is the {a}.",
        statements=(
            "In {s} people pay with the {a}.",
            "People in {s} use the {a} as money.",
            "The {a} is the money of {s}.",
            "The currency of {s} is the {a}.",
        ),
        questions=(
            "What money do people use in {s}?",
            "Which money is used in {s}?",
            "What do people pay with in {s}?",
            "What is the currency of {s}?",
            "Which currency does {s} have?",
            "What kind of money does {s} have?",
        ),
        held_out=("If I buy bread in {s}, what money do I need?", "Which money would a shop in {s} take?"),
        follow_ups=("And in {s}?", "What about {s}?", "And the money of {s}?"),
    ),
    Relation(
        name="planet order",
        pairs=lines(
            """
first: Mercury
second: Venus
third: Earth
fourth: Mars
fifth: Jupiter
sixth: Saturn
seventh: Uranus
eighth: Neptune
"""
        ),
        np="the {s} planet from the sun",
        reply="The {s} planet from the sun is {a}.",
        statements=(
            "{a} is the {s} planet from the sun.",
            "Counting from the sun, the {s} planet is {a}.",
            "The planet {a} is the {s} one from the sun.",
        ),
        questions=(
            "Which planet is the {s} from the sun?",
            "What planet is {s} from the sun?",
            "What is the name of the {s} planet from the sun?",
            "Counting from the sun, which planet is {s}?",
            "Which is the {s} planet from the sun?",
            "{s} planet from the sun",
        ),
        held_out=("Starting at the sun, which planet do you meet {s}?", "Of all planets, which one is {s} from the sun?"),
        follow_ups=("And the {s} planet?", "And the {s}?", "What about the {s}?"),
    ),
    Relation(
        name="planet",
        pairs=lines(
            """
largest: Jupiter
smallest: Mercury
hottest: Venus
red: Mars
farthest: Neptune
"""
        ),
        np="the {s} planet",
        reply="The {s} planet is {a}.",
        statements=("{a} is the {s} planet.", "Of the eight planets, {a} is the {s} one.", "{a} is called the {s} planet."),
        questions=(
            "Which planet is the {s}?",
            "Which is the {s} planet?",
            "What planet is the {s} one?",
            "What is the name of the {s} planet?",
            "Which planet is called the {s} planet?",
        ),
        held_out=("Of the eight planets, which one is the {s}?", "Which planet do people call the {s} one?"),
        follow_ups=("And the {s} planet?", "And the {s} one?"),
    ),
    Relation(
        name="record",
        pairs=lines(
            """
largest ocean: the Pacific
highest mountain: Mount Everest
largest animal: the blue whale
tallest animal: the giraffe
fastest animal on land: the cheetah
largest animal on land: the elephant
largest bird: the ostrich
largest country: Russia
largest continent: Asia
smallest continent: Australia
coldest continent: Antarctica
largest hot desert: the Sahara
star nearest to us: the sun
hardest natural stone: diamond
lightest gas: hydrogen
"""
        ),
        np="the {s}",
        reply="The {s} is {a}.",
        statements=("{A} is the {s}.", "Of all in the world, the {s} is {a}.", "The name of the {s} is {a}."),
        questions=(
            "Which is the {s}?",
            "What is the {s} in the world?",
            "What is the name of the {s}?",
            "What is the {s} of all?",
            "Which is the {s} in the world?",
        ),
        held_out=("In the whole world, what is the {s}?", "Which one holds the record as the {s}?"),
        follow_ups=("And the {s}?", "What about the {s}?"),
    ),
    Relation(
        name="how many in",
        pairs=lines(
            """
days in a week: seven
months in a year: twelve
hours in a day: twenty-four
minutes in an hour: sixty
seconds in a minute: sixty
days in a year: 365
weeks in a year: fifty-two
seasons in a year: four
years in a decade: ten
years in a century: one hundred
letters in the alphabet: twenty-six
planets around the sun: eight
continents on the earth: seven
oceans on the earth: five
eggs in a dozen: twelve
cents in a dollar: one hundred
colours in a rainbow: seven
fingers on a hand: five
toes on a foot: five
strings on a violin: four
players in a soccer team: eleven
"""
        ),
        np="how many {s0} there are {s1}",
        clause=True,
        reply="There are {a} {s}.",
        statements=("{A} {s0} are {s1}.", "Count the {s}: there are {a}.", "We count {a} {s}."),
        questions=(
            "How many {s0} are {s1}?",
            "How many {s0} are there {s1}?",
            "What is the number of {s}?",
            "How many {s}?",
            "Can you count the {s}?",
        ),
        held_out=("Give the number of {s}.", "If you count the {s}, how many do you get?"),
        follow_ups=("And how many {s}?", "And the {s}?"),
    ),
    Relation(
        name="number of sides",
        pairs=lines(
            """
triangle: three
square: four
pentagon: five
hexagon: six
heptagon: seven
octagon: eight
nonagon: nine
decagon: ten
"""
        ),
        np="how many sides {an_s} has",
        clause=True,
        reply="{An_s} has {a} sides.",
        statements=(
            "A shape with {a} sides is called {an_s}.",
            "{An_s} has {a} corners and {a} sides.",
            "Draw {a} sides and you have {an_s}.",
        ),
        questions=(
            "How many sides does {an_s} have?",
            "How many sides are there in {an_s}?",
            "How many corners does {an_s} have?",
            "What is the number of sides of {an_s}?",
            "How many sides has {an_s}?",
            "sides of {an_s}",
        ),
        held_out=("If I draw {an_s}, how many sides do I draw?", "Count the sides of {an_s}. How many are they?"),
        follow_ups=("And {an_s}?", "What about {an_s}?"),
    ),
)
