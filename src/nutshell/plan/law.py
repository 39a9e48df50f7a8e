"""The scaling law behind a plan's expected bits per byte: bpb(N, D) = E + A / N^alpha + B / D^beta (arXiv 2203.15556).

N counts matrix parameters (blocks and head), D training tokens. `nutshell scaling` fits it to runs; it holds for the text, the
tokenizer and the recipe of those runs, and near their sizes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from nutshell.config import from_dict
from nutshell.plan.recipe import PRIMER, Recipe

PACKAGED = Path(__file__).with_name("scaling.json")
PUBLISHED_ALPHA, PUBLISHED_BETA = 0.34, 0.28  # arXiv 2203.15556, for exponents that a sweep is too small to tell
FEWEST_VALUES = 3  # of N, or of D, before its exponent is fitted
HUBER = 0.01  # relative error from which a point pulls linearly only
FAR = 10.0  # times the largest swept compute: beyond it a plan says "extrapolated"
TOO_FAR = 1000.0  # and beyond this it gives no number


@dataclass(frozen=True, kw_only=True)
class Point:
    """One finished run of a sweep."""

    parameters: float  # matrix parameters (N)
    tokens: float  # training tokens (D)
    flops: float  # of the whole training
    bpb: float


@dataclass(frozen=True, kw_only=True)
class Law:
    """Coefficients, and what they were fitted to."""

    E: float
    A: float
    alpha: float
    B: float
    beta: float
    text: str  # what the text whose validation part was scored is called
    fingerprint: str = ""  # Which text that is: `text_fingerprint`. Empty: not recorded, so no text counts as it.
    vocab_size: int
    points: int
    error: float  # root mean square of the relative errors at the points
    largest_flops: float  # most compute among the points

    def bpb(self, parameters: float, tokens: float) -> float:
        return self.E + self.A / parameters**self.alpha + self.B / tokens**self.beta


def load_law(path: Path | str = "") -> Law | None:
    """The law of a scaling.json, by default the packaged one; None where none is packaged. ValueError for a damaged file."""
    file = Path(path or PACKAGED)
    if not file.is_file():
        if not path:
            return None
        raise FileNotFoundError(f"--scaling {file} does not exist: give the scaling.json that `nutshell scaling` wrote.")
    try:
        return from_dict(Law, json.loads(file.read_text(encoding="utf-8"))["law"], str(file))
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is no scaling.json ({type(error).__name__}: {error}). Write one: nutshell scaling") from None


def fit(points: list[Point], *, text: str, vocab_size: int, fingerprint: str = "") -> Law:
    """The law of least Huber loss of the relative errors; E, A and B are not negative.

    For given exponents the law is linear, so only alpha and beta are searched: a grid, refined five times around its best. An
    exponent is taken from the literature where fewer than three values of its variable were swept. ValueError where the points
    cannot tell the three coefficients (fewer than three, or all of one N or one D).
    """
    import numpy as np

    N, D, y = (np.array([getattr(p, name) for p in points], dtype=float) for name in ("parameters", "tokens", "bpb"))
    if len(points) < 3 or len(set(N)) < 2 or len(set(D)) < 2 or not (y > 0).all():
        raise ValueError(
            f"{len(points)} points of {len(set(N))} sizes and {len(set(D))} horizons do not make a fit; "
            "accepted: at least 3 points with a bpb above 0, of two sizes and two horizons."
        )
    n, d = N / np.exp(np.log(N).mean()), D / np.exp(np.log(D).mean())  # around 1, so that the equations are well conditioned
    free_alpha, free_beta = (len(set(np.log(values).round(1))) >= FEWEST_VALUES for values in (N, D))
    low, high = np.array([0.05, 0.05]), np.array([1.5, 1.5])
    best = np.array([PUBLISHED_ALPHA, PUBLISHED_BETA])
    coefficients = np.zeros(3)
    for _ in range(6):
        alphas = np.linspace(low[0], high[0], 21) if free_alpha else best[:1]
        betas = np.linspace(low[1], high[1], 21) if free_beta else best[1:]
        grid = np.array(list(itertools.product(alphas, betas)))  # (G, 2)
        losses, solutions = _solve(grid, n, d, y)
        at = int(losses.argmin())
        best, coefficients = grid[at], solutions[at]
        step = (high - low) / 10
        low, high = np.maximum(0.02, best - step), best + step
    E, A, B = (float(c) for c in coefficients)
    alpha, beta = (float(b) for b in best)
    A, B = A * float((N / n)[0]) ** alpha, B * float((D / d)[0]) ** beta
    errors = (E + A / N**alpha + B / D**beta) / y - 1
    return Law(
        E=E, A=A, alpha=alpha, B=B, beta=beta, text=text, fingerprint=fingerprint, vocab_size=vocab_size, points=len(points),
        error=float((errors**2).mean() ** 0.5), largest_flops=max(p.flops for p in points),
    )  # fmt: skip


def _solve(grid, n, d, y):
    """For each (alpha, beta) of grid (G, 2): the Huber loss (G,) and the coefficients (G, 3) that are best and not negative.

    Huber by reweighting; the sign by trying every set of coefficients that may be zero.
    """
    import numpy as np

    columns = np.stack([np.ones((len(grid), len(n))), n ** -grid[:, :1], d ** -grid[:, 1:]], axis=2) / y[:, None]  # (G, P, 3)
    best_loss, best = np.full(len(grid), np.inf), np.zeros((len(grid), 3))
    for chosen in ([0, 1, 2], [0, 1], [0, 2], [1, 2], [0], [1], [2]):
        X = columns[:, :, chosen]
        weight = np.ones(X.shape[:2])
        for _ in range(8):
            gram = np.einsum("gpi,gp,gpj->gij", X, weight, X) + 1e-12 * np.eye(len(chosen))
            solution = np.linalg.solve(gram, np.einsum("gpi,gp->gi", X, weight)[..., None])[..., 0]
            error = np.abs(np.einsum("gpi,gi->gp", X, solution) - 1)
            weight = np.minimum(1.0, HUBER / np.maximum(error, 1e-12))
        loss = np.where(error <= HUBER, error**2 / 2, HUBER * (error - HUBER / 2)).sum(axis=1)
        better = (solution >= 0).all(axis=1) & (loss < best_loss)
        best_loss[better] = loss[better]
        best[better] = 0
        best[np.ix_(better, chosen)] = solution[better]
    return best_loss, best


def law_record(law: Law, points: list[Point]) -> dict:
    """What scaling.json holds."""
    return {"law": asdict(law), "points": [asdict(p) for p in points]}


def text_fingerprint(recipe: Recipe, manifest: dict | None = None) -> str:
    """Which text a run trains on: the primer by what it is made from, shards by their hashes; empty where not known yet."""
    if recipe.data == PRIMER and not recipe.stages.pretrain.mixture:
        return f"primer, seed {recipe.seed}, {recipe.primer_characters} characters"
    hashes = sorted(file["sha256"] for file in manifest["files"].values()) if manifest else []
    return hashlib.sha256("".join(hashes).encode()).hexdigest() if hashes else ""


def expectation(law: Law | None, *, parameters: float, tokens: float, flops: float, text: str, vocab_size: int):
    """(expected bits per byte or None, what has to be said with it)."""
    if law is None:
        return None, "no scaling fit at hand; make one with: nutshell scaling"
    if not text or text != law.fingerprint:
        return None, f"the fit is of another text, {law.text}; nutshell scaling measures this one"
    reach = flops / law.largest_flops
    if reach > TOO_FAR:
        note = f"{reach:.1g} times the compute of the largest run in the fit is too far for it; sweep there: nutshell scaling"
        return None, note
    notes = [f"on {law.text}, by a fit to {law.points} runs (error {law.error:.1%})"]
    if reach > FAR:
        notes.append(f"extrapolated: {reach:.1g} times the compute of the largest of them")
    if vocab_size != law.vocab_size:
        notes.append(f"its vocabulary has {law.vocab_size} tokens")
    return law.bpb(parameters, tokens), "; ".join(notes)
