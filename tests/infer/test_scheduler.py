"""The policy alone, by random requests: a cache of numbers in place of a model shows what each request would read."""

import random
from concurrent.futures import Future

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.infer import scheduler as policy
from nutshell.infer.blocks import BlockPool
from nutshell.infer.request import Request, Vocabulary
from nutshell.infer.sampling import Sampling
from nutshell.infer.scheduler import Scheduler

SIZE, CONTEXT = 4, 40


def next_token(words: Vocabulary, tokens: list[int]) -> int:
    """A model: what it says depends on all that it has read."""
    draw = random.Random(str(tokens)).random()
    if draw < 0.04:
        return min(words.ends)
    return words.python_start if draw < 0.07 else words.python_end if draw < 0.2 else int(draw * 100)


class Simulation:
    """A scheduler, and blocks that hold the tokens written into them."""

    def __init__(self, tok, blocks: int, rows: int, seed: int) -> None:
        self.words, self.random = Vocabulary.of(tok), random.Random(seed)
        self.scheduler = Scheduler(BlockPool(blocks, SIZE), rows)
        self.content = [[-1] * SIZE for _ in range(blocks)]
        self.numbers, self.futures, self.ended = 0, [], []

    def request(self, prompt: list[int], answer_later: bool = True) -> Request:
        def tool(code: str) -> "Future[str]":
            future: Future[str] = Future()
            if answer_later:
                self.futures.append(future)
            else:
                future.set_result("4")
            return future

        self.numbers += 1
        return Request(self.words, prompt, Sampling(), CONTEXT - len(prompt), number=self.numbers, tool=tool, streaming=False)

    def alone(self, prompt: list[int]) -> list[int]:
        request = self.request(prompt, answer_later=False)
        while request.finish is None:
            request.accept(next_token(self.words, request.tokens))
            request.resume()
        return request.tokens

    def step(self, fails: bool = False) -> None:
        scheduler, size = self.scheduler, SIZE
        scheduler.hear_tools()
        batch = scheduler.plan()
        self.check()
        oldest = scheduler.live[:1]
        if oldest and oldest[0].pending:
            assert batch[0][0] is oldest[0], "the oldest always goes on"
        for _, chunk in batch:
            for place, token in enumerate(chunk.ids, chunk.start):
                block = chunk.blocks[place // size]
                assert scheduler.pool.holders[block] == 1, "a shared block is written"
                self.content[block][place % size] = -2 if fails else token
        if fails:
            scheduler.abandon(RuntimeError("a step failed"))
            return
        for request, chunk in batch:
            end = chunk.start + len(chunk.ids)
            read = [self.content[chunk.blocks[place // size]][place % size] for place in range(end)]
            assert read == request.tokens[:end]
            assert chunk.previous == (request.tokens[chunk.start - 1] if chunk.start else -1)
        for place in scheduler.advance(batch):
            request = batch[place][0]
            request.accept(next_token(self.words, request.tokens))
        scheduler.take_out_finished()
        for future in self.futures:
            if not future.done() and self.random.random() < 0.3:
                future.set_result("4")

    def check(self) -> None:
        """Each block is free, idle or held by as many as say so."""
        pool, held = self.scheduler.pool, [0] * self.scheduler.pool.total
        for request in self.scheduler.live:
            for block in request.blocks:
                held[block] += 1
        assert pool.holders == held
        assert sorted([*pool.free, *pool.idle, *(block for block in range(pool.total) if held[block])]) == list(range(pool.total))
        assert all(not request.blocks and not request.cached for request in self.scheduler.queue)
        assert len(self.scheduler.live) <= self.scheduler.max_rows


def simulate(tok, count: int, blocks: int, rows: int, seed: int, failures: float, cancellations: float) -> Simulation:
    """`count` requests that come a few at a time, many of which begin alike; then until the last has ended."""
    simulation = Simulation(tok, blocks, rows, seed)
    draw, scheduler = simulation.random, simulation.scheduler
    starts = [[draw.randrange(100) for _ in range(CONTEXT)] for _ in range(4)]
    waiting: list[Request] = []
    all_requests: list[Request] = []
    steps = 0
    while len(all_requests) < count or waiting:
        for _ in range(draw.randrange(4)):
            if len(all_requests) < count:
                prompt = draw.choice(starts)[: draw.randrange(1, CONTEXT)]
                prompt = prompt[: draw.randrange(len(prompt)) + 1] + [draw.randrange(100) for _ in range(draw.randrange(3))]
                request = simulation.request(prompt[: CONTEXT - 1])
                scheduler.add(request)
                waiting.append(request)
                all_requests.append(request)
        if waiting and draw.random() < cancellations:
            scheduler.cancel([draw.choice(waiting)])
            simulation.check()
        simulation.step(fails=draw.random() < failures)
        waiting = [request for request in waiting if request.finish is None]
        steps += 1
        assert steps < 200 * (count + 5), "a request starves"
    simulation.check()
    pool = scheduler.pool
    assert pool.available == pool.total, "a block has leaked"
    for request in all_requests:
        whole = simulation.alone(request.prompt)
        assert request.tokens == (whole[: len(request.tokens)] if request.finish == "cancelled" else whole)
    return simulation


@settings(max_examples=40, deadline=None)
@given(
    blocks=st.integers(10, 30),
    rows=st.integers(1, 6),
    seed=st.integers(0, 10**6),
    failures=st.sampled_from([0.0, 0.05]),
    cancellations=st.sampled_from([0.0, 0.2]),
    budget=st.sampled_from([3, 7, 1024]),
)
def test_no_block_leaks_no_request_starves_and_each_reads_its_own_text(tok, blocks, rows, seed, failures, cancellations, budget):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(policy, "PREFILL_TOKENS", budget)
        simulate(tok, 25, blocks, rows, seed, failures, cancellations)


@pytest.mark.slow
def test_ten_thousand_requests(tok):
    preemptions = 0
    for seed in range(10):
        preemptions += simulate(tok, 1000, 12 + seed, 2 + seed, seed, 0.002, 0.1).scheduler.preemptions
    assert preemptions > 500


def test_a_full_cache_preempts_the_youngest_and_the_oldest_goes_on(tok):
    """Two prompts of four blocks and growth in a cache of ten."""
    simulation = Simulation(tok, 10, 4, seed=0)
    old, young = (simulation.request([first] * 19) for first in (1, 2))
    for request in (young, old):
        simulation.scheduler.add(request)
    assert simulation.scheduler.queue == [old, young]
    for _ in range(30):
        simulation.step()
    assert simulation.scheduler.preemptions > 0 or {old.finish, young.finish} != {None}
    while simulation.scheduler.live or simulation.scheduler.queue:
        simulation.step()
    assert [old.tokens, young.tokens] == [simulation.alone([first] * 19) for first in (1, 2)]


def test_nobody_waits_for_a_block_whose_reader_waits_for_a_tool(tok):
    """A request that begins as one whose call ends a block, and whose tool may take for ever."""
    simulation = Simulation(tok, 30, 4, seed=0)
    caller = simulation.request([1, 2])
    simulation.scheduler.add(caller)
    simulation.scheduler.advance(simulation.scheduler.plan())
    for token in (simulation.words.python_start, simulation.words.python_end):
        caller.accept(token)
    assert caller.answer is not None
    assert len(caller.tokens) == SIZE
    alike = simulation.request([*caller.tokens, 5])
    simulation.scheduler.add(alike)
    assert [request for request, _ in simulation.scheduler.plan()] == [alike]


def test_a_prompt_is_fed_in_parts_that_take_a_twentieth_of_a_second_while_somebody_reads_a_reply(tok):
    scheduler = Scheduler(BlockPool(400, 16), 4)
    request = Simulation(tok, 10, 1, seed=0).request
    chatty, long = request([1, 2]), request([3] * 3000)
    chatty.limit = 100
    scheduler.add(chatty)
    scheduler.advance(scheduler.plan())
    chatty.accept(5)
    scheduler.add(long)
    lengths = []
    for seconds in (0.128, 0.4, 0.4):  # 1,000 tokens a second, then 320 and fewer
        batch = scheduler.plan()
        lengths.append([len(chunk.ids) for _, chunk in batch])
        for place in scheduler.advance(batch, seconds):
            batch[place][0].accept(5)
    assert lengths == [[1, 128], [1, 128], [1, 128]]
    scheduler.tokens_per_second = 8000.0
    assert [len(chunk.ids) for _, chunk in scheduler.plan()] == [1, 400]
    scheduler.cancel([chatty])
    assert [len(chunk.ids) for _, chunk in scheduler.plan()] == [1024]


def test_known_blocks_are_found_by_their_whole_beginning_and_the_least_recently_used_go_first():
    pool = BlockPool(4, 2)
    first = pool.take(3)
    name = 0
    for place, tokens in enumerate(([1, 2], [3, 4], [1, 2])):
        name = pool.remember(first[place], name, tokens)
    assert pool.find([1, 2, 3, 4, 1, 2, 9])[0] == first
    assert pool.find([3, 4]) == ([], 0)  # the same tokens behind another beginning are another block
    pool.give_back(first)
    assert (pool.available, pool.find([1, 2])[0]) == (4, first[:1])
    pool.take(2)  # the free one, and the last of the chain
    assert pool.find([1, 2, 3, 4, 1, 2])[0] == first[:2]
    pool.forget()
    assert (pool.find([1, 2])[0], pool.available) == ([], 2)
