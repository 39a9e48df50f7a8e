"""Settings of the verbs that make many runs: `nutshell scaling` and `nutshell ablate`. No torch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from nutshell.config import check_ranges
from nutshell.plan.recipe import Recipe, quantity


@dataclass(frozen=True, kw_only=True)
class Sweep(Recipe):
    """Settings of `nutshell scaling`, besides those of a run."""

    out: str = "runs/scaling"
    """Folder of the sweep; going on in it continues the sweep."""
    depths: tuple[int, ...] = (1, 2, 3)
    """Depths to train."""
    horizons: tuple[str, ...] = ()
    """Training tokens to train each depth on, such as 500k 1M 2M (default: what a budget allows, its half and its quarter)."""
    refresh: bool = True
    """Make the fit the one that `nutshell plan` uses (the one before is kept in the sweep's folder)."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for value in (*self.depths, *(quantity(h, "horizons") for h in self.horizons)):
            if value < 1:
                raise ValueError(f"depths {self.depths} and horizons {self.horizons}: accepted are numbers of at least 1.")
        if len(set(self.depths)) < 2 or (self.horizons and len({quantity(h) for h in self.horizons}) < 2):
            raise ValueError("a fit needs two depths and two horizons, such as --depths 1 2 3 --horizons 500k 1M 2M.")
        if self.depth or self.params:
            raise ValueError("a sweep takes its depths from --depths; leave out --depth and --params.")
        if not self.budget and not self.horizons:
            raise ValueError("neither budget nor horizons are given. Use --budget 20min, or --horizons 500k 1M 2M.")


@dataclass(frozen=True, kw_only=True)
class Ablation(Recipe):
    """Settings of `nutshell ablate`, besides those of a run."""

    out: str = "runs/ablate"
    """Folder of the ablation; the same command in it goes on."""
    vary: tuple[str, ...] = ()
    """A setting and its values, such as optimizer.matrix_lr=0.01,0.02 or smear=false. The first is the baseline; a single one is
    compared with the recipe's own. Several --vary make a grid."""
    each: bool = False
    """Vary one setting at a time, the others staying at their first value."""
    seeds: int = 3
    """Runs of each variant. A seed draws weights and the order of the data."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(self, {"seeds": (1, math.inf)})
