"""Weights in fewer bits: ggml's q8_0 and q4_0, in blocks of 32 that share a scale, and int8 with one scale a row.

q8_0 and q4_0 equal ggml's reference bit for bit (ggml-quants.c, `quantize_row_q8_0_ref` and `quantize_row_q4_0_ref`).
"""

from __future__ import annotations

import numpy as np

BLOCK = 32


def q8_0(weights: np.ndarray) -> np.ndarray:
    """fp32 (..., 32 n) to bytes: for each block an fp16 scale d and 32 signed bytes q, weight = d q. 8.5 bits a weight."""
    blocks = weights.reshape(-1, BLOCK)
    scale = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * _inverse(scale)
    rounded = np.trunc(steps + np.copysign(np.float32(0.5), steps)).astype(np.int8)  # halves away from zero, as C's roundf
    return np.concatenate([_fp16_bytes(scale), rounded.view(np.uint8)], axis=1)


def q4_0(weights: np.ndarray) -> np.ndarray:
    """fp32 (..., 32 n) to bytes: for each block an fp16 scale d and 32 numbers q of 4 bits, weight = d (q - 8). 4.5 bits a
    weight.

    q - 8 goes from -8 to 7, one step further down than up, so the largest weight in size becomes -8, whatever its sign.
    Byte i holds number i in its low half and number i + 16 in its high half.
    """
    blocks = weights.reshape(-1, BLOCK)
    largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1)[:, None], axis=1)
    scale = largest / np.float32(-8)
    numbers = np.minimum((blocks * _inverse(scale) + np.float32(8.5)).astype(np.uint8), 15)
    return np.concatenate([_fp16_bytes(scale), numbers[:, :16] | numbers[:, 16:] << 4], axis=1)


def int8_rows(weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """fp32 (rows, columns) to a scale d for each row (rows, 1) and signed bytes q (rows, columns), weight = d q.

    Native decoding in int8 does the same (`rust/src/decode/matrix.rs`).
    """
    scale = np.abs(weights).max(axis=1, keepdims=True) / np.float32(127)
    return scale, np.rint(weights * _inverse(scale)).astype(np.int8)


def _inverse(scale: np.ndarray) -> np.ndarray:
    """1 / scale, or 0 for a block of zeros, or of numbers so small that the inverse overflows fp32."""
    return np.divide(1, scale, out=np.zeros_like(scale), where=np.abs(scale) > 1e-37)


def _fp16_bytes(scale: np.ndarray) -> np.ndarray:
    return scale.astype("<f2").view(np.uint8)
