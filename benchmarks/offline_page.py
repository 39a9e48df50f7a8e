"""The exported page in headless Chromium: are its greedy answers those of our model, and how fast is it?

python benchmarks/offline_page.py runs/demo
"""

import argparse
import os
import re
import shutil
import statistics
import tempfile
from pathlib import Path

import torch
from playwright.sync_api import sync_playwright

from nutshell.checkpoint import find, load
from nutshell.infer.engine import Engine
from nutshell.infer.sampling import Sampling
from nutshell.interop.html import export_html
from nutshell.interop.quantize import int8_rows
from nutshell.tokenizer.chat import render_prompt

QUESTIONS = [
    "What is the capital of France?", "How many times does the letter e appear in cheese?", "What is 47 plus 85?",
    "Tell me a short story.", "Who are you?", "What is 12 times 13?", "Spell the word apple.", "What color is the sky?",
    "How many legs does a spider have?", "What is the opposite of hot?", "What is 1000 minus 387?", "Hello!",
    "Tell me about dogs.", "What do bees make?", "How many letters are in banana?", "What is the plural of mouse?",
    "What is 144 divided by 12?", "Where do fish live?", "What is the capital of Japan?", "Write a story about a cat.",
]  # fmt: skip
MAX_TOKENS = 128
ASK = """async ([weights, asks]) => {
  const worker = new Worker(URL.createObjectURL(new Blob([document.getElementById("worker").textContent])));
  const answers = [];
  const done = new Promise((resolve, failed) => {
    worker.onmessage = ({ data }) => {
      if (data.failed || data.error) failed(data.failed || data.error);
      if (data.finish) answers.push(data);
      if (answers.length === asks.length) resolve(answers);
    };
  });
  worker.postMessage({ ...JSON.parse(document.getElementById("model").textContent), weights });
  for (const [index, text] of asks.entries()) {
    const messages = [{ role: "user", parts: [{ type: "text", text }] }];
    worker.postMessage({ ask: index + 1, messages, options: { temperature: 0, topK: 0, maxTokens: %d, seed: 0 } });
  }
  return done;
}"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    folder = find(parser.parse_args().model)
    model, tok = load(folder)
    prompts = [render_prompt([{"role": "user", "content": text}], tok) for text in QUESTIONS]
    sampling = Sampling(temperature=0, max_tokens=MAX_TOKENS)

    def replies(engine: str) -> list[list[int]]:
        return [reply.ids for [reply] in Engine(model, tok, engine=engine).sample(prompts, 1, sampling)]

    expected = {"fp32, torch": replies("torch"), "int8, native": replies("native-int8")}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not name.endswith(("value_gate.weight", "smear_gate.weight")):
                scale, steps = int8_rows(weight.numpy())
                weight.copy_(torch.from_numpy(scale * steps))
    expected["the same int8 weights, torch"] = replies("torch")
    with tempfile.TemporaryDirectory() as scratch, sync_playwright() as api:
        file = export_html(folder, Path(scratch) / "page.html")
        path = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
        page = api.chromium.launch(executable_path=path, args=["--headless", "--no-sandbox", "--disable-gpu"]).new_page()
        page.goto(file.as_uri())
        weights = re.search(r'id="weights">([^<]*)<', file.read_text(encoding="utf-8"))
        assert weights
        answers = page.evaluate(ASK % MAX_TOKENS, [weights[1], QUESTIONS])
        parameters = sum(p.numel() for p in model.parameters())
        print(f"{file.stat().st_size / 1e6:.2f} MB, {file.stat().st_size / parameters:.2f} bytes a parameter")
    for name, ids in expected.items():
        print(f"{sum(a['tokens'] == b for a, b in zip(answers, ids, strict=True))} of {len(ids)} answers equal: {name}")
    rates = sorted((len(a["tokens"]) - 1) / a["seconds"] for a in answers if len(a["tokens"]) > 1)
    print(f"tokens/s of an answer: median {statistics.median(rates):.0f}, {rates[0]:.0f} to {rates[-1]:.0f}")


if __name__ == "__main__":
    main()
