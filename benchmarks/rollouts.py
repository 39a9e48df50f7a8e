"""Rollouts of RL: all questions in one batch, beside an engine that takes one question after another, with the same weights.

    python benchmarks/rollouts.py --nanochat FOLDER                           random weights: every answer has --tokens tokens
    python benchmarks/rollouts.py --nanochat FOLDER --model runs/demo/sft     the problems of RL, answers that end by themselves
    python benchmarks/rollouts.py --model runs/demo/sft                       beside our own engine in torch

The peer is nanochat's engine as its scripts/chat_rl.py calls it: the samples of a question are one batch, the questions follow
each other. Both draw at a temperature of 1 from the whole vocabulary, on --threads, by turns in one process. A line has the
median of the rounds in seconds, tokens and answers a second, and the median ratio of tokens a second to the peer's of the same
round.
"""

import argparse
import statistics
import time
import types
from collections.abc import Callable
from typing import Any

import torch
from engine import nanochat_engine, random_model, random_tokenizer

from nutshell import checkpoint
from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling
from nutshell.report.provenance import processor
from nutshell.tasks.practice import open_practice

Work = Callable[[], int]
"""Answers everything; returns how many tokens that were."""


def peer(options: argparse.Namespace, model: Any, tok: Any, prompts: list[list[int]]) -> Work:
    """nanochat, one question after another."""
    theirs = nanochat_engine(options.nanochat, model)
    if options.model:
        theirs.tokenizer = types.SimpleNamespace(
            encode_special=tok.special_id, get_bos_token_id=lambda: tok.bos_id, encode=tok.encode, decode=tok.decode
        )

    def work() -> int:
        tokens = 0
        for prompt in prompts:
            rows, _ = theirs.generate_batch(
                prompt, num_samples=options.samples, max_tokens=options.tokens, temperature=1.0, top_k=None, seed=1
            )
            tokens += sum(len(row) - len(prompt) for row in rows)
        return tokens

    return work


def ours(
    options: argparse.Namespace, model: Any, tok: Any, prompts: list[list[int]], dtype: torch.dtype, compute: str = "auto"
) -> Work:
    """One batch, as train/rollout.py draws it."""
    model = model.set_precision(dtype).for_inference()
    context = min(model.config.context, max(map(len, prompts)) + options.tokens)
    sampling = Sampling(max_tokens=options.tokens, temperature=1.0, seed=1)

    def work() -> int:
        engine = Engine(model, tok, max_rows=len(prompts) * options.samples, context=context, engine=compute)
        return sum(len(reply.ids) for replies in engine.sample(prompts, options.samples, sampling) for reply in replies)

    return work


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nanochat", help="folder of a checkout")
    parser.add_argument("--model", default="", help="a model of `speed`, in place of random weights")
    parser.add_argument("--questions", type=int, default=32)
    parser.add_argument("--samples", type=int, default=8, help="of each question")
    parser.add_argument("--tokens", type=int, default=96, help="of the longest answer")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    model: Any
    if options.model:
        model, tok = checkpoint.load(options.model)
        problems = open_practice(()).draw(0, options.questions)
        prompts = [fit_conversation(item.messages, tok, model.config.context, options.tokens).ids for _, item, _ in problems]
    else:
        model, tok = random_model(options), random_tokenizer(options.vocab_size)
        prompts = [[300 + (7 * row + place) % 1000 for place in range(24)] for row in range(options.questions)]
    works = {"nanochat, one question at a time": peer(options, model, tok, prompts)} if options.nanochat else {}
    works |= {
        "ours in torch, one batch (float32)": ours(options, model, tok, prompts, torch.float32, "torch"),
        "ours in torch, one batch (bfloat16)": ours(options, model, tok, prompts, torch.bfloat16, "torch"),
        "ours, one batch (float32)": ours(options, model, tok, prompts, torch.float32),
        "ours, one batch (bfloat16)": ours(options, model, tok, prompts, torch.bfloat16),
    }
    answers = options.questions * options.samples
    c = model.config
    print(f"{processor()}, {options.threads} threads; depth {c.depth}, width {c.width}, vocabulary {c.vocab_size}; "
          f"{options.questions} questions x {options.samples} answers of at most {options.tokens} tokens")  # fmt: skip
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in works}
    for number in range(options.rounds + 1):  # the first does not count
        for name, work in works.items():
            start = time.perf_counter()
            tokens = work()
            if number:
                found[name].append((time.perf_counter() - start, tokens))
    first = next(iter(found.values()))
    for name, pairs in found.items():
        seconds = statistics.median(s for s, _ in pairs)
        rate = statistics.median(tokens / s for s, tokens in pairs)
        # Tokens a second against the peer's of the same round, since answers that are drawn differ in length.
        ratio = statistics.median((tokens / s) / (t / p) for (s, tokens), (p, t) in zip(pairs, first, strict=True))
        print(f"  {name:34} {seconds:7.2f} s {rate:8.0f} tokens/s {answers / seconds:7.1f} answers/s   {ratio:5.1f}x "
              f"({pairs[-1][1]:,} tokens)")  # fmt: skip


if __name__ == "__main__":
    main()
