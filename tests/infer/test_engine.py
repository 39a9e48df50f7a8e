"""The engine against plain forward passes: scheduling must never change what is generated."""

import copy
import threading

import pytest
import torch

from nutshell.infer import scheduler
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
        for piece in engine.step():
            tokens.setdefault(piece.request, []).append(piece)
    return tokens


def ids_of(pieces) -> list[int]:
    return [piece.token_id for piece in pieces if piece.token_id >= 0]


def test_decoding_token_by_token_equals_the_full_forward_past_the_window(model, tok):
    """nanochat issue 456. The window is 16 tokens, the row grows to 45."""
    prompt = prompt_of(5)
    engine = Engine(model, tok)
    request = engine.submit(prompt, GREEDY, tools=False)
    pieces = run(engine)[request]
    assert ids_of(pieces) == greedy_by_full_forward(model, tok, prompt, 40)
    assert pieces[-1].finish in ("stop", "length")
    assert [piece.finish for piece in pieces[:-1]] == [None] * (len(pieces) - 1)


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
            for piece in engine.step():
                tokens.setdefault(piece.request, []).append(piece)
    for request, pieces in run(engine).items():
        tokens.setdefault(request, []).extend(pieces)
    for request, prompt in zip(requests, prompts, strict=True):
        assert ids_of(tokens[request]) == greedy_by_full_forward(model, tok, prompt, 40)


def test_a_seed_gives_the_same_text_whatever_else_is_in_the_batch(model, tok):
    options = Sampling(seed=11, temperature=0.9, top_p=0.95, max_tokens=20)
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
    pieces = run(engine)[request]
    assert len(pieces) <= 4
    assert ids_of(pieces) == greedy_by_full_forward(model, tok, prompt_of(60), 4)
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
        pieces = run(engine)[request]
        assert pieces[-1].token_id == end
        assert pieces[-1].finish == "stop"
        assert "".join(piece.text for piece in pieces) == "cat"


@pytest.mark.parametrize(
    ("prompt", "message"),
    [([], "no tokens"), ([1] * 64, "64 tokens; accepted: fewer than the context of 64"), ([1, 99999], "token 99999")],
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
    assert all(piece.logprob is None and not piece.top for piece in tokens[plain])
    assert all(piece.logprob < 0 and not piece.top for piece in tokens[own])
    ids = list(prompt)
    for piece in tokens[request]:
        expected = model(torch.tensor([ids]))[0, -1].log_softmax(-1)
        assert piece.top[0] == (piece.token_id, piece.logprob)
        assert len(piece.top) == 3
        assert piece.logprob == pytest.approx(float(expected[piece.token_id]), abs=1e-4)
        ids.append(piece.token_id)


def test_cancelling_frees_the_row_and_leaves_the_others_alone(model, tok):
    engine = Engine(model, tok, max_rows=2)
    prompts = [prompt_of(5, seed) for seed in range(4)]
    requests = [engine.submit(prompt, GREEDY, tools=False) for prompt in prompts]
    first = engine.step()
    assert {piece.request for piece in first} == set(requests[:2])
    engine.cancel(requests[0])
    engine.cancel(requests[3])  # still waiting
    engine.cancel(requests[3])
    second = engine.step()
    ended = [piece for piece in second if piece.finish == "cancelled"]
    assert {piece.request for piece in ended} == {requests[0], requests[3]}
    assert all(piece.token_id == -1 and piece.text == "" for piece in ended)
    assert requests[2] in {piece.request for piece in second}  # took the free row at once
    tokens = {request: [p for p in first + second if p.request is request] for request in requests[1:3]}
    for request, pieces in run(engine).items():
        tokens[request] += pieces
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
        patch.setattr(engine.allocate().runner, "forward", lambda rows, tokens: 1 / 0)
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
            for piece in engine.step():
                tokens.setdefault(piece.request, []).append(piece)

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
    assert all(sum(piece.finish is not None for piece in pieces) == 1 for pieces in tokens.values())


def test_f27_a_reply_that_is_closed_early_leaves_nothing_behind(model, tok):
    """F27: the request stayed in the cache, and `busy` stayed True."""
    engine = Engine(model, tok, max_rows=1)
    reply = engine.chat([{"role": "user", "content": "Hi"}], max_tokens=20, temperature=0)
    next(reply)
    assert engine.busy
    reply.close()
    assert not engine.busy
    assert engine.generate(["Hi"], max_tokens=3, temperature=0)


def test_f27_a_failed_step_is_everybodys_error(model, tok, monkeypatch):
    """F27: another thread's `sample` returned cut replies without a word."""
    engine = Engine(model, tok, max_rows=2)
    monkeypatch.setattr(
        engine.allocate().runner, "forward", lambda rows, tokens: (_ for _ in ()).throw(RuntimeError("a broken step"))
    )
    waiting = engine.submit([1, 2, 3])
    with pytest.raises(RuntimeError, match="a broken step"):
        engine.sample([[1, 2, 3]], 1)
    assert isinstance(waiting.error, RuntimeError)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_f27_logits_that_are_not_numbers_end_their_request_alone(model, tok, bad):
    """A token whose embedding is damaged; the request beside it does not see that token."""
    damaged = copy.deepcopy(model)
    damaged.embedding.weight[7, 3] = bad
    engine = Engine(damaged, tok, max_rows=2)
    fine, broken = engine.submit([5, 6], GREEDY, tools=False), engine.submit([5, 7], GREEDY, tools=False)
    pieces = run(engine)
    assert ids_of(pieces[fine]) == greedy_by_full_forward(damaged, tok, [5, 6], 40)
    assert [(piece.token_id, piece.finish) for piece in pieces[broken]] == [(-1, "cancelled")]
    assert "NaN or infinite" in str(broken.error)
    with pytest.raises(RuntimeError, match="NaN or infinite"):
        engine.sample([[5, 7]])


def test_f27_choices_share_one_prefill(model, tok, monkeypatch):
    engine = Engine(model, tok, max_rows=4)
    fed = []
    runner = engine.allocate().runner
    forward = runner.forward
    monkeypatch.setattr(runner, "forward", lambda rows, tokens: fed.extend(map(len, tokens)) or forward(rows, tokens))
    requests = engine.submit_choices([5] * 20, [Sampling(max_tokens=1, seed=n) for n in range(4)])
    while engine.busy:
        engine.step()
    assert fed.count(20) == 1
    assert all(len(request.ids) == 1 for request in requests)


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
