"""The primer: a small schoolbook written by a generator, nothing downloaded.

`documents` are its pages for pretraining, `conversations` are for midtraining and fine-tuning, `rl_problems` for RL, and
`held_out` gives test problems with numbers, words and phrasings that none of the former contain.

    from nutshell.data import primer
    pages = list(primer.documents(seed=0, characters=1_000_000))
    chats = list(primer.conversations(seed=0, count=1000))
"""

from nutshell.data.primer.conversations import conversations
from nutshell.data.primer.documents import documents
from nutshell.data.primer.held_out import RL_SHARES, held_out, rl_problems
from nutshell.data.primer.identity import Identity
from nutshell.data.primer.problem import Problem

__all__ = ["RL_SHARES", "Identity", "Problem", "conversations", "documents", "held_out", "rl_problems"]
