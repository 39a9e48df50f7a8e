"""CORE items a second beside nanochat's own evaluator, and MMLU with 5 shots beside its own unshared path.

    python benchmarks/eval.py --data FOLDER --nanochat FOLDER [--items 8] [--questions 48] [--depth 4] [--vocab-size 32768]

Both evaluators get the same weights in fp32, nanochat in its own model code, the same tokenizer (trained on the tasks'
text; nanochat's goes through tiktoken) and the first `items` of each of the 22 tasks; examples are drawn from all rows.
Texts to answers is timed, in turns task by task. Answers must agree on every item. FOLDER holds core/ and mmlu/
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

import tiktoken
import torch

from nutshell.eval.chat import fit
from nutshell.eval.core import evaluate_core
from nutshell.eval.score import score
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.report.provenance import processor
from nutshell.tasks import Core, load_task
from nutshell.tasks.core import CoreTask
from nutshell.tokenizer import Tokenizer

ROUNDS = 3
clock = time.perf_counter


@dataclass(frozen=True, kw_only=True)
class Beginning(Core):
    """The first items of each task, with examples from all rows."""

    first: int

    @property
    def items(self) -> list[tuple[CoreTask, int]]:
        return [(task, index) for task, index in super().items if index < self.first]


def make_model(depth: int, tok: Tokenizer) -> GPT:
    """Random weights, sharp enough that choices differ."""
    width = 64 * depth
    config = ModelConfig(
        vocab_size=tok.vocab_size, depth=depth, width=width, heads=width // 64, kv_heads=width // 64, head_dim=64, context=2048,
        bos_id=tok.bos_id,
    )  # fmt: skip
    torch.manual_seed(0)
    model = GPT(config)
    for name, p in model.named_parameters():
        if p.dim() == 2 and ("lm_head" in name or "out" in name or "down" in name):
            torch.nn.init.normal_(p, std=p.size(1) ** -0.5)
    torch.nn.init.constant_(model.smear_lambda, 0.3)
    return model.for_inference()


def their_model(model: GPT) -> Any:
    """The same weights in nanochat's model."""
    from nanochat import gpt  # type: ignore[import-not-found]

    c = model.config
    heads = {"n_head": c.heads, "n_kv_head": c.kv_heads}
    config = gpt.GPTConfig(c.context, c.vocab_size, n_layer=c.depth, n_embd=c.width, **heads)
    theirs = gpt.GPT(config, pad_vocab_size_to=1)
    theirs.init_weights()
    theirs.window_sizes = [(window - 1, 0) for window in c.windows()]  # it counts the keys before a token, we that one too
    names = {
        "embedding": "transformer.wte", "blocks": "transformer.h", "value_embeddings": "value_embeds", "attention": "attn",
        "q": "c_q", "k": "c_k", "v": "c_v", "out": "c_proj", "value_gate": "ve_gate", "up": "c_fc", "down": "c_proj",
        "residual_scale": "resid_lambdas", "embedding_scale": "x0_lambdas", "backout": "backout_lambda",
    }  # fmt: skip
    state = {".".join(names.get(part, part) for part in name.split(".")): p for name, p in model.state_dict().items()}
    theirs.load_state_dict(state)
    return theirs.float().eval()


class TheirTokenizer:
    """What nanochat's evaluator calls of its tokenizer, which is this around tiktoken."""

    def __init__(self, tok: Tokenizer) -> None:
        lengths = tok.token_byte_lengths()
        ranks = {tok.token_bytes(id): id for id in range(tok.vocab_size) if lengths[id]}
        self.encoding = tiktoken.Encoding("ours", pat_str=tok.pattern, mergeable_ranks=ranks, special_tokens=tok.special_tokens)
        self.bos = tok.bos_id

    def get_bos_token_id(self) -> int:
        return self.bos

    def __call__(self, texts: list[str], prepend: int) -> list[list[int]]:
        return [[prepend, *ids] for ids in self.encoding.encode_ordinary_batch(texts, num_threads=2)]


def compare_core(core: Core, model: GPT, tok: Tokenizer, items: int) -> float:
    """Prints a line a task; how many times as fast ours is in all."""
    from nanochat.core_eval import evaluate_example  # type: ignore[import-not-found]

    theirs, their_tok = their_model(model), TheirTokenizer(tok)
    ids = torch.randint(0, tok.vocab_size, (1, 700))  # beyond the short window
    torch.testing.assert_close(theirs(ids), model(ids), rtol=0, atol=1e-3)  # the same model
    ours_seconds = their_seconds = 0.0
    count = different = 0
    print(f"{'':34} nanochat      ours   (items/s)")
    for task in core.tasks:
        start = clock()
        result = evaluate_core(Beginning(tasks=[task], first=items), model, tok)
        middle = clock()
        meta = {"task_type": task.type, "num_fewshot": task.shots, "continuation_delimiter": task.delimiter}
        n = len(result["records"])
        right = [evaluate_example(i, theirs, their_tok, task.rows, torch.device("cpu"), meta) for i in range(n)]
        end = clock()
        different += sum(bool(a) != b.right for a, b in zip(right, result["records"], strict=True))
        ours, their = middle - start, end - middle
        print(f"{task.label:34} {n / their:8.2f}  {n / ours:8.2f}   {their / ours:5.1f}x")
        ours_seconds, their_seconds, count = ours_seconds + ours, their_seconds + their, count + n
    ratio = their_seconds / ours_seconds
    print(f"{'all task by task':34} {count / their_seconds:8.2f}  {count / ours_seconds:8.2f}   {ratio:5.1f}x")
    start = clock()
    evaluate_core(Beginning(tasks=core.tasks, first=items), model, tok)
    seconds = clock() - start
    print(f"{'all together':34} {count / their_seconds:8.2f}  {count / seconds:8.2f}   {their_seconds / seconds:5.1f}x")
    print(f"{different} of {count} answers differ")
    return their_seconds / seconds


class Unshared:
    """The model as `score` sees one that is not ours: each pair is read by itself."""

    def __init__(self, model: GPT) -> None:
        self.model, self.config, self.parameters, self.head = model, model.config, model.parameters, model.head

    def hidden_states(self, ids: torch.Tensor) -> torch.Tensor:
        return self.model.hidden_states(ids, self.model.rows_context(ids))


def compare_mmlu(task: Any, model: GPT, tok: Tokenizer) -> float:
    pairs = [(fit(item, tok, 2048, 1).ids, tok.encode(letter)) for item in task.items for letter in item.options]
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for _ in range(ROUNDS):
        for share in (True, False):
            start = clock()
            scores = score(model if share else Unshared(model), pairs)
            seconds[share].append(clock() - start)
            assert all(math.isfinite(each.logprob) for each in scores)
    shared, alone = (len(task.items) / statistics.median(seconds[share]) for share in (True, False))
    print(f"MMLU, 5 shots, {len(task.items)} questions: {alone:.2f} unshared, {shared:.2f} shared, {shared / alone:.1f}x")
    return shared / alone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--nanochat", required=True, help="a checkout of github.com/karpathy/nanochat")
    parser.add_argument("--items", type=int, default=8, help="of each CORE task")
    parser.add_argument("--questions", type=int, default=48, help="of MMLU")
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--vocab-size", type=int, default=32768, help="nanochat's default")
    parser.add_argument("--processor-time", action="store_true", help="for a busy machine; with OMP_NUM_THREADS=1")
    options = parser.parse_args()
    sys.path.insert(0, options.nanochat)
    if options.processor_time:
        global clock
        clock = time.process_time
    core = load_task("core", data_folder=options.data)
    assert isinstance(core, Core)
    texts = [text for task in core.tasks for index in range(0, min(200, len(task.rows)), 10) for text in task.prompts(index)]
    tok = Tokenizer.train(texts, vocab_size=options.vocab_size)
    model = make_model(options.depth, tok)
    what = f"depth {options.depth}, vocabulary {tok.vocab_size:,}, fp32, {'processor' if options.processor_time else 'wall'} time"
    print(f"{processor()}, {torch.get_num_threads()} threads, {what}")
    with torch.inference_mode():
        compare_core(core, model, tok, options.items)
    mmlu = load_task("mmlu", data_folder=options.data, shots=5)
    assert not isinstance(mmlu, Core)
    mmlu.items[options.questions :] = []
    compare_mmlu(mmlu, model, tok)


if __name__ == "__main__":
    main()
