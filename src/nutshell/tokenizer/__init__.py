"""Text to token ids and back, and conversations to ids with a loss mask."""

from nutshell.tokenizer.chat import CHAT_TEMPLATE, parse_messages, render, render_prompt
from nutshell.tokenizer.tokenizer import SPECIAL_TOKENS, StreamDecoder, Tokenizer

__all__ = [
    "CHAT_TEMPLATE",
    "SPECIAL_TOKENS",
    "StreamDecoder",
    "Tokenizer",
    "parse_messages",
    "render",
    "render_prompt",
]
