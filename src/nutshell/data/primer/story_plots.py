"""The plots of the very short stories, first half.

A plot is beats separated by empty lines; of each beat one line is told. A beat whose first line is "?" may be left out.
Placeholders: {h} the hero's name, {k} what the hero is (girl, fox), {he} {him} {his} {He} {His} the hero's pronouns; {f} {fk}
{fhe} {fhim} {fhis} {Fhe} the same for a friend; {e} {E} {ehe} {Ehe} an older helper; {time} {Time} when it began; {at} {to} a
place ("in the garden", "to the garden"); {t} a toy, {c} its colour; {food} something to eat.
"""

LOST = """
{h} had {a_c} {t}. {He} took it everywhere.
{h} loved {his} {c} {t} more than any other toy.
{E} had once given {h} {a_c} {t}. {h} never went out without it.
The thing {h} liked best was a small {c} {t}.

{Time} the {t} was gone. {h} looked under the bed and behind the door, but it was not there.
{Time} {h} went {to} to play. When {he} came home, {he} did not have the {t} any more.
But {time} {h} could not find the {t}. {He} looked in every box and under every chair.
{Time} {h} played {at}, and when it was time to go, the {t} was nowhere to be seen.

"Where can it be?" said {h}, and {he} began to cry.
{h} sat down on a step and felt very sad.
"My {t} is lost," said {h}. {His} voice was very small.
{h} was so sad that {he} did not want to eat.

{f} saw {him} and asked, "What is wrong?" {h} told {fhim} about the {t}. "I will help you look," said {f}.
Then {fn} came by. "Do not cry," said {f}. "Two can look better than one."
{E} heard it and said, "Let us think. Where did you play last?" {h} thought hard. "I was {at}!" {f} came with them.
"Let us look for it together," said {f}, who lived next door. {h} nodded and took {fhis} hand.

They went {to} and looked behind each stone. At last {f} called, "Come here! I see something {c}!"
They walked {to}. They looked up and they looked down. Then {h} saw something {c} in the long grass.
First they looked near the gate, then near the old tree. There it was, under some leaves.
They looked for a long time. In the end they heard a bird that would not stop singing. It sat on the {t}!

It was the {t}! {h} hugged {f} and said, "Thank you so much."
{h} jumped with joy. "You found my {t}! Thank you, {f}."
"My {t}!" cried {h}. {He} let {f} play with it all day long.
The {t} was a little wet, but it was not broken. {h} laughed and thanked {f}.

?
After that, {h} always put the {t} back in its box.
That night the {t} lay next to {h} in bed.
Now {h} knows that a good friend is better than any toy.
From that day on, {h} took better care of {his} things.
"""

HIGH = """
{Time} {h} played with {a_c} {t} {at}. {He} threw it up, and it did not come down.
{Time} the wind took the {c} {t} of {h} and put it at the top of a tall tree.
{h} had a new {c} {t}. {Time} {he} played with it {at}, and it landed high up in a tree.
{Time} {h} saw a red apple high up in a tree {at}. {He} threw {his} {c} {t} at it. Now the {t} was in the tree too.

{h} jumped and jumped, but the tree was too high.
{h} stood on a stone. {He} stood on a box. {He} was still too small.
{He} tried to climb up, but {he} slid down again and again.
{h} shook the tree with both hands. Only a leaf fell down.

{fn} laughed at first, but then {fhe} saw how sad {h} was.
{f} came by with a basket. "Why do you look up all the time?" {fhe} asked.
"I am too small," said {h}. "You are not too small," said {f}. "You are only too few."
{f} heard {him} and came to help.

"Stand on my back," said {f}. {h} did, and with one long stick {he} could just touch the {t}.
They asked {e} for a ladder. {f} held it with both hands, and {h} went up step by step.
{f} knew what to do. They tied two sticks together and pushed until the {t} fell down.
"Let us ask {e}," said {f}. {E} came with a long rope, and with one good throw the {t} was free.

Down came the {t}, and with it came a lot of leaves. They all laughed.
The {t} fell right into the arms of {h}.
Bump! The {t} was down, and nobody was hurt.

"Thank you," said {h}. "Now let us play together, but not so near the tree."
They shared an apple and played until it was dark.
{h} and {f} played the whole day, and the tree did not get the {t} again.
"Next time," said {h}, "I will ask for help right away."
"""

AFRAID = """
{h} was afraid of the dark. When the lamp was out, {he} hid {his} head under the pillow.
There was one thing that {h} did not like: the dark. Every night {he} asked for more light.
{h} was brave in the day, but at night {he} was afraid.

One night there was a strange noise. Tap, tap, tap, it went. {h} could not sleep.
One night {h} heard something at the window. It went scratch, scratch, scratch.
One night, when all were asleep, something went bump under the stairs.

"Is it a monster?" thought {h}. {His} heart beat fast.
{h} called, "Who is there?" Nobody said a word.
{h} wanted to run to {e}, but {his} legs did not want to move.

{E} came with a small lamp. "Let us go and look," said {e}. "Things are less scary when you see them."
Then {h} thought of {f}, who was never afraid. {He} took a deep breath and got up.
{f} was there that night, in the other bed. "I am afraid too," said {f}. "But there are two of us."

Hand in hand they went to look. And what did they see? It was only a branch that moved in the wind.
Step by step they went closer. It was a little mouse with a nut. The mouse was more afraid than they were.
They opened the door very slowly. It was the cat! She wanted to come in, because it was raining.
They held up the light. A small owl sat there and looked at them with round eyes.

"Is that all?" said {h}, and {he} began to laugh.
{h} laughed until {his} tummy hurt.
"Hello, little one," said {h}. "You gave us a big fright."

Then {h} went back to bed and slept until morning.
Since that night {h} has not been so afraid of the dark.
"The dark is only the day with its eyes closed," said {e}. {h} liked that and fell asleep.
After that, {h} said good night to the dark, too.
"""

COOK = """
{Time} {h} wanted to make {food} for {e}.
It was the birthday of {e}. {h} wanted to make {food} all by {him}self.
{Time} {h} was very hungry. "I will make {food}," {he} said.
{f} was coming to visit. "Let us make {food}," thought {h}.

{He} put a big bowl on the table and washed {his} hands.
{He} took out a pot, a spoon and a cup.
{He} looked into the kitchen cupboard to see what was there.

But there was no salt left, and the shop was closed.
But the basket for the eggs was empty.
But there was no milk in the house, not one drop.
But when {he} opened the bag of flour, it was empty. A mouse had been there.

{h} went to {fn} and asked, "Can you help me?" "Of course," said {f}. "I have more than I need."
{h} knocked at the door of {f}. "May I have a little from you?" "Yes, if I may help you cook," said {f}.
Just then {f} came by. "I can bring you what you need," {fhe} said, and off {fhe} ran.

They cooked together. {h} mixed and {f} sang a song.
{f} stirred and {h} tasted. Soon there was a warm sweet smell in the whole house.
There was flour on the table, on the floor and on the nose of {f}. But the {food} looked good.

When {e} came in, the table was ready. "For me?" said {e}. "How kind you are!"
{E} ate two plates and said, "This is the best {food} I have ever had."
They all sat down and ate until nothing was left.
{E} took a bite and closed both eyes. "Mmm," said {e}, and that said it all.

?
{f} washed the plates and {h} dried them.
"{food_cap} is best when you share it," said {h}.
The mouse got a small bite too.
And the last piece was for the birds in the garden.
"""

CHICK = """
{Time} {h} found a small bird {at}. It had fallen out of its nest.
{Time} {h} walked {to}. In the grass sat a tiny bird that could not fly.
{Time} {h} heard a thin voice {at}. It was a baby bird, all alone.

"Peep," said the bird. It was cold and afraid.
The bird looked at {h} with its small black eyes.
One of its wings hung down.

{h} wanted to take it home and keep it. "No," said {f}. "Its mother will look for it."
{h} did not know what to do, so {he} ran to get {e}. "We must keep it warm," said {e}.
"Do not be afraid," said {h} in a soft voice. {He} gave the bird some water from a leaf.

{h} made a bed of soft grass in {his} hat and put the bird in it.
{fn} brought some wool, and together they made a warm little nest.
{h} and {f} sat very still next to the bird and did not let the cat come near.

Then they heard a call from the top of the tree. It was the mother bird!
After a while a big bird flew round and round above them. It was the mother.
They waited a whole hour. At last the mother came with a worm.

{e_cap} lifted the bird up into the nest, very slowly.
{h} climbed up the tree and put the baby back where it belonged.
{f} held the ladder, and {h} put the little bird back into the nest.

The whole family of birds sang for them.
"Goodbye, little bird," said {h}. {He} was a bit sad, but more happy than sad.
Every morning after that, a bird sang at the window of {h}.
In summer the bird learned to fly, and {h} waved to it.
"""

LEARN = """
{h} could not {skill}. All {his} friends could, and {he} felt bad about it.
More than anything, {h} wanted to {skill}.
"I will never learn to {skill}," said {h}. {He} looked at {his} feet.
{f} could {skill}, but {h} could not.

{Time} {he} tried it for the first time. It did not go well.
{Time} {h} went {to} and tried it alone. It was much harder than it looked.
{Time} {he} tried it ten times. Ten times it went wrong.

"I give up," {he} said, and sat down in the grass.
"It is too hard for me," said {h} with a tear in {his} eye.
{h} was angry and threw {his} hat on the floor.

{E} saw it and said, "When I was small, I could not do it either. Try a little every day."
{f} sat down next to {him}. "I was bad at it too," {fhe} said. "Do you want to know how I learned it? Slowly."
"Watch me," said {fn}, "and do the same as I do. First very slowly."

So {h} tried every morning before school. Each day it went a little better.
So they tried again, and again the next day, and again the day after that.
{h} got up and tried once more. {He} thought of nothing else.

And then, one sunny day, it worked! "Look at me!" {he} cried.
After a week something new happened. {h} did it, and {he} did not even notice at first.
On the tenth day {he} could {skill} almost as well as {f}.
At last it worked. {f} jumped up and down with joy.

{E} was proud and made {food} for everyone.
"You see," said {e}, "hard things get easy when you do them often."
Now {h} helps the little ones who want to {skill}.
And if you see {him} today, you would think it had always been easy.
"""

SHARE = """
{h} and {f} both wanted the {c} {t}.
There was only one {c} {t}, but there were two who wanted it: {h} and {f}.
{Time} {h} got a new {c} {t}. {fn} wanted to play with it too.

"It is mine!" said {h}. "I had it first!" said {f}.
"No," said {h}, "you will break it." {f} was hurt and went away.
{h} pulled on one side, and {f} pulled on the other side.
"You can look at it," said {h}, "but you must not touch it." {f} looked sad.

Crack! Now the {t} was broken, and both were quiet.
So {h} sat alone with the {t}. After a while it was not fun any more.
They were so angry that they did not speak all morning.

{E} came in and said, "A {t} is small. A friend is big."
{E} asked, "What would you like if you were {f}?" {h} thought about it for a long time.
{h} looked out of the window. {f} sat on the wall, all alone.

Then {h} went out. "I am sorry," {he} said. "Will you play with me?"
"I am sorry," said {h}. "I am sorry too," said {f}.
{h} took the {t}, went to {f} and said, "Now it is your turn."

They took turns, first {f} and then {h}, and it was twice as much fun.
They sat down with some glue and some string and made the {t} as good as new.
{f} smiled. "You go first," {fhe} said. "No, you," said {h}. And they laughed.

Later {e} gave them {food}. They cut it in two, and each gave the other the bigger half.
After that day the {t} belonged to both of them.
From then on they shared all their toys, and sometimes even their socks.
That is how {h} and {f} became best friends.
"""

FIRST_PLOTS = (LOST, HIGH, AFRAID, COOK, CHICK, LEARN, SHARE)
