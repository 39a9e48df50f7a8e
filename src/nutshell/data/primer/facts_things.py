"""Facts about things, colours, elements, the body and materials. See `Relation` for the fields and the placeholders."""

from nutshell.data.primer.relation import Relation, lines, same_for

_KINDS = Relation(
    name="kind of thing",
    pairs=same_for("fruit", "apple banana pear plum peach cherry grapefruit strawberry apricot fig")
    + same_for("vegetable", "carrot cabbage potato onion lettuce leek turnip radish")
    + same_for("flower", "rose tulip daisy daffodil sunflower orchid poppy")
    + same_for("tree", "oak birch maple spruce elm beech")
    + same_for("musical instrument", "piano violin flute trumpet guitar drum harp cello")
    + same_for("tool", "hammer saw spade axe screwdriver shovel")
    + same_for("vehicle", "car bus train bicycle truck tram")
    + same_for("piece of clothing", "coat shirt hat sock scarf skirt jacket")
    + same_for("piece of furniture", "table chair bed sofa desk cupboard"),
    np="what kind of thing {an_s} is",
    clause=True,
    reply="{An_s} is {an_a}.",
    statements=(
        "The {s} is {an_a}.",
        "One kind of {a} is the {s}.",
        "If you see {an_s}, you see {an_a}.",
        "{An_s} is {an_a}, as everyone knows.",
    ),
    questions=(
        "What is {an_s}?",
        "What kind of thing is {an_s}?",
        "What sort of thing is {an_s}?",
        "What type of thing is {an_s}?",
        "Is {an_s} a fruit, a tool or something else?",
        "{An_s} is what kind of thing?",
        "what is {an_s}",
    ),
    held_out=("How would you describe {an_s} in a word?", "Which sort of thing do we call {an_s}?"),
    follow_ups=("And {an_s}?", "What about {an_s}?", "And what is {an_s}?"),
)

_COLOURS = Relation(
    name="colour",
    pairs=same_for("white", "snow milk salt flour cotton")
    + same_for("black", "coal soot tar")
    + same_for("red", "blood a_ruby a_stop_sign a_fire_engine")
    + same_for("green", "grass spinach an_emerald a_pea a_cucumber")
    + same_for("yellow", "gold a_ripe_banana a_lemon a_chick")
    + same_for("orange", "a_carrot a_pumpkin")
    + same_for("brown", "chocolate mud cinnamon a_coffee_bean")
    + same_for("blue", "a_sapphire the_clear_sky")
    + same_for("grey", "ash an_elephant")
    + same_for("pink", "a_flamingo"),
    np="the colour of {s}",
    reply="The colour of {s} is {a}.",
    statements=("{S} is {a}.", "{A} is the colour of {s}.", "{S} has the colour {a}.", "Paint {s} and you need the colour {a}."),
    questions=(
        "What colour is {s}?",
        "Which colour is {s}?",
        "What is the color of {s}?",
        "What color is {s}?",
        "Which colour does {s} have?",
        "What colour does {s} have?",
        "colour of {s}",
    ),
    held_out=("If I want to paint {s}, which colour do I take?", "In what colour do we see {s}?"),
    follow_ups=("And {s}?", "What about {s}?", "And the colour of {s}?"),
    also_true={"chocolate": ("black", "white"), "mud": ("grey", "black"), "a pumpkin": ("yellow",), "ash": ("white", "black")},
)

_SYMBOLS = Relation(
    name="symbol",
    pairs=lines(
        """
hydrogen: H
helium: He
lithium: Li
carbon: C
nitrogen: N
oxygen: O
fluorine: F
neon: Ne
sodium: Na
magnesium: Mg
aluminium: Al
silicon: Si
phosphorus: P
sulfur: S
chlorine: Cl
argon: Ar
potassium: K
calcium: Ca
titanium: Ti
iron: Fe
cobalt: Co
copper: Cu
zinc: Zn
silver: Ag
tin: Sn
iodine: I
gold: Au
mercury: Hg
lead: Pb
uranium: U
"""
    ),
    np="the chemical symbol of {s}",
    reply="The symbol of {s} is {a}.",
    statements=(
        "{S} is an element with the symbol {a}.",
        "The element {s} is written {a}.",
        "{A} is the symbol of {s}.",
        "Chemists write {a} for {s}.",
    ),
    questions=(
        "What is the symbol of {s}?",
        "What is the symbol for {s}?",
        "Which symbol does {s} have?",
        "What is the chemical symbol for {s}?",
        "How do chemists write {s}?",
        "Which letters stand for the element {s}?",
        "symbol of {s}",
    ),
    held_out=("By which symbol do we know the element {s}?", "In chemistry, what stands for {s}?"),
    follow_ups=("And of {s}?", "And for {s}?", "What about {s}?"),
)

_BODY = Relation(
    name="body",
    pairs=lines(
        """
see: eyes
hear: ears
smell: nose
taste: tongue
think: brain
breathe: lungs
chew: teeth
walk: feet
pump blood: heart
hold things: hands
bend our legs: knees
bend our arms: elbows
digest food: stomach
turn our head: neck
"""
    ),
    np="the part of the body with which we {s}",
    reply="We {s} with the {a}.",
    statements=(
        "With the {a} we {s}.",
        "People use the {a} to {s}.",
        "To {s}, we need the {a}.",
        "We {s} with our {a}.",
    ),
    questions=(
        "What do we use to {s}?",
        "With what do we {s}?",
        "Which part of the body do we use to {s}?",
        "What part of the body do you need to {s}?",
        "Which part of the body helps us to {s}?",
        "What do people {s} with?",
        "What do you {s} with?",
    ),
    held_out=("To {s}, which part of our body is needed?", "How do our bodies {s}, with which part?"),
    follow_ups=("And to {s}?", "And what do we use to {s}?"),
    also_true={"walk": ("knees",), "taste": ("nose", "teeth"), "think": ("neck",)},
)

_MADE_FROM = Relation(
    name="made from",
    pairs=lines(
        """
bread: flour
cheese: milk
butter: cream
glass: sand
paper: wood
wine: grapes
raisins: grapes
chocolate: cocoa beans
omelettes: eggs
jam: fruit
french fries: potatoes
wool: the hair of sheep
bricks: clay
candles: wax
tyres: rubber
steel: iron
"""
    ),
    np="what we make {s} from",
    clause=True,
    reply="We make {s} from {a}.",
    statements=(
        "{S} can be made from {a}.",
        "People make {s} from {a}.",
        "From {a} people make {s}.",
        "To make {s} you need {a}.",
    ),
    questions=(
        "What do we make {s} from?",
        "What can you make {s} from?",
        "What do people make {s} from?",
        "What do you need to make {s}?",
        "From what do people make {s}?",
        "What is used to make {s}?",
    ),
    held_out=("If you want to make {s}, what must you have?", "Out of what do we make {s}?"),
    follow_ups=("And {s}?", "What about {s}?"),
    also_true={
        "bread": ("milk",),
        "chocolate": ("milk", "cream"),
        "jam": ("grapes",),
        "wine": ("fruit",),
        "raisins": ("fruit",),
        "omelettes": ("milk", "cream"),
        "cheese": ("cream",),
        "butter": ("milk",),
    },
)

THINGS = (_KINDS, _COLOURS, _SYMBOLS, _BODY, _MADE_FROM)
