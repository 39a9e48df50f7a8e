"""The engine against plain forward passes: scheduling must never change what is generated."""

import copy
import threading

import pytest
import torch

from nutshell.infer import scheduler
from nutshell.infer.cache_memory import bytes_per_token
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling

GREEDY = Sampling(temperature=0, max_tokens=40)


@pytest.fixture(autouse=True, params=["native", "torch"])
def computes(request, monkeypatch):
    """Every test here is of both ways to compute."""
    if request.param == "torch":
        monkeypatch.setattr("nutshell.infer.engine.why_not", lambda model: "this test is of torch")
    return request.param


def prompt_of(length: int, seed: int = 0) -> list[int]:
    return torch.randint(0, 200, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy_by_full_forward(model, tok, prompt, max_tokens):
    """The oracle: the whole row through the model for each token."""
    ends = {tok.special_id(f"<|{name}|>") for name in ("bos", "assistant_end", "user_start")}
    ids, reply = list(prompt), []
    with torch.inference_mode():
        while len(reply) < max_tokens and not (reply and reply[-1] in ends):
            reply.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
            ids.append(reply[-1])
    return reply


def run(engine) -> dict:
    """Step until nothing is left: token ids by request."""
    tokens: dict = {}
    while engine.busy:
        for delta in engine.step():
            tokens.setdefault(delta.request, []).append(delta)
    return tokens


def watch(engine, monkeypatch) -> list[int]:
    """Tokens of each chunk that the engine feeds from now on."""
    engine.allocate()
    fed, forward = [], engine._runner.forward
    monkeypatch.setattr(
        engine._runner, "forward", lambda chunks: fed.extend(len(chunk.ids) for chunk in chunks) or forward(chunks)
    )
    return fed


def ids_of(deltas) -> list[int]:
    return [delta.token_id for delta in deltas if delta.token_id >= 0]


def test_decoding_token_by_token_equals_the_full_forward_past_the_window(model, tok):
    """nanochat issue 456. The window is 16 tokens, the row grows to 45."""
    prompt = prompt_of(5)
    engine = Engine(model, tok)
    request = engine.submit(prompt, GREEDY, tools=False)
    deltas = run(engine)[request]
    assert ids_of(deltas) == greedy_by_full_forward(model, tok, prompt, 40)
    assert deltas[-1].finish in ("stop", "length")
    assert [delta.finish for delta in deltas[:-1]] == [None] * (len(deltas) - 1)


@pytest.mark.parametrize("budget", [3, 7, 1024])
def test_rows_do_not_disturb_each_other(model, tok, monkeypatch, budget):
    """More prompts than rows, of very different lengths, fed in chunks, ending at different times."""
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", budget)
    prompts = [prompt_of(length, seed=length) for length in (1, 30, 2, 9, 17, 3, 50, 8, 4)]
    engine = Engine(model, tok, max_rows=4)
    limits = [3, 10, 1, 20, 5, 12, 8, 2, 30]
    requests = [
        engine.submit(prompt, Sampling(temperature=0, max_tokens=limit), tools=False)
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    tokens = run(engine)
    for request, prompt, limit in zip(requests, prompts, limits, strict=True):
        assert ids_of(tokens[request]) == greedy_by_full_forward(model, tok, prompt, limit)
    assert not engine.busy


def test_requests_that_arrive_later_join_the_batch(model, tok):
    engine = Engine(model, tok, max_rows=3)
    prompts = [prompt_of(6, seed) for seed in range(5)]
    requests, tokens = [], {}
    for prompt in prompts:
        requests.append(engine.submit(prompt, GREEDY, tools=False))
        for _ in range(4):
            for delta in engine.step():
                tokens.setdefault(delta.request, []).append(delta)
    for request, deltas in run(engine).items():
        tokens.setdefault(request, []).extend(deltas)
    for request, prompt in zip(requests, prompts, strict=True):
        assert ids_of(tokens[request]) == greedy_by_full_forward(model, tok, prompt, 40)


@pytest.mark.parametrize("restricted", [{}, {"top_k": 9}, {"temperature": 0.9, "top_p": 0.95}])
def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(model, tok, restricted):
    """In torch a row that leaves nothing out was drawn otherwise beside one that does."""
    options = Sampling(seed=11, max_tokens=20, **restricted)
    alone = Engine(model, tok)
    request = alone.submit(prompt_of(7), options)
    expected = ids_of(run(alone)[request])
    crowded = Engine(model, tok, max_rows=4)
    for seed in range(3):
        crowded.submit(prompt_of(10 + seed, seed), Sampling(temperature=1.5, top_k=seed * 10))
    request = crowded.submit(prompt_of(7), options)
    crowded.submit(prompt_of(3), Sampling(temperature=1.1))
    assert ids_of(run(crowded)[request]) == expected


def test_the_context_bounds_a_reply(model, tok):
    engine = Engine(model, tok)
    request = engine.submit(prompt_of(60), Sampling(max_tokens=500, temperature=0), tools=False)
    deltas = run(engine)[request]
    assert len(deltas) <= 4
    assert ids_of(deltas) == greedy_by_full_forward(model, tok, prompt_of(60), 4)
    small = Engine(model, tok, context=12)
    request = small.submit(prompt_of(10), Sampling(temperature=0), tools=False)
    assert len(run(small)[request]) <= 2


def test_end_of_reply_stops(scripted, tok):
    for name in ("bos", "assistant_end", "user_start"):
        engine = Engine(scripted, tok)
        prompt = prompt_of(4)
        end = tok.special_id(f"<|{name}|>")
        scripted.say(4, [*tok.encode("cat"), end])
        request = engine.submit(prompt, GREEDY)
        deltas = run(engine)[request]
        assert deltas[-1].token_id == end
        assert deltas[-1].finish == "stop"
        assert "".join(delta.text for delta in deltas) == "cat"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "no tokens"),
        ([1] * 64, "64 tokens; accepted: at most 63, as the context holds 64 with the reply"),
        ([1, 99999], "token 99999"),
    ],
)
def test_a_prompt_that_cannot_work_is_refused(model, tok, prompt, message):
    engine = Engine(model, tok)
    with pytest.raises(ValueError, match=message):
        engine.submit(prompt)
    assert not engine.busy


def test_bad_engines_are_refused(model, tok):
    with pytest.raises(ValueError, match="max_rows is 0"):
        Engine(model, tok, max_rows=0)
    with pytest.raises(ValueError, match="context is 65; accepted: 2 to 64"):
        Engine(model, tok, context=65)

    class Bigger:
        vocab_size = tok.vocab_size + 1

    with pytest.raises(ValueError, match="tokenizer that fits"):
        Engine(model, Bigger())


def test_log_probabilities(model, tok):
    prompt = prompt_of(6)
    engine = Engine(model, tok)
    plain = engine.submit(prompt, Sampling(temperature=0, max_tokens=5), tools=False)
    request = engine.submit(prompt, Sampling(temperature=0, max_tokens=5, top_logprobs=3), tools=False)
    own = engine.submit(prompt, Sampling(seed=1, max_tokens=5, top_logprobs=0), tools=False)
    tokens = run(engine)
    assert all(delta.logprob is None and not delta.top for delta in tokens[plain])
    assert all(delta.logprob < 0 and not delta.top for delta in tokens[own])
    ids = list(prompt)
    for delta in tokens[request]:
        expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert delta.top[0] == (delta.token_id, delta.logprob)
        assert len(delta.top) == 3
        assert delta.logprob == pytest.approx(float(expected[delta.token_id]), abs=1e-4)
        ids.append(delta.token_id)


def test_cancelling_frees_the_row_and_leaves_the_others_alone(model, tok):
    engine = Engine(model, tok, max_rows=2)
    prompts = [prompt_of(5, seed) for seed in range(4)]
    requests = [engine.submit(prompt, GREEDY, tools=False) for prompt in prompts]
    first = engine.step()
    assert {delta.request for delta in first} == set(requests[:2])
    engine.cancel(requests[0])
    engine.cancel(requests[3])  # still waiting
    engine.cancel(requests[3])
    second = engine.step()
    ended = [delta for delta in second if delta.finish == "cancelled"]
    assert {delta.request for delta in ended} == {requests[0], requests[3]}
    assert all(delta.token_id == -1 and delta.text == "" for delta in ended)
    assert requests[2] in {delta.request for delta in second}  # took the free row at once
    tokens = {request: [p for p in first + second if p.request is request] for request in requests[1:3]}
    for request, deltas in run(engine).items():
        tokens[request] += deltas
    for place in (1, 2):
        assert ids_of(tokens[requests[place]]) == greedy_by_full_forward(model, tok, prompts[place], 40)
    engine.cancel(requests[1])  # has ended already
    assert not engine.busy
    assert requests[1].finish in ("stop", "length")


def test_a_step_that_fails_leaves_a_working_engine(model, tok, monkeypatch):
    engine = Engine(model, tok, max_rows=2)
    requests = [engine.submit(prompt_of(5, seed), GREEDY) for seed in range(3)]
    engine.step()
    with monkeypatch.context() as patch:
        engine.allocate()
        patch.setattr(engine._runner, "forward", lambda chunks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert [request.finish for request in requests] == ["cancelled"] * 3
    assert not engine.busy
    request = engine.submit(prompt_of(5), GREEDY, tools=False)
    assert ids_of(run(engine)[request]) == greedy_by_full_forward(model, tok, prompt_of(5), 40)


def test_submit_and_cancel_from_other_threads_while_one_steps(model, tok):
    engine = Engine(model, tok, max_rows=3)
    expected = {seed: greedy_by_full_forward(model, tok, prompt_of(4, seed), 12) for seed in range(6)}
    kept, cancelled, tokens, stop = {}, [], {}, threading.Event()

    def work(seed: int) -> None:
        for turn in range(6):
            request = engine.submit(prompt_of(4, seed), Sampling(temperature=0, max_tokens=12), tools=False)
            if turn % 2:
                cancelled.append(request)
                engine.cancel(request)
            else:
                kept[request] = seed

    def step() -> None:
        while not stop.is_set() or engine.busy:
            for delta in engine.step():
                tokens.setdefault(delta.request, []).append(delta)

    stepper = threading.Thread(target=step)
    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in [stepper, *workers]:
        thread.start()
    for thread in workers:
        thread.join()
    stop.set()
    stepper.join()
    for request, seed in kept.items():
        assert ids_of(tokens[request]) == expected[seed]
    assert all(tokens[request][-1].finish is not None for request in cancelled)
    assert all(sum(delta.finish is not None for delta in deltas) == 1 for deltas in tokens.values())


def test_f27_a_reply_that_is_closed_early_leaves_nothing_behind(model, tok):
    """F27: the request stayed in the cache, and `busy` stayed True."""
    engine = Engine(model, tok, max_rows=1)
    reply = engine.chat([{"role": "user", "content": "Hi"}], max_tokens=20, temperature=0)
    next(reply)
    assert engine.busy
    reply.close()
    assert not engine.busy
    assert engine.generate(["Hi"], max_tokens=3, temperature=0)


def test_a_reply_that_is_cancelled_from_outside_ends_whoever_hears_of_it_first(model, tok):
    """Closing another reply took the last delta away, and this one spoke of a failed step."""
    engine = Engine(model, tok)
    first, second = (engine.chat([{"role": "user", "content": text}], max_tokens=40, temperature=0) for text in ("Hi", "Ho"))
    request = next(first).request
    next(second)
    engine.cancel(request)
    second.close()
    assert [delta.finish for delta in first][-1] == "cancelled"
    assert not engine.busy


def test_what_is_readable_when_a_step_fails_is_not_lost(model, tok, monkeypatch):
    engine = Engine(model, tok)
    ended, other = engine.submit(prompt_of(4), GREEDY), engine.submit(prompt_of(5), GREEDY)
    engine.step()
    engine.cancel(ended)
    with monkeypatch.context() as patch:
        patch.setattr(engine._runner, "forward", lambda chunks: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            engine.step()
    assert isinstance(other.error, ZeroDivisionError)
    assert [(delta.request, delta.finish) for delta in engine.step()] == [(ended, "cancelled")]
    assert not engine.busy


def test_f27_a_failed_step_is_everybodys_error(model, tok, monkeypatch):
    """F27: another thread's `sample` returned cut replies without a word."""
    engine = Engine(model, tok, max_rows=2)
    engine.allocate()
    monkeypatch.setattr(engine._runner, "forward", lambda chunks: (_ for _ in ()).throw(RuntimeError("a broken step")))
    waiting = engine.submit([1, 2, 3])
    with pytest.raises(RuntimeError, match="a broken step"):
        engine.sample([[1, 2, 3]], 1)
    with pytest.raises(RuntimeError, match="a broken step"):
        list(engine.chat([{"role": "user", "content": "Hi"}]))
    assert isinstance(waiting.error, RuntimeError)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f27_logits_that_are_not_numbers_end_their_request_alone(model, tok, bad):
    """A token whose embedding is damaged; the request beside it does not see that token."""
    damaged = copy.deepcopy(model)
    damaged.embedding.weight[7, 3] = bad
    engine = Engine(damaged, tok, max_rows=2)
    fine, broken = engine.submit([5, 6], GREEDY, tools=False), engine.submit([5, 7], GREEDY, tools=False)
    deltas = run(engine)
    assert ids_of(deltas[fine]) == greedy_by_full_forward(damaged, tok, [5, 6], 40)
    assert [(delta.token_id, delta.finish) for delta in deltas[broken]] == [(-1, "cancelled")]
    assert "NaN or infinite" in str(broken.error)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        engine.sample([[5, 7]])
    assert not engine.busy  # no delta of it waits for somebody else


def test_blocks_that_held_no_numbers_harm_nobody_afterwards(model, tok):
    """Zero times NaN is NaN: what a mask hides must be numbers too. The cache is so small that all blocks are used again."""
    damaged = copy.deepcopy(model)
    damaged.embedding.weight[7, 3] = float("nan")
    engine = Engine(damaged, tok, max_rows=3, kv_cache_bytes=6 * 16 * bytes_per_token(model.config, "float32"))
    for _ in range(3):
        broken = engine.submit([7] * 60, GREEDY, tools=False)
        run(engine)
        assert broken.error
        assert engine.allocate().pool.find([7] * 60)[0] == []
        fine = [engine.submit(prompt_of(length), Sampling(temperature=0, max_tokens=9), tools=False) for length in (1, 18, 40)]
        run(engine)
        for request in fine:
            assert request.ids == greedy_by_full_forward(model, tok, request.prompt, 9)  # which has no token 7


def test_f27_choices_share_one_prefill(model, tok, monkeypatch):
    engine = Engine(model, tok, max_rows=4)
    fed = watch(engine, monkeypatch)
    requests = engine.submit_choices([5] * 40, [Sampling(max_tokens=1, seed=n) for n in range(4)])
    while engine.busy:
        engine.step()
    assert fed == [40, 8, 8, 8]
    assert all(len(request.ids) == 1 for request in requests)


@pytest.mark.parametrize("length", [15, 16, 17, 32, 40])
def test_a_known_beginning_is_not_fed_again_and_changes_nothing(model, tok, monkeypatch, length):
    """Around block boundaries and past the window of 16; with smear, value embeddings and both kinds of layers."""
    engine = Engine(model, tok, max_rows=2)
    fed = watch(engine, monkeypatch)
    prompt = prompt_of(length)
    first = engine.submit(prompt, Sampling(temperature=0, max_tokens=8), tools=False)
    run(engine)
    again = [*first.tokens, *prompt_of(5, seed=9)]  # a second turn: prompt, reply and something new
    del fed[:]
    second, same = (engine.submit(text, Sampling(temperature=0, max_tokens=8), tools=False) for text in (again, prompt))
    run(engine)
    known = (len(first.tokens) - 1) // 16 * 16  # the last token of a reply is not fed
    assert fed[:2] == [len(again) - known, length - min(known, (length - 1) // 16 * 16)]
    assert second.ids == greedy_by_full_forward(model, tok, again, 8)
    assert same.ids == first.ids == greedy_by_full_forward(model, tok, prompt, 8)


def test_a_small_cache_preempts_and_changes_nothing(model, tok, monkeypatch):
    monkeypatch.setattr(scheduler, "PREFILL_TOKENS", 7)
    engine = Engine(model, tok, max_rows=4, kv_cache_bytes=6 * 16 * bytes_per_token(model.config, "float32"))
    requests = [engine.submit(prompt_of(6 + seed, seed), GREEDY, tools=False) for seed in range(6)]
    run(engine)
    assert engine.allocate().preemptions > 0
    for seed, request in enumerate(requests):
        assert request.ids == greedy_by_full_forward(model, tok, prompt_of(6 + seed, seed), 40)
    with pytest.raises(ValueError, match="4096 bytes, and one reply of 64 tokens needs 24576; accepted: at least that many"):
        Engine(model, tok, kv_cache_bytes=4096).allocate()


def test_a_prompt_is_scored_between_steps_and_changes_no_reply(model, tok):
    """Its blocks are taken from the youngest replies where none is free, and come back."""
    engine = Engine(model, tok, max_rows=4, kv_cache_bytes=6 * 16 * bytes_per_token(model.config, "float32"))
    requests = [engine.submit(prompt_of(6 + seed, seed), GREEDY, tools=False) for seed in range(4)]
    text = prompt_of(60, 9)
    expected = model(torch.tensor([text]))[0]
    while any(request.finish is None for request in requests):
        engine.step()
        found = torch.cat([torch.from_numpy(part.copy()) for part in engine.prompt_logits(text)])
        assert torch.allclose(found, expected, atol=3e-5, rtol=1e-4)
    assert engine.cache_stats().preemptions > 0
    assert engine.cache_stats().used == 0
    for seed, request in enumerate(requests):
        assert request.ids == greedy_by_full_forward(model, tok, prompt_of(6 + seed, seed), 40)


@pytest.mark.parametrize(
    ("ids", "message"),
    [([], "no tokens"), ([1] * 65, "at most 64, as the context holds 64"), ([1] * 999, "999 tokens"), ([1, 300], "token 300")],
)
def test_a_text_that_cannot_be_scored_is_refused_and_no_block_is_lost(model, tok, ids, message):
    """One that was longer than the cache took all of its blocks for ever."""
    engine = Engine(model, tok, max_rows=1)
    with pytest.raises(ValueError, match=message):
        next(engine.prompt_logits(ids))
    with pytest.raises(MemoryError, match="4 blocks of the KV cache are asked for, and 0 of 4 are left"):
        next(zip(engine.prompt_logits([1] * 64), engine.prompt_logits([2] * 64), strict=True))
    assert sum(map(len, engine.prompt_logits([1] * 64))) == 64
    assert engine.cache_stats().used == 0


@pytest.mark.parametrize("place", [1, 15, 16, 40, 59])
def test_a_document_sees_nothing_of_the_one_before(model, tok, place):
    """As in training: the full forward hides what stands before a <|bos|>."""
    prompt = prompt_of(60)
    prompt[place // 2] = prompt[place] = tok.bos_id
    engine = Engine(model, tok)
    request = engine.submit(prompt, Sampling(temperature=0, max_tokens=40), tools=False)
    run(engine)
    assert request.ids == greedy_by_full_forward(model, tok, prompt, 4)
    found = torch.cat([torch.from_numpy(part.copy()) for part in engine.prompt_logits(prompt)])
    assert torch.allclose(found, model(torch.tensor([prompt]))[0], atol=3e-5, rtol=1e-4)


def test_other_weights_make_everything_known_worthless(model, tok):
    """As after a step of reinforcement learning, also in the middle of a reply."""
    changed = copy.deepcopy(model)
    engine = Engine(changed, tok)
    prompt = prompt_of(40)
    request = engine.submit(prompt, GREEDY, tools=False)
    engine.step()
    engine.step()
    changed.embedding.weight.mul_(torch.linspace(0.5, 1.5, 32))
    engine.weights_changed()
    run(engine)
    assert request.ids[2:] == greedy_by_full_forward(changed, tok, request.tokens[:42], len(request.ids) - 2)


def test_penalties_and_biases_reach_the_reply_of_their_request_alone(model, tok):
    """Greedy replies: one is forbidden its own tokens, one is biased to a token, one is as ever."""
    engine = Engine(model, tok, max_rows=3)
    plain = engine.submit(prompt_of(5), GREEDY, tools=False)
    fresh = engine.submit(
        prompt_of(5), Sampling(temperature=0, max_tokens=12, logit_bias=dict.fromkeys(range(100), -100)), tools=False
    )
    biased = engine.submit(prompt_of(5), Sampling(temperature=0, max_tokens=12, logit_bias={77: 100}), tools=False)
    run(engine)
    assert plain.ids == greedy_by_full_forward(model, tok, prompt_of(5), 40)
    assert min(fresh.ids) >= 100
    assert biased.ids == [77] * 12
    engine = Engine(model, tok)
    varied = engine.submit(prompt_of(5), Sampling(temperature=0, max_tokens=12, frequency_penalty=2.0, presence_penalty=2.0,
                                                  logit_bias={77: 10, 78: 10, 79: 10}), tools=False)  # fmt: skip
    run(engine)
    assert set(varied.ids[:3]) == {77, 78, 79}
