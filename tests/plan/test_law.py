"""The fit finds the coefficients that made the points, and a plan says how far it can be trusted."""

import json
import math
from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nutshell.plan.law import Law, Point, expectation, fit, law_record, load_law, text_fingerprint
from nutshell.plan.recipe import Recipe

SIZES, HORIZONS = (3e5, 9e5, 2e6, 4e6), (5e5, 1e6, 2e6, 4e6)


def points(E, share, alpha, beta, noise=0.0, seed=0):
    """Points of a law whose two terms make up `share` and `1 - share` of 1 bit at the middle of the sweep."""
    A, B = share * 1.2e6**alpha, (1 - share) * 1.4e6**beta
    random = np.random.default_rng(seed)
    found = [
        Point(parameters=N, tokens=D, flops=6 * N * D, bpb=(E + A / N**alpha + B / D**beta) * (1 + noise * random.normal()))
        for N in SIZES
        for D in HORIZONS
    ]
    return found, A, B


LAWS = {"E": st.floats(0.3, 1.2), "share": st.floats(0.3, 0.7), "alpha": st.floats(0.2, 0.8), "beta": st.floats(0.2, 0.8)}


FEWER = settings(max_examples=settings.default.max_examples // 4)  # each fits a law, which takes a twentieth of a second


@FEWER
@given(**LAWS)
def test_without_noise_the_coefficients_come_back(E, share, alpha, beta):
    swept, A, B = points(E, share, alpha, beta)
    law = fit(swept, text="x", vocab_size=4096)
    assert (law.E, law.alpha, law.beta) == pytest.approx((E, alpha, beta), abs=0.02)
    assert (math.log(law.A), math.log(law.B)) == pytest.approx((math.log(A), math.log(B)), abs=0.3)
    assert law.error < 1e-4


@FEWER
@given(**LAWS, seed=st.integers(0, 10**6))
def test_with_noise_it_still_foretells_twice_the_sweep(E, share, alpha, beta, seed):
    swept, A, B = points(E, share, alpha, beta, noise=0.002, seed=seed)
    law = fit(swept, text="x", vocab_size=4096)
    N, D = 2 * SIZES[-1], 2 * HORIZONS[-1]
    assert law.bpb(N, D) == pytest.approx(E + A / N**alpha + B / D**beta, rel=0.04)
    assert law.error < 0.006
    assert min(law.E, law.A, law.B) >= 0


def test_one_spoilt_run_does_not_spoil_the_fit():
    swept, _, _ = points(0.8, 0.5, 0.4, 0.3)
    swept[5] = replace(swept[5], bpb=2 * swept[5].bpb)
    law = fit(swept, text="x", vocab_size=4096)
    others = [p for i, p in enumerate(swept) if i != 5]
    assert all(law.bpb(p.parameters, p.tokens) == pytest.approx(p.bpb, rel=0.01) for p in others)


def test_few_points_take_the_published_exponents():
    swept = [p for p in points(0.8, 0.5, 0.34, 0.28)[0] if p.parameters in SIZES[:2] and p.tokens in HORIZONS[:2]]
    law = fit(swept, text="x", vocab_size=4096)
    assert (law.alpha, law.beta) == (0.34, 0.28)
    assert pytest.approx(0.8, abs=1e-3) == law.E
    for too_few in (swept[:1], swept[:2], [swept[0], swept[2]]):
        with pytest.raises(ValueError, match="do not make a fit"):
            fit(too_few, text="x", vocab_size=4096)


# ---- what a plan says ----------------------------------------------------------------------------------------------

LAW = Law(
    fingerprint="abc",
    E=0.8,
    A=40,
    alpha=0.34,
    B=60,
    beta=0.3,
    text="text",
    vocab_size=4096,
    points=9,
    error=0.01,
    largest_flops=1e14,
)


def expected(**changes):
    asked = {"parameters": 1e6, "tokens": 1e6, "flops": 6e12, "text": "abc", "vocab_size": 4096} | changes
    return expectation(LAW, **asked)


def test_what_is_expected_names_its_text_and_its_limits():
    bpb, note = expected()
    assert bpb == pytest.approx(0.8 + 40 / 1e6**0.34 + 60 / 1e6**0.3)
    assert note == "on text, by a fit to 9 runs (error 1.0%)"
    assert "extrapolated" not in expected(flops=9e14)[1]
    assert "extrapolated: 2e+02 times the compute" in expected(flops=2e16)[1]
    assert expected(flops=2e19) == (
        None, "2e+05 times the compute of the largest run in the fit is too far for it; sweep there: nutshell scaling"
    )  # fmt: skip
    assert "its vocabulary has 4096 tokens" in expected(vocab_size=32768)[1]
    assert expectation(None, parameters=1, tokens=1, flops=1, text="", vocab_size=1)[0] is None


def test_f14_another_text_gets_no_number():
    """A folder of the same name is another text; and a text that is not known yet, or a fit of no recorded text, is no match."""
    assert expected(text="text") == (None, "the fit is of another text, text; nutshell scaling measures this one")
    assert expected(text="")[0] is None
    bare = replace(LAW, fingerprint="")
    assert expectation(bare, parameters=1e6, tokens=1e6, flops=6e12, text="", vocab_size=4096)[0] is None
    primer = [text_fingerprint(Recipe(primer_characters=n, seed=s)) for n, s in ((20_000, 1), (30_000, 1), (20_000, 2))]
    shards = [text_fingerprint(Recipe(data=d), {"files": {"a": {"sha256": h}}}) for d, h in (("x/text", "1"), ("y/text", "2"))]
    assert len({*primer, *shards}) == 5
    assert text_fingerprint(Recipe(data="y/other"), {"files": {"b": {"sha256": "1"}}}) == shards[0]
    assert text_fingerprint(Recipe(data="text")) == ""


def test_a_fit_is_saved_and_read_back(tmp_path):
    file = tmp_path / "scaling.json"
    file.write_text(json.dumps(law_record(LAW, [])))
    assert load_law(file) == LAW
    for text in ("", "{}", "[]", '{"law": {"E": 1}}', json.dumps({"law": asdict(LAW) | {"F": 1}})):
        file.write_text(text)
        with pytest.raises(ValueError, match=r"scaling\.json"):
            load_law(file)
    with pytest.raises(FileNotFoundError, match="nutshell scaling"):
        load_law(tmp_path / "nowhere.json")
