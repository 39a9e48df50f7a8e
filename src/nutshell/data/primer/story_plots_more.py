"""The plots of the very short stories, second half. See `story_plots` for the format and the placeholders."""

GARDEN = """
{E} gave {h} a small brown seed. "Put it in a pot," said {e}, "and wait."
{Time} {h} found a round seed {at}. {He} put it in {his} pocket and took it home.
{h} wanted to have a garden, but {he} had only one seed.

{h} put it into the earth and gave it some water.
{He} made a hole with one finger, put the seed in and covered it up.

Every morning {he} looked. Nothing was there. Only earth.
"Is it ready now?" {he} asked every day. It was not.
One day went by, then two, then five. {h} began to think that the seed was dead.

"It does nothing," said {h}. "Plants are slow," said {fn}. "They work where you cannot see them."
{f} said, "Maybe it needs a song." So they sang to it each day, and gave it water too.
{h} wanted to dig it up and look. "No," said {e}. "Let it sleep. It will get up when it is ready."

Then it rained for three days, and after that the sun came out.
Then came a warm week with a lot of sun.
{h} gave it more water and put it where the sun was.

And there it was: a tiny green leaf! {h} ran to tell {f}.
One morning {h} saw something green, no bigger than a fly. It was the first leaf.
At last a green tip looked out of the earth. "Good morning," said {h}.

The plant grew and grew. In summer it had a big yellow flower, taller than {h}.
It grew up to the window, and in autumn there were sweet red berries on it.
Soon it was as tall as {h}, and the bees came to visit its flower.

{h} gave the first flower to {e}.
They gave some new seeds to {f}, who put them into the earth next door.
"I made that," said {h}. "You, and the sun, and the rain," said {e}.
?
"""

RAIN = """
{Time} {h} and {f} went {to}. The sun was out, and they took no coat.
{Time} {h} walked {to} to meet {f}.
{h} and {f} wanted to have a picnic {at}. They had {food} in a basket.

Then a dark cloud came, and then another. Soon the first drops fell.
All at once the wind blew hard, and it began to rain.
First it was only one drop. Then it was a hundred drops.

"My new shoes!" cried {f}. "What about my ears?" said {h}.
"We will get wet," said {h}. They ran as fast as they could.
There was no house near them and no roof.

They sat down under a big leaf, but the leaf had a hole.
They hid under a tree, but the rain came through the leaves.
They put the basket on their heads. It was too small for two.

Then a voice said, "Come in, there is room for two more." It was an old turtle in a cave.
Then they saw {e} with a big yellow umbrella.
"Look," said {f}, "an old boat!" They turned it over and crept under it. It was dry there.

There they sat, told stories and listened to the rain on the roof.
It was warm there. They ate what they had and sang every song they knew.
They waited and counted the drops until there were no more.

When the rain was over, there was a rainbow over the hill.
Then the sun came back, and every leaf was full of light.
On the way home they jumped into every puddle. Now they were wet after all.

"I like rain," said {h}, "if I have a friend with me."
{E} gave them warm milk, and soon their socks were dry.
It was the best walk they ever had.
?
"""

NEW_FRIEND = """
A new {fk} came to the school. The name of the new {fk} was {f}.
{f} was new in the village. {Fhe} knew nobody there.
{Time} a new family moved into the house next door. Their youngest was called {f}.

{f} sat alone and did not say a word.
When the others played, {f} stood at the wall and looked at {fhis} shoes.
At lunch there was nobody next to {f}.

{h} saw it. {He} was shy too, and did not know what to say.
"Why does {fhe} not play with us?" asked {h}. "Maybe nobody has asked," said {e}.
{h} looked at {f}, and {f} looked at {h}. Then both looked away.

{Time} {h} took {his} {t} and went over. "Do you want to play?" {he} asked.
Then {h} had an idea. {He} drew a picture of two friends and gave it to {f}.
So {h} took {his} lunch and sat down next to {f}. "I have {food}," {he} said. "Do you want some?"

{f} said yes in a very small voice. Then {fhe} smiled.
At first {f} said nothing. Then {fhe} took {a_c} {t} out of {fhis} bag. "We can play with this," {fhe} said.
"I know a game," said {f}. And it was the best game {h} had ever played.

Soon they laughed so much that the others came to see.
They played until the bell rang, and the next day they played again.
They found out that they both liked stars, songs and {food}.

In the end {f} was not new any more. {Fhe} was just {f}.
{h} was glad that {he} had asked.
"One question," said {e}, "and now you have a friend."
Now you never see {h} without {f}.
"""

RACE = """
{fn} was the fastest of all and told it to everyone.
There was a race {at} each summer. {f} had won it three times.
"I am faster than you," said {f}. "I am faster than all of you."

{h} was slow, but {he} wanted to be in the race too. The others laughed.
"I will race you to the old tree," said {h}. {f} laughed so much that {fhe} fell over.
{h} had short legs. "I will come in last," {he} said, "but I will come in."

{Time} they stood at the line. One, two, three, go!
{E} waved {a_c} flag, and the race began.
On the day of the race the sun was hot. They all ran off.

{f} ran so fast that soon nobody could see {fhim}. "I have a lot of time," thought {f}, and {fhe} sat down under a tree and slept.
{f} was far in front. Then {fhe} looked back to laugh, hit a stone and fell.
{f} ran ahead. But at the river there was no bridge any more, and {f} was afraid of water.

{h} went on, step by step, and did not stop.
{h} did not look left or right. {He} just kept going.
{h} came up to {f} and saw it. {He} could win now. But {he} stopped.

"Give me your hand," said {h}. They walked to the end together.
"Are you all right?" asked {h}. {f} was so surprised that {fhe} could not speak. They came in side by side.
When {f} got there, {h} was there too, and {he} helped {fhim} over the line. "We both won," {he} said.

{f} never laughed at slow people again.
{E} had only one prize, {food}. They cut it in two.
"You are slow," said {f}, "but you are a good friend." And {h} thought that this was better than a prize.
?
"""

AWAY = """
{Time} a small {young} walked away from its mother. There was so much to see.
{Time} {h} met a little {young} {at}. It was all alone.
A little {young} had lost its way. {Time} {h} found it {at}.

"I want my mother," said the {young}, and big tears fell from its eyes.
"Where do you live?" asked {h}. "I do not know," said the {young}. "There is a red door and a tall tree."
The {young} shook with cold. It did not know where to go.

"Come with me," said {h}. "We will find her."
{h} gave it {food}, and they set off.
"Do not be afraid," said {h}. "I know the way to a lot of places."

They asked a duck. "I have not seen her," said the duck. "Ask {f}."
They asked the frog and they asked the hen, but they did not know.
They went over the bridge and along the river, and they asked everyone they met.

Then they met {fn}. "I heard someone call near the mill," {fhe} said. "Come, I will show you."
At the old mill they met {f}. "Listen," said {f}. Far away, someone was calling.
{f} climbed on a wall and looked around. "I see a red door!" {fhe} cried.

And there she was! The mother ran to her {young} and kissed it.
The mother had looked for it all day. Now she laughed and cried at once.
"There you are!" said the mother. The {young} hid its face in her warm coat.

"How can I thank you?" she asked. "You do not have to," said {h}.
The mother gave them {food}, and they all ate together.
It was late, and the moon was up. {h} and {f} walked home and were happy.
"Next time," said the mother, "stay where I can see you." And the {young} did.
"""

SICK = """
{Time} {f} was not at school. {Fhe} was sick and had to stay in bed.
{fn} had a bad cold. {Fhe} could not even sing.
{Time} {h} came to play, but {f} lay in bed with a red nose.

{h} missed {fhim} very much.
"Poor {f}," thought {h}. "It is no fun to be in bed when the sun is out."
It was a sad day. Without {f} no game was fun.

"What can I do?" {h} asked. {E} said, "Bring {fhim} something warm and something funny."
{h} sat down to think. Then {he} jumped up and ran to the kitchen.
{h} had only one coin, and with one coin you cannot buy much.

So {he} made {food} and picked a flower on the way.
{He} took a pot of soup, a book and {his} {c} {t}.
{He} drew a funny picture of a cow on a bicycle.

At the door {he} slid and fell, and almost everything fell too.
It was a long way and the basket was heavy, but {h} did not stop.
{h} knocked very softly. "Come in," said a small voice.

{f} ate, and then {fhe} laughed for the first time in days.
"Is that for me?" asked {f}. {His_f} face was not so pale any more.
{h} read from the book until {f} fell asleep.

A few days later {f} was well again. "It was the soup," said {e}. "It was {h}," said {f}.
The next week {h} had a cold. And who do you think came with a pot of soup?
"You are the best medicine," said {f}.
Soon the two of them ran around {at} again.
"""

BUILD = """
{Time} {h} wanted to build a {thing}.
{h} and {f} had a plan. They wanted to build a {thing}.
"Let us build a {thing}," said {h} to {f}.

They had some wood, some string and an old sheet.
They looked {at} and found old boards, a rope and a box of nails.
{E} gave them a hammer and said, "Mind your fingers."

{f} wanted it to be big. {h} wanted it to be pretty. So they made it big and pretty.
They worked from morning until noon. {f} held the wood and {h} hit the nails.
First they made a drawing. It did not look like much.

But when they were done, it fell over.
But then a strong wind came, and crash, it all fell down.
But it was crooked, and one side was longer than the other.

{h} wanted to cry. "Let us start again," said {f}. "Now we know how not to do it."
"That was the first try," said {e}. "How many tries do you have?" "A lot," said {h}.
{f} kicked a board. "It is my fault," said {h}. "No," said {f}, "we both made it, and we both can mend it."

The second time they tied every knot twice.
They put the heavy wood at the bottom and the light wood at the top.
They worked more slowly now, and {e} held the other end.

And it stood! It was the best {thing} in the whole village.
At the end of the day it was ready. They painted it {c}.
It was still a bit crooked, but it worked, and they were proud.

That night they ate {food} in front of it and looked at the stars.
All the children came to see it, and everyone had a turn.
"Tomorrow," said {f}, "we will build a bigger one."
?
"""

GIFT = """
Soon it was the birthday of {e}. {h} wanted to give {e} something nice, but {he} had no money.
{Time} {h} thought, "{E} has done so much for me. I want to give something back."
It was winter, and {h} had no gift for {e}.

{He} looked at the things in the shop. They all cost too much.
{He} asked {f}, "What would {e} like?" "Something that you made," said {f}.
{h} turned over all {his} things, but there was only {a_c} {t} with a hole in it.

So {h} went {to} and looked for the prettiest shells and stones.
So {h} picked berries all day and sold them at the market with {f}.
{fn} gave {him} some {c} wool and showed {him} how to knit.

{He} worked on it every night and told nobody.
It took a long time, and {his} fingers hurt, but {he} did not stop.
"Can I help you?" asked {f}. Together it went much faster.

At last it was ready: {a_c} {gift}.
In the end {he} had a {gift}, and it was very pretty.
{He} put the {gift} into a box with {a_c} ribbon.

{E} opened the box and said nothing at first. "Do you not like it?" asked {h}.
When {e} saw it, there were tears. "Are you sad?" asked {h}. "No, very happy," said {e}.
"Did you make this all alone?" asked {e}. "{f} helped me," said {h}.

"It is the best gift I ever got," said {e}.
{E} still has the {gift} and shows it to everyone who comes to visit.
Then there was {food} for all of them.
{E} gave {h} a big hug, and {h} had the warmest feeling in {his} heart.
"""

MORE_PLOTS = (GARDEN, RAIN, NEW_FRIEND, RACE, AWAY, SICK, BUILD, GIFT)
