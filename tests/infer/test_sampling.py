"""Choosing tokens: settings are checked, rows are independent, distributions are right."""

import math
from collections import Counter
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.infer.sampling import Draw, Sampling, adjusted, draw, log_probabilities
from nutshell.infer.torch_sampling import GREEDY, candidates_of, draw_in_torch


@pytest.mark.parametrize(
    ("field", "value", "accepted"),
    [
        ("max_tokens", 0, "1 or more"),
        ("max_tokens", 2.5, "1 or more"),
        ("temperature", math.nan, "a finite number"),
        ("temperature", math.inf, "a finite number"),
        ("temperature", -0.1, "a finite number"),
        ("temperature", "hot", "a finite number"),
        ("top_k", -1, r"0 \(off\) or more"),
        ("top_p", 0, "above 0"),
        ("top_p", 1.01, "above 0"),
        ("top_p", math.nan, "above 0"),
        ("min_p", 1.5, r"0 \(off\) to 1"),
        ("repetition_penalty", 0, "above 0"),
        ("presence_penalty", 3, "-2 to 2"),
        ("frequency_penalty", math.nan, "-2 to 2"),
        ("logit_bias", {3: 101}, "numbers of -100 to 100 by token id"),
        ("logit_bias", {"3": 1}, "numbers of -100 to 100 by token id"),
        ("seed", 1.5, "a whole number"),
        ("stop", ("",), "texts of at least one character"),
        ("stop", (3,), "texts of at least one character"),
        ("stop", 3, "texts of at least one character"),
        ("top_logprobs", -1, "None"),
        ("top_logprobs", 1000, r"None \(off\) or 0 to 100"),
    ],
)
def test_bad_settings_are_named(field, value, accepted):
    with pytest.raises(ValueError, match=rf"{field} is .*accepted: {accepted}"):
        Sampling(**{field: value})


def test_stop_accepts_what_apis_send():
    assert Sampling(stop="END").stop == ("END",)
    assert Sampling(stop=["a", "b"]).stop == ("a", "b")
    assert Sampling(stop=None).stop == ()


def sample(logits, settings, randoms):
    """Next tokens of logits (B, V), each row with settings and random numbers of its own."""
    hows = [setting.draw(random) for setting, random in zip(settings, randoms, strict=True)]
    tokens, drawn = logits.argmax(-1).tolist(), [row for row, how in enumerate(hows) if how]
    if drawn:
        for row, token in zip(drawn, draw(logits[drawn], [how for how in hows if how]), strict=True):
            tokens[row] = token
    return tokens


def draws(logits, count=4000, **options):
    """Tokens that `count` rows of the same logits draw, each with its own generator."""
    options = Sampling(seed=1, **options)
    rows = logits.expand(count, -1).numpy()
    return Counter(sample(rows, [options] * count, [options.random(i) for i in range(count)]))


def test_temperature_zero_is_argmax_and_uses_no_randomness():
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(0))
    random = Random(1)
    state = random.getstate()
    assert sample(logits.numpy(), [Sampling(temperature=0)] * 5, [random] * 5) == logits.argmax(-1).tolist()
    assert random.getstate() == state


def test_draws_follow_the_distribution():
    logits = torch.tensor([0.0, 1.0, 2.0, -math.inf, 0.5])
    expected = (logits / 0.7).softmax(-1)
    counts = draws(logits, temperature=0.7)
    assert counts[3] == 0
    for token, probability in enumerate(expected.tolist()):
        assert abs(counts[token] / 4000 - probability) < 4 * math.sqrt(0.25 / 4000)


def test_samples_of_one_prompt_are_independent_from_the_first_token():
    """nanochat issue 201: all samples of a prompt shared their first token."""
    logits = torch.zeros(1, 1000)
    options = Sampling(seed=3)
    first = sample(logits.expand(64, -1).numpy(), [options] * 64, [options.random(0, i) for i in range(64)])
    assert len(set(first)) > 50


def test_more_tokens_than_there_are_is_all():
    logits = torch.randn(50, generator=torch.Generator().manual_seed(1))
    assert draws(logits, top_k=10**400) == draws(logits, top_k=50)


def test_top_k_zero_is_off():
    """nanochat issue 466: top_k=0 crashed or cut everything."""
    assert len(draws(torch.zeros(20), top_k=0)) == 20
    assert set(draws(torch.arange(20.0) / 10, top_k=3)) == {17, 18, 19}
    assert set(draws(torch.zeros(4), top_k=100)) == {0, 1, 2, 3}


def test_top_p_keeps_the_nucleus():
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    assert set(draws(logits, top_p=0.4)) == {0}
    assert set(draws(logits, top_p=0.7)) == {0, 1}
    assert set(draws(logits, top_p=0.9)) == {0, 1, 2}
    assert set(draws(logits, top_p=1e-9)) == {0}
    assert set(draws(logits, top_p=0.9, top_k=2)) == {0, 1}


def test_tiny_temperature_does_not_overflow():
    logits = torch.tensor([1.0, 15.0, -15.0])
    for temperature in (1e-300, 1e-30, 1e-4):
        assert set(draws(logits, count=50, temperature=temperature)) == {1}


options = st.builds(
    Sampling,
    temperature=st.sampled_from([0.0, 0.5, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 5]),
    top_p=st.sampled_from([1.0, 0.9, 0.3]),
    seed=st.integers(-5, 5),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(options, min_size=1, max_size=8), st.integers(0, 1000))
def test_a_row_draws_the_same_alone_and_in_any_batch(rows, seed):
    logits = torch.randn(len(rows), 40, generator=torch.Generator().manual_seed(seed)).numpy()
    together = sample(logits, rows, [row.random() for row in rows])
    alone = [token for i, row in enumerate(rows) for token in sample(logits[i : i + 1], [row], [row.random()])]
    assert together == alone


def test_seeds_repeat_and_differ():
    assert Sampling(seed=5).random().random() == Sampling(seed=5).random().random()
    assert Sampling(seed=5).random().random() != Sampling(seed=-5).random().random()
    assert Sampling(seed=5).random(1, 2).random() != Sampling(seed=5).random(12).random()
    assert Sampling().random().random() != Sampling().random().random()


def test_greedy_log_probability_is_exactly_the_top_one():
    logits = torch.randn(8, 100, generator=torch.Generator().manual_seed(0))
    logits[3, 10] = logits[3, 20] = 9.0  # a tie
    chosen = logits.argmax(-1)
    own, tops = log_probabilities(logits.numpy(), chosen.tolist(), 3)
    for row, (logprob, top) in enumerate(zip(own, tops, strict=True)):
        assert top[0] == (int(chosen[row]), logprob)
        assert len(top) == 3
        assert logprob == pytest.approx(float(logits[row].double().log_softmax(-1)[chosen[row]]), abs=1e-5)
    own, tops = log_probabilities(logits.numpy(), [20] * 8, 2)
    assert tops[3][0][0] == 20
    assert log_probabilities(logits.numpy(), chosen.tolist(), 0)[1] == [[]] * 8


OPTIONS = st.builds(
    Sampling,
    temperature=st.sampled_from([0.05, 0.7, 1.0, 3.0]),
    top_k=st.just(0) | st.integers(0, 60),
    top_p=st.sampled_from([1.0, 1.0, 1.0, 0.9, 0.5, 1e-9]),
    min_p=st.sampled_from([0.0, 0.0, 0.0, 0.02, 0.3, 1.0]),
)


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10_000), vocabulary=st.integers(1, 200), options=st.lists(OPTIONS, min_size=4, max_size=4))
def test_native_draws_are_those_of_torch(seed, vocabulary, options):
    """Each row by its own settings, on CPU in native code and on an accelerator in torch."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(4, vocabulary, generator=generator)
    logits[1, torch.rand(vocabulary, generator=generator) < 0.3] = -math.inf
    logits[1, 0] = 1.0
    uniforms = [1e-6, 0.999, *torch.rand(2, generator=generator, dtype=torch.float64).tolist()]
    rows = torch.zeros(4, vocabulary + 7)[:, :vocabulary].copy_(logits)  # as they lie in the engine's buffer
    hows = [Draw(o.temperature, o.top_k, o.top_p, o.min_p, uniform) for o, uniform in zip(options, uniforms, strict=True)]
    expected = draw(rows.numpy(), hows)
    logits = logits.clamp(min=-1e30)  # as impossible, and a number: a model that says infinity is damaged
    for row in range(5):  # and beside a greedy one
        some = [None if place == row else how for place, how in enumerate(hows)]
        settings = torch.tensor([how or GREEDY for how in some], dtype=torch.float64)
        found = draw_in_torch(logits, settings, candidates_of(some, vocabulary)).tolist()
        assert found == [int(logits[place].argmax()) if place == row else token for place, token in enumerate(expected)]
    logits[2, -1] = math.nan
    logits[3, 0] = math.inf
    for some in (hows, [None] * 4):
        settings = torch.tensor([how or GREEDY for how in some], dtype=torch.float64)
        assert draw_in_torch(logits, settings, candidates_of(some, vocabulary)).tolist()[2:] == [-1, -1]


def test_min_p_leaves_out_what_is_unlikely_beside_the_likeliest():
    logits = torch.tensor([0.5, 0.3, 0.1, 0.06, 0.04]).log()
    assert set(draws(logits, min_p=0.15)) == {0, 1, 2}
    assert set(draws(logits, min_p=1.0)) == {0}


def test_penalties_and_biases_are_what_their_papers_say():
    logits = torch.tensor([2.0, -2.0, 1.0, 0.5, 0.0])
    prompt, reply = [0, 1], [1, 3, 3]

    def after(**options):
        return adjusted(logits.numpy(), Sampling(**options), prompt, reply).tolist()

    assert after(repetition_penalty=2.0) == [1.0, -4.0, 1.0, 0.25, 0.0]
    assert after(presence_penalty=0.5) == [2.0, -2.5, 1.0, 0.0, 0.0]
    assert after(frequency_penalty=0.5) == [2.0, -2.5, 1.0, -0.5, 0.0]
    assert after(logit_bias={4: 3.0, 99: 1.0}) == [2.0, -2.0, 1.0, 0.5, 3.0]
    assert logits.tolist() == [2.0, -2.0, 1.0, 0.5, 0.0]
    assert np.isfinite(after(repetition_penalty=1e-300)).all()
    assert not Sampling().adjusts
