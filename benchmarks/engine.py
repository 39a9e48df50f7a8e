"""How fast the engine decodes on CPU, beside nanochat's engine and transformers' `generate` with the same weights.

    python benchmarks/engine.py                                  ours: native in each dtype, and torch
    python benchmarks/engine.py --nanochat FOLDER --rounds 5     with a checkout of nanochat
    python benchmarks/engine.py --depth 12 --width 768           larger than the caches: bound by memory

Everything runs in one process on --threads, by turns: the median of the rounds counts. A line has tokens/s, the CPU time of a
token (which other programs on the machine disturb less), and how many times the first peer's tokens/s and 1 / CPU time that is.
The read ceiling is the best rate at which torch sums as many bytes as a step reads of weights.
"""

import argparse
import statistics
import sys
import tempfile
import time
import types
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from random import Random

import torch

from nutshell.checkpoint import save_model_folder
from nutshell.infer.blocks import Chunk
from nutshell.infer.cache_memory import bytes_per_token
from nutshell.infer.engine import Engine
from nutshell.infer.native import NativeRunner, describe, dtype_of
from nutshell.infer.sampling import Sampling
from nutshell.infer.torch_runner import TorchRunner
from nutshell.interop.gguf import export_gguf
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig
from nutshell.model.config_file import config_to_json
from nutshell.report.provenance import processor
from nutshell.tokenizer import Tokenizer

KINDS = {"float32": (torch.float32, "native"), "bfloat16": (torch.bfloat16, "native"), "int8": (torch.bfloat16, "native-int8")}
Work = Callable[[], int]
"""Does something and returns how many tokens it made."""


def random_model(options: argparse.Namespace, **changes):
    heads = options.width // 64
    shape = {"depth": options.depth, "width": options.width, "heads": heads, "kv_heads": heads, "head_dim": 64}
    config = ModelConfig(vocab_size=options.vocab_size, context=2048, window_pattern="SL", bos_id=256, **shape)
    model = build_model(config if not changes else ModelConfig(**{**config.to_dict(), **changes}))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 2:
                parameter.normal_(0, parameter.size(1) ** -0.5, generator=generator)
    return model.eval().requires_grad_(False)


def random_tokenizer(vocab_size: int) -> Tokenizer:
    """Of words that mean nothing: only the number of ids matters."""
    random = Random(0)
    words = ["".join(random.choices("abcdefghijklmnop", k=random.randint(2, 9))) for _ in range(40_000)]
    return Tokenizer.train([" ".join(words)], vocab_size=vocab_size, pattern="qwen2")  # which llama.cpp has a name for


def nanochat_engine(folder: str, model):
    """nanochat's engine around its model with our weights."""
    sys.path.insert(0, folder)
    for name in ("rustbpe", "tiktoken", "wandb"):  # its tokenizer's, which is not used here
        sys.modules.setdefault(name, types.ModuleType(name))
    from nanochat.engine import Engine as Theirs  # type: ignore[import-not-found]
    from nanochat.gpt import GPT, GPTConfig  # type: ignore[import-not-found]

    c = model.config
    theirs = GPT(
        GPTConfig(sequence_len=c.context, vocab_size=c.vocab_size, n_layer=c.depth, n_head=c.heads, n_kv_head=c.kv_heads,
                  n_embd=c.width, window_pattern=c.window_pattern)
    )  # fmt: skip
    theirs.init_weights()
    names = {"embedding": "transformer.wte", "blocks": "transformer.h", "attention": "attn", "q": "c_q", "k": "c_k", "v": "c_v",
             "out": "c_proj", "value_gate": "ve_gate", "up": "c_fc", "down": "c_proj", "value_embeddings": "value_embeds",
             "residual_scale": "resid_lambdas", "embedding_scale": "x0_lambdas", "backout": "backout_lambda"}  # fmt: skip
    weights = {".".join(names.get(part, part) for part in key.split(".")): value for key, value in model.state_dict().items()}
    theirs.load_state_dict(weights)
    tokens = types.SimpleNamespace(encode_special=lambda name: -1, get_bos_token_id=lambda: -1)  # ids that no model says
    return Theirs(theirs.eval(), tokens)


def transformers_model(model):
    """transformers' Qwen3 with the weights of our `portable`."""
    from transformers import Qwen3Config, Qwen3ForCausalLM

    theirs = Qwen3ForCausalLM(Qwen3Config(**config_to_json(model.config, None)))
    theirs.load_state_dict(model.state_dict())
    return theirs.eval()


def llama_cpp_works(model, tok: Tokenizer, prompt: list[int], count: int, threads: int) -> dict[str, Work]:
    """llama.cpp on the exported weights; nothing where llama-cpp-python is not installed."""
    try:
        import llama_cpp
    except ImportError:
        print("llama-cpp-python is not installed")
        return {}
    works: dict[str, Work] = {}
    with tempfile.TemporaryDirectory() as folder:
        save_model_folder(Path(folder) / "model", model, tok)
        for kind in ("f16", "q8_0"):
            file = export_gguf(Path(folder) / "model", Path(folder) / kind, kind)
            peer = llama_cpp.Llama(
                str(file), n_ctx=512, n_threads=threads, n_threads_batch=threads, verbose=False, use_mmap=False
            )

            def generate(peer=peer) -> int:
                peer.reset()
                return len(list(islice(peer.generate(prompt, temp=0, repeat_penalty=1.0), count)))

            works[f"llama.cpp ({kind})"] = generate
    return works


def measure(title: str, works: dict[str, Work], rounds: int) -> None:
    """By turns, once before the clock counts; prints a line for each."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            wall, cpu = time.perf_counter(), time.process_time()
            tokens = work()
            wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
            if number:
                found[name].append((tokens / wall, cpu / tokens))
    print(f"\n{title}")
    first: tuple[float, float] | None = None
    for name, pairs in found.items():
        rate, cpu = (statistics.median(values) for values in zip(*pairs, strict=True))
        first = first or (rate, cpu)
        print(
            f"  {name:34} {rate:8.0f} tokens/s {cpu * 1e6:8.0f} us CPU a token   {rate / first[0]:5.1f}x {first[1] / cpu:5.1f}x"
        )


def read_rate(size: int, seconds: float = 0.5) -> float:
    """Bytes a second: the best sum of so many bytes within `seconds`."""
    numbers, best, start = torch.ones(size // 4), 0.0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        began = time.perf_counter()
        numbers.sum()
        best = max(best, size / (time.perf_counter() - began))
    return best


def bandwidth(models: dict, rounds: int) -> None:
    """A step of one row: bytes of weights over time, and over the read ceiling."""
    print("\nweights read by a step of one row")
    for kind, model in models.items():
        runner = NativeRunner(model, model.config.vocab_size, 1, 256, int8=kind == "int8")
        size, rates, ceilings = runner.decoder.bytes, [], []
        for _ in range(rounds):
            ceilings.append(read_rate(size))
            times = []
            for token in range(100):
                began = time.perf_counter()
                runner.forward([Chunk([token], token, token - 1, range(16))])
                times.append(time.perf_counter() - began)
            rates.append(size / sorted(times)[10])
        print(f"  {kind:9} {size / 1e6:6.1f} MB  {max(rates) / 1e9:5.1f} GB/s of {max(ceilings) / 1e9:5.1f}: "
              f"{max(rates) / max(ceilings):4.0%}")  # fmt: skip


def second_turn(models: dict, tok: Tokenizer, rounds: int) -> None:
    """A conversation of 1,400 tokens and a question of 40 more: time to the first token of the reply."""
    print("\nfirst token of a second turn behind 1,400 tokens")
    random = Random(1)
    for kind, model in models.items():
        engine = Engine(model, tok, 2, engine=KINDS[kind][1])
        times: dict[str, list[float]] = {"without": [], "with": []}
        for _ in range(rounds):
            history = random.choices(range(300, 8000), k=1400)
            for name, known in (("without", random.choices(range(300, 8000), k=1400)), ("with", history)):
                engine.sample([known], 1, Sampling(max_tokens=8, temperature=0), tools=False)
                began = time.perf_counter()
                engine.sample([[*history, *range(300, 340)]], 1, Sampling(max_tokens=1, temperature=0), tools=False)
                times[name].append(time.perf_counter() - began)
        without, known = (statistics.median(values) for values in times.values())
        size = bytes_per_token(model.config, dtype_of(model))
        print(f"  {kind:9} {1000 * without:7.1f} ms read anew, {1000 * known:6.1f} ms from the prefix cache: "
              f"{without / known:5.1f}x ({size:,} bytes of cache a token)")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=4)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--vocab-size", type=int, default=8192)
    parser.add_argument("--tokens", type=int, default=100, help="of a reply")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--nanochat", default="", help="folder of a checkout")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{processor()}, {options.threads} thread{'s' * (options.threads > 1)}, depth {options.depth}, width {options.width}")
    plain, tok = random_model(options), random_tokenizer(options.vocab_size)
    models = {kind: plain.set_precision(dtype).for_inference() for kind, (dtype, _) in KINDS.items()}
    prompt, count = list(range(300, 316)), options.tokens
    prompts = [[token + row for token in prompt] for row in range(32)]
    greedy = Sampling(temperature=0, max_tokens=count)
    drawn = Sampling(temperature=0.8, top_k=50, max_tokens=count, seed=1)

    def ours(engine: Engine, texts: list[list[int]], sampling: Sampling) -> int:
        return sum(len(replies[0].ids) for replies in engine.sample(texts, 1, sampling, tools=False))

    engines = {f"ours, {describe(models[kind], kind == 'int8')}": Engine(models[kind], tok, 32, engine=name)
               for kind, (_, name) in KINDS.items()}  # fmt: skip
    engines["ours, torch (float32)"] = Engine(models["float32"], tok, 32, engine="torch")
    theirs = nanochat_engine(options.nanochat, plain) if options.nanochat else None

    def nanochat(texts: list[list[int]], **sampling) -> int:
        return sum(len(list(theirs.generate(text, max_tokens=count, **sampling))) for text in texts)

    for title, texts, sampling, settings in (
        ("one stream, greedy", [prompt], greedy, {"temperature": 0.0}),
        ("one stream, top-k 50, temperature 0.8", [prompt], drawn, {"temperature": 0.8, "top_k": 50}),
        ("32 prompts, greedy", prompts, greedy, {"temperature": 0.0}),
    ):
        works: dict[str, Work] = {}
        if theirs:  # one prompt at a time is all it does; a few of them tell the rate
            works["nanochat (float32)"] = lambda texts=texts, settings=settings: nanochat(texts[:2], **settings)
        for name, engine in engines.items():
            works[name] = lambda engine=engine, texts=texts, sampling=sampling: ours(engine, texts, sampling)
        measure(title, works, options.rounds)

    portable = random_model(options, architecture="portable", mlp_width=8 * options.width // 3 // 16 * 16, window_pattern="L")
    works = {}
    try:
        other, ids = transformers_model(portable), torch.tensor([prompt])
        works["transformers (float32)"] = lambda: (
            other.generate(ids, max_new_tokens=count, min_new_tokens=count, do_sample=False, pad_token_id=0).size(1) - len(prompt)
        )
    except ImportError:
        print("transformers is not installed")
    works |= llama_cpp_works(portable, tok, prompt, count, options.threads)
    for dtype, name in KINDS.values():
        engine = Engine(portable.set_precision(dtype).for_inference(), tok, 1, engine=name)
        works[f"ours, {engine.computes}"] = lambda engine=engine: ours(engine, [prompt], greedy)
    measure("portable, one stream, greedy", works, options.rounds)

    for length in (128, 1024):
        works, text = {}, [5 + i % 200 for i in range(length)]
        for kind, model in models.items():
            for runner in ([TorchRunner(model, options.vocab_size, 1, 2048)] if kind != "int8" else []) + [
                NativeRunner(model, options.vocab_size, 1, 2048, int8=kind == "int8")
            ]:

                def feed(runner=runner, text=text) -> int:  # fmt: skip
                    with torch.inference_mode():
                        runner.forward([Chunk(text, 0, -1, range(64))])
                    return len(text)

                works[f"{type(runner).__name__} ({kind})"] = feed
        measure(f"a prompt of {length} tokens", works, options.rounds)
    second_turn(models, tok, options.rounds)
    bandwidth(models, options.rounds)


if __name__ == "__main__":
    main()
