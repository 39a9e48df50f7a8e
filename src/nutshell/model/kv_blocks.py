"""The KV cache's memory is cut into blocks of tokens (arXiv 2309.06180)."""

BLOCK = 16  # tokens: native code scores as many keys at once


def blocks_of(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK)
