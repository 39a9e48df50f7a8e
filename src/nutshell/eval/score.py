"""The one way to score: log-probabilities of continuations, with everything that they share read once.

    scores = score(model, [(prefix_ids, continuation_ids), ...])

Sequences become a tree, in which what neighbours have in common (the question of k choices, the examples before a thousand
questions) is one node. Nodes of like length are read as one batch, each row going on from the keys and values of its parent
(`prefix.py`), and the head computes logits only where a continuation is scored.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from nutshell.eval.prefix import Prefix, read
from nutshell.infer.sampling import DamagedModelError
from nutshell.model.decoder import Decoder

if TYPE_CHECKING:
    from nutshell.eval.journal import Journal

Pair = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prefix and of its continuation."""
Progress = Callable[[int, int], None]

TOKENS_PER_BATCH = 1024
"""With padding; what a CPU's cache holds: 4,096 were a fifth slower on a Zen 4."""
GPU_TOKENS_PER_BATCH = 65536
ATTENTION_SCORES_AT_ONCE = 1 << 20
"""Of rows behind prefixes, by layer; 256 times as many on a GPU."""
LOGITS_AT_ONCE = 1 << 22
SHORTEST_SHARED = 8
"""Fewer tokens in common are read again: one more level of batches would cost more."""
PART_SHARED = 4
"""Neighbours are read together as long as they share one part in this many of what their group has shared so far."""


class Score(NamedTuple):
    """Of one continuation behind its prefix."""

    logprob: float
    """Sum over its tokens, in nats."""
    tokens: int
    greedy: bool
    """Whether each token is the likeliest one, so that greedy decoding would say just this."""

    @property
    def mean(self) -> float:
        """Log-probability per token; NaN where there is none."""
        return self.logprob / self.tokens if self.tokens else math.nan


@dataclass(slots=True)
class Node:
    """Tokens that some sequences share, behind those of its parent."""

    tokens: list[int]
    targets: list[tuple[int, int, int]] = field(default_factory=list)
    """(place in tokens, the token that should follow, number of the pair)."""
    children: list[Node] = field(default_factory=list)


@torch.inference_mode()
def score(model: Any, pairs: Sequence[Pair], *, runtime: Any = None, progress: Progress | None = None) -> list[Score]:
    """Score each continuation behind its prefix, in order.

    A pair longer than the model's context loses its beginning; the last token is only a target, so context + 1 fit. An empty
    continuation has the log-probability 0. All ranks of `runtime` take part and get all scores. A model that is no `Decoder` of
    ours reads every pair by itself. `progress(done, total)` counts pairs. ValueError for an empty prefix: nothing predicts the
    first token. DamagedModelError where the model's output is no number.
    """
    longest = model.config.context
    rows: list[tuple[list[int], int, int]] = []  # ids, first scored place, pair
    for number, (prefix, continuation) in enumerate(pairs):
        if not len(prefix):
            raise ValueError(f"pair {number} has an empty prefix; accepted: at least one token, for example <|bos|>.")
        ids = [*prefix, *continuation][-longest - 1 :]
        if len(continuation):
            rows.append((ids, max(1, len(ids) - len(continuation)), number))
    rows.sort(key=lambda row: row[0][:-1])
    roots = tree(rows, 0) if isinstance(model, Decoder) else [leaf([row], 0) for row in rows]
    roots.sort(key=lambda node: (bool(node.children), len(node.tokens)), reverse=True)
    rank, world = (runtime.rank, runtime.world_size) if runtime is not None else (0, 1)
    found: dict[int, tuple[float, bool]] = {}
    for done in walk(model, [(0, [node]) for node in roots[rank::world]], None, found):
        if progress:
            progress(min(len(pairs), done * world), len(pairs))
    if world > 1:
        for theirs in runtime.gather(found):
            found.update(theirs)
    if any(math.isnan(logprob) for logprob, _ in found.values()):
        raise DamagedModelError
    scores = [Score(0.0, 0, True)] * len(pairs)
    for ids, first, number in rows:
        logprob, greedy = found[number]
        scores[number] = Score(logprob, len(ids) - first, greedy)
    return scores


def score_groups(
    model: Any,
    groups: Iterable[Sequence[Pair]],
    total: int,
    *,
    at_once: int,
    runtime: Any = None,
    progress: Progress | None = None,
    journal: Journal | None = None,
) -> Iterator[list[Score]]:
    """The scores of each group of pairs (the options of a question) of `total`, read `at_once` groups at a time.

    `progress(done, total)` counts groups. What stands in the `journal` is not scored again.
    """
    remaining, done = iter(groups), 0
    while some := list(islice(remaining, at_once)):

        def note(scored: int, pairs: int, done: int = done, count: int = len(some)) -> None:
            if progress:
                progress(done + scored * count // pairs, total)

        pairs = [pair for group in some for pair in group]
        key, found = "", None
        if journal:
            key = journal.key(pairs)
            found = journal.known.get(key)
            found = found if runtime is None else runtime.agree(found)
        if found is None:
            found = score(model, pairs, runtime=runtime, progress=note)
            if journal and (runtime is None or runtime.is_main):
                journal.note(key, found)
        scores = iter(found)
        for group in some:
            yield [Score(*next(scores)) for _ in group]
        done += len(some)


def common(a: list[int], b: list[int], start: int) -> int:
    """How many tokens two sequences have in common, which agree before `start`; the last of each is only a target."""
    end = min(len(a), len(b)) - 1
    if a[start:end] == b[start:end]:
        return end
    low, high = start, end  # they agree before low, not before high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if a[low:middle] == b[low:middle] else (low, middle)
    return low


def tree(rows: list[tuple[list[int], int, int]], start: int) -> list[Node]:
    """The nodes of sorted `rows` (ids, first scored place, pair), which agree in their first `start` tokens."""
    nodes = []
    first = 0
    while first < len(rows):
        end, shared = first + 1, len(rows[first][0]) - 1
        while end < len(rows):
            both = min(shared, common(rows[end - 1][0], rows[end][0], start))
            same = both == shared == len(rows[end][0]) - 1  # as for answers of one token: the same input
            if not same and (both - start < SHORTEST_SHARED or PART_SHARED * (both - start) < shared - start):
                break
            end, shared = end + 1, both
        group = rows[first:end]
        ending = [row for row in group if len(row[0]) - 1 == shared]
        node = leaf(ending, start) if ending else Node(group[0][0][start:shared])
        longer = [row for row in group if len(row[0]) - 1 > shared]
        for ids, scored, number in longer:  # targets inside what is shared
            node.targets += [(place - start, ids[place + 1], number) for place in range(max(start, scored - 1), shared)]
        if longer:
            node.children = tree(longer, shared)
        nodes.append(node)
        first = end
    return nodes


def leaf(rows: list[tuple[list[int], int, int]], start: int) -> Node:
    """The node of rows with the same input, from `start` on."""
    node = Node(rows[0][0][start:-1])
    for ids, scored, number in rows:
        node.targets += [(place - start, ids[place + 1], number) for place in range(max(start, scored - 1), len(ids) - 1)]
    return node


Bundle = tuple[int, list[Node]]
"""A row of the batch before, and nodes that follow it."""


def walk(model: Any, bundles: list[Bundle], before: Prefix | None, found: dict[int, tuple[float, bool]]) -> Iterator[int]:
    """Read the nodes behind their parents and put (log-probability, greedy) of each pair into `found`; yields how many it has."""
    device = next(model.parameters()).device
    limit, scores = TOKENS_PER_BATCH, ATTENTION_SCORES_AT_ONCE
    if device.type != "cpu":
        limit, scores = GPU_TOKENS_PER_BATCH, 256 * scores
    if before is not None:
        limit = min(limit, 1 + scores // (model.config.heads * before.positions.size(1)))
    for batch in batches(bundles, limit):
        N = max(len(nodes) for _, nodes in batch)
        T = max(len(node.tokens) for _, nodes in batch for node in nodes)
        rows = [node for _, nodes in batch for node in [*nodes, *[None] * (N - len(nodes))]]
        ids = torch.tensor([[*node.tokens, *[0] * (T - len(node.tokens))] if node else [0] * T for node in rows], device=device)
        following: list[Bundle] = [(row, node.children) for row, node in enumerate(rows) if node and node.children]
        if isinstance(model, Decoder):
            counts = torch.tensor([len(node.tokens) if node else 1 for node in rows], device=device)
            parents = before.rows([row for row, _ in batch]) if before is not None else None
            hidden, here = read(model, ids, counts, parents, keep=bool(following))
        else:
            hidden, here = model.hidden_states(ids), None
        targets = [(row, *target) for row, node in enumerate(rows) if node for target in node.targets]
        add_scores(model, hidden, targets, found)
        yield len(found)
        if following:
            yield from walk(model, following, here, found)


def batches(bundles: list[Bundle], limit: int) -> Iterator[list[Bundle]]:
    """Bundles that are read together: `limit` tokens with padding, of like length and number. Long bundles are cut."""
    pieces: list[Bundle] = []
    for row, nodes in bundles:
        nodes = sorted(nodes, key=lambda node: len(node.tokens), reverse=True)
        while nodes:
            some = max(1, limit // len(nodes[0].tokens))
            pieces.append((row, nodes[:some]))
            nodes = nodes[some:]
    pieces.sort(key=lambda piece: (any(node.children for node in piece[1]), len(piece[1]), len(piece[1][0].tokens)), reverse=True)
    batch: list[Bundle] = []
    tall = wide = 0
    for piece in pieces:
        most, length = max(tall, len(piece[1])), max(wide, len(piece[1][0].tokens))
        if batch and (len(batch) + 1) * most * length > limit:
            yield batch
            batch, most, length = [], len(piece[1]), len(piece[1][0].tokens)
        batch.append(piece)
        tall, wide = most, length
    if batch:
        yield batch


def add_scores(
    model: Any, hidden: Tensor, targets: list[tuple[int, int, int, int]], found: dict[int, tuple[float, bool]]
) -> None:
    """Count the log-probability of each target (row, place, token, pair) given hidden (rows, T, C) for its pair."""
    places = {place: number for number, place in enumerate(dict.fromkeys(target[:2] for target in targets))}
    if not places:
        return
    index = torch.tensor(list(places), device=hidden.device)
    chosen = hidden[index[:, 0], index[:, 1]]  # (P, C)
    wanted = torch.tensor([(places[target[:2]], target[2]) for target in targets], device=hidden.device)
    logprobs, likeliest = [], []
    size = max(1, LOGITS_AT_ONCE // model.config.vocab_size)
    order = wanted[:, 0].argsort(stable=True)
    bounds = torch.bincount(wanted[:, 0] // size, minlength=-(-len(places) // size)).tolist()
    for start, part in zip(range(0, len(places), size), order.split(bounds), strict=True):
        logits = model.head(chosen[start : start + size]).float()  # (size, V)
        row, token = wanted[part, 0] - start, wanted[part, 1]
        logprobs.append(logits.log_softmax(dim=-1)[row, token])
        likeliest.append(logits.argmax(dim=-1)[row] == token)
    numbers = [targets[i][3] for i in order.tolist()]
    for number, value, best in zip(numbers, torch.cat(logprobs).tolist(), torch.cat(likeliest).tolist(), strict=True):
        total, greedy = found.get(number, (0.0, True))
        found[number] = (total + value, greedy and best)
