"""Texts that are nearly alike, found by MinHash (Broder 1997) with bands (Leskovec, Rajaraman, Ullman: Mining of Massive
Datasets, chapter 3).

The similarity of two texts is that of their sets of five-word sequences: shared over all of them (Jaccard). The probability that
two sets have the same smallest hash equals their similarity, so the share of equal smallest hashes, over many hash functions,
estimates it. Only texts that agree in a whole band of these hashes are compared.
"""

from __future__ import annotations

import re
import zlib
from collections import defaultdict
from collections.abc import Iterator

import numpy as np

HASHES = 128
WORDS = 5
_WORD = re.compile(r"\w+")


class NearDuplicates:
    """Remembers every text that was new, in 512 bytes and its bands.

    seen = NearDuplicates(0.8)
    kept = [text for text in texts if seen.is_new(text)]
    """

    def __init__(self, threshold: float) -> None:
        if not 0.5 <= threshold <= 1:
            raise ValueError(
                f"--near-duplicates is {threshold}; accepted: 0.5 to 1, the similarity from which a text is left out."
            )
        self.threshold = threshold
        self.rows = rows_of_a_band(threshold)
        draw = np.random.default_rng(0)
        self.factors = draw.integers(1, 2**63, (HASHES, 1), dtype=np.uint64) | np.uint64(1)
        self.offsets = draw.integers(0, 2**63, (HASHES, 1), dtype=np.uint64)
        self.signatures: list[np.ndarray] = []
        self.bands: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def is_new(self, text: str) -> bool:
        """Whether no earlier text is as similar as the threshold. If so, this one is remembered."""
        signature = self.signature(text)
        bands = [(n, signature[n : n + self.rows].tobytes()) for n in range(0, HASHES - self.rows + 1, self.rows)]
        for other in {number for band in bands for number in self.bands.get(band, ())}:
            if np.mean(self.signatures[other] == signature) >= self.threshold:
                return False
        for band in bands:
            self.bands[band].append(len(self.signatures))
        self.signatures.append(signature)
        return True

    def signature(self, text: str) -> np.ndarray:
        """The smallest hash of all word sequences under each hash function, (HASHES,) uint32."""
        hashes = np.fromiter((zlib.crc32(part.encode("utf-8", "surrogatepass")) for part in sequences(text)), dtype=np.uint64)
        smallest = np.full(HASHES, 2**32 - 1, dtype=np.uint64)
        for first in range(0, len(hashes), 4096):  # 4 MB at once
            mixed = (hashes[first : first + 4096] * self.factors + self.offsets) >> np.uint64(32)  # multiply-shift, mod 2^64
            smallest = np.minimum(smallest, mixed.min(axis=1))
        return smallest.astype(np.uint32)


def sequences(text: str) -> Iterator[str]:
    """Each run of five words, or of five characters in a text with few spaces, such as Chinese."""
    words = _WORD.findall(text.lower())
    if len(words) * 12 < len(text):
        words = [character for character in text.lower() if not character.isspace()]
    return (" ".join(words[n : n + WORDS]) for n in range(max(1, len(words) - WORDS + 1)))


def rows_of_a_band(threshold: float) -> int:
    """Hashes in a band: as many as possible, while of pairs at the threshold at most one in 1,000 agrees in no band."""
    fits = [rows for rows in range(1, HASHES) if (1 - threshold**rows) ** (HASHES // rows) < 0.001]
    return max(fits, default=1) if threshold < 1 else HASHES
