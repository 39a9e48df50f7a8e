"""The page that answers by itself: its code against ours in Python, and the page in headless Chromium, opened from disk."""

import json
import random
import re
import shutil

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from small_models import TEXTS, save_folder

from nutshell.checkpoint import load, load_model
from nutshell.infer import calculator
from nutshell.infer.conversation import fit_conversation
from nutshell.infer.engine import Engine
from nutshell.infer.request import Request, Vocabulary
from nutshell.infer.sampling import Sampling
from nutshell.interop import html
from nutshell.interop.quantize import int8_rows
from nutshell.tokenizer import Tokenizer

pytestmark = pytest.mark.browser

KNOWN = st.characters(exclude_categories=["Cs", "Cn"])  # a newer table may have a category for what this Python does not know
TEXT = st.one_of(
    st.text(KNOWN, max_size=40),
    st.text(st.sampled_from("aB1 \t\n\r'!sſlée漢\u0301½\u00a0/\u0085\ufeff\u2028"), max_size=40),
    st.lists(st.sampled_from(["the", " cat", "lower", "\n\n", " 123", "IT'S", "'ſ", "!?\n", "<|bos|>"])).map("".join),
)
WORDS = ["lower", "lowest", "cat", "mat", "café", "日本語", "12", "345", "naïve", "the", "sat", "on", "and", "is", "it", "so"]

# Starts the page's own worker with the page's own data, and gives the last message of each answer.
ASK = """async ([weights, asks]) => {
  const worker = new Worker(URL.createObjectURL(new Blob([document.getElementById("worker").textContent])));
  worker.postMessage({ ...JSON.parse(document.getElementById("model").textContent), weights });
  const answers = [];
  return new Promise((done, failed) => {
    worker.onerror = ({ message }) => failed(message);
    worker.onmessage = ({ data }) => {
      if (data.failed || data.error) failed(data.failed || data.error);
      if (data.finish) answers.push(data);
      if (answers.length === asks.length) done(answers);
    };
    asks.forEach(([messages, options], index) => worker.postMessage({ ask: index + 1, messages, options }));
  });
}"""


@pytest.fixture(scope="module")
def scripts(browser):
    """A blank page that has the worker's modules."""
    page = browser.new_page()
    page.add_script_tag(content=html.bundle(html.WORKER_MODULES[:-1]))
    return page


@pytest.fixture(scope="module")
def exported(tmp_path_factory, browser):
    """exported(folder) -> the page of a model, made once, opened from disk; `.requests` is all that it asked for."""
    opened = {}

    def open_page(folder):
        if folder not in opened:
            file = html.export_html(folder, tmp_path_factory.mktemp("page") / "model.html")
            page = opened[folder] = browser.new_page()
            page.problems, page.requests, page.file = [], [], file
            page.on("pageerror", lambda error: page.problems.append(str(error)))
            page.on("console", lambda line: page.problems.append(line.text))
            page.on("request", lambda request: page.requests.append(request.url))
            page.goto(file.as_uri())
            page.wait_for_selector("html[data-ready]")
        return opened[folder]

    return open_page


def user(*texts):
    """Messages as the page keeps them: questions and answers in turn."""
    roles = ["user", "assistant"] * len(texts)
    return [{"role": role, "parts": [{"type": "text", "text": text}]} for role, text in zip(roles, texts, strict=False)]


def ours(messages):
    """The same as our engine takes them."""
    return [{"role": m["role"], "content": m["parts"]} for m in messages]


def in_int8(model):
    """The model with the weights that a page has."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and not name.endswith(("value_gate.weight", "smear_gate.weight")):
                scale, steps = int8_rows(weight.numpy())
                weight.copy_(torch.from_numpy(scale * steps))
    return model


@pytest.mark.parametrize("architecture", ["speed", "portable"])
def test_greedy_answers_are_those_of_our_model_with_these_weights(request, exported, architecture):
    folder = request.getfixturevalue(architecture)
    model, tok = load(folder)
    draws = random.Random(1)
    texts = [" ".join(draws.choices(WORDS, k=draws.randint(1, 40))) for _ in range(20)]
    chats = [user(*texts[i : i + 1 + 2 * (i % 2)]) for i in range(18)] + [user("the cat " * 150), user(*texts[:19])]
    prompts = [fit_conversation(ours(chat), tok, model.config.context, 40) for chat in chats]
    assert [prompt.dropped > 0 for prompt in prompts[-2:]] == [False, True]
    expected = Engine(in_int8(model), tok, engine="torch").sample(
        [prompt.ids for prompt in prompts], 1, Sampling(temperature=0, max_tokens=40)
    )
    page = exported(folder)
    weights = re.search(r'id="weights">([^<]*)<', page.file.read_text(encoding="utf-8"))[1]
    options = {"temperature": 0, "topK": 50, "maxTokens": 40, "seed": 0}
    answers = page.evaluate(ASK, [weights, [[chat, options] for chat in chats]])
    for answer, [reply], prompt in zip(answers, expected, prompts, strict=True):
        assert (answer["tokens"], answer["finish"], answer["dropped"]) == (reply.ids, reply.finish, prompt.dropped)
        assert "".join(part["text"] for part in answer["parts"] if part["type"] == "text") == reply.text
    assert page.problems == []


@settings(max_examples=40)
@given(st.lists(TEXT, min_size=10, max_size=30), st.sampled_from([*html.PATTERNS, "char"]), st.randoms())
def test_the_tokenizer_is_ours(scripts, texts, pattern, draws):
    made = {"char": lambda: Tokenizer.train_characters(TEXTS)}.get(pattern, lambda: Tokenizer.train(TEXTS, 340, pattern))
    tok = made()
    ids = [draws.choices(range(tok.vocab_size), k=draws.randint(0, 9)) for _ in texts]
    found = scripts.evaluate(
        """([content, pattern, texts, ids]) => {
          const tokenizer = new module_tokenizer.Tokenizer(JSON.parse(content), pattern);
          return [texts.map((text) => tokenizer.encode(text)), ids.map((some) => tokenizer.decode(some))];
        }""",
        [tok._json, html.javascript_pattern(tok), texts, ids],
    )
    assert found == [[tok.encode(text) for text in texts], [tok.decode(some) for some in ids]]


NUMBER = st.one_of(st.integers(0, 99), st.integers(0, 10**70), st.decimals(0, 99, places=3)).map(str)
SUM = st.recursive(
    st.one_of(NUMBER, st.sampled_from(["1,234,567", "12,34", ".5", "5.", "", "1 2", "x"])),
    lambda inner: st.one_of(
        st.tuples(inner, st.sampled_from(["+", "-", "*", "/", "//", "%", "**", " - ", "- -", "\t*\u00a0"]), inner).map("".join),
        inner.map("({})".format),
        inner.map("-{}".format),
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(st.lists(st.one_of(SUM, st.text("0123456789+-*/%(). ,", max_size=20)), min_size=20, max_size=60))
def test_the_calculator_is_ours_but_for_roots(scripts, expressions):
    def whole_powers(base, exponent, power=calculator._power):
        if exponent.denominator != 1:
            raise calculator._Invalid("a root")
        return power(base, exponent)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calculator, "_power", whole_powers)
        expected = [calculator.calculate(expression) for expression in expressions]
    assert scripts.evaluate("(all) => all.map(module_calculator.calculate)", expressions) == expected


def test_what_the_calculator_bounds(scripts):
    cases = [
        "0**0",
        "0**-1",
        "(-1)**(9**99)",
        "(-1)**-3",
        "2**-2",
        "2**16384",
        "1/3",
        "-2/3",
        "1/10**21",
        "0.00000000012345678905",
        "0.5**30",
        "2.5",
        "10**64",
        "7//-2",
        "-7%3",
        "7%-3",
        "-(1/3)//1",
        "1/0",
        "1%0",
        "+3",
        "2**3**2",
        "-2**2",
        "1.005**365",
        "12345678905/10**10/10**3",
    ]
    cases += ["", " ", "(" * 40 + "1" + ")" * 40, "-" * 41 + "1", "1" * 257]
    expected = [calculator.calculate(case) for case in cases]
    assert scripts.evaluate("(all) => all.map(module_calculator.calculate)", cases) == expected
    assert expected.count(None) > 5


@settings(max_examples=40)
@given(st.data())
def test_tool_calls_ends_and_limits_are_our_requests(scripts, data):
    """A model that says what the script wants: the reply that becomes of it, token by token."""
    tok = Tokenizer.train(TEXTS, 320)
    tools = [tok.special_id(f"<|{name}|>") for name in ("python_start", "python_end", "output_start", "output_end")]
    token = st.one_of(st.sampled_from([*tools, *tools, *tok.encode("1+2*3")]), st.integers(0, tok.vocab_size - 1))
    script = data.draw(st.lists(token, min_size=30, max_size=30))
    limit = data.draw(st.integers(1, 30))
    request = Request(Vocabulary.of(tok), [tok.bos_id], Sampling(max_tokens=limit), limit)
    said = []
    for id in script:
        said += request.accept(id)
        if request.finish:
            break
    found = scripts.evaluate(
        """([content, pattern, script, vocabulary, maxTokens]) => {
          const tokenizer = new module_tokenizer.Tokenizer(JSON.parse(content), pattern);
          const model = { shape: { context: 100 }, keep: () => 0, read(id, wanted) {
            if (!wanted) return null;
            const logits = new Float32Array(vocabulary);
            logits[script.shift()] = 1;
            return logits;
          } };
          const steps = module_reply.reply(model, tokenizer, [0], { temperature: 0, maxTokens, seed: 0 });
          const shown = { text: "", python: "", python_output: "" };
          for (;;) {
            const { done, value } = steps.next();
            if (done) return [value, shown];
            if (value) shown[value.type] += value.text;
          }
        }""",
        [tok._json, html.javascript_pattern(tok), script, tok.vocab_size, limit],
    )
    kinds = {"text": "text", "python": "tool", "python_output": "output"}
    shown = {kind: "".join(delta.text for delta in said if delta.kind == name) for kind, name in kinds.items()}
    assert found == [{"finish": request.finish, "tokens": request.ids}, shown]


def test_tokens_are_drawn_by_their_probabilities_and_a_seed(scripts):
    draw = """([temperature, topK, seed]) => {
      const random = module_reply.randomNumbers(seed);
      const logits = Float32Array.from([0.1, 0.5, 0.3, 0.1].map(Math.log));
      return Array.from({ length: 4000 }, () => module_reply.choose(logits, { temperature, topK }, random));
    }"""
    counts = np.bincount(scripts.evaluate(draw, [1, 0, 7])) / 4000
    assert np.abs(counts - [0.1, 0.5, 0.3, 0.1]).max() < 0.03
    half = np.bincount(scripts.evaluate(draw, [0.5, 0, 7]), minlength=4) / 4000  # squares of the probabilities
    assert np.abs(half - np.array([0.01, 0.25, 0.09, 0.01]) / 0.36).max() < 0.03
    assert set(scripts.evaluate(draw, [1, 2, 7])) == {1, 2}
    assert set(scripts.evaluate(draw, [0, 0, 7])) == {1}
    assert scripts.evaluate(draw, [1, 0, 7]) == scripts.evaluate(draw, [1, 0, 7]) != scripts.evaluate(draw, [1, 0, 8])


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_rows_in_int8_are_their_scale_times_the_nearest_steps(rows, columns, data):
    numbers = st.floats(-100, 100, width=32).map(lambda x: x if abs(x) > 1e-30 else 0.0)
    weights = np.array(data.draw(st.lists(numbers, min_size=rows * columns, max_size=rows * columns)), np.float32)
    scale, steps = int8_rows(weights.reshape(rows, columns))
    assert (steps.dtype, steps.shape, scale.shape) == (np.int8, (rows, columns), (rows, 1))
    error = np.abs(scale * steps - weights.reshape(rows, columns)).max(axis=1)
    assert (error <= 0.5001 * scale[:, 0]).all()


# ---- the page


def ask(page, text):
    page.fill("#question", text)
    page.keyboard.press("Enter")
    page.wait_for_selector("#log > :last-child .stats")
    return page.inner_text("#log > :last-child .body")


@pytest.fixture
def page(exported, speed):
    page = exported(speed)
    page.click("#new-chat")
    yield page
    assert page.problems == []
    assert [url for url in page.requests if not url.startswith(("blob:", "data:"))] == [page.file.as_uri()]


def test_it_chats_from_disk_and_asks_for_nothing(page):
    assert page.title() == "model · nutshell"
    ask(page, "the cat")
    assert page.inner_text(".user .bubble") == "the cat"
    assert "tokens/s" in page.inner_text(".stats")
    ask(page, "and so on")
    assert page.get_attribute("#question", "dir") == "ltr"  # told by the text: dir=auto stops Chromium at a long paste
    assert page.locator("article").count() == 4
    page.click("#new-chat")
    assert page.locator("article").count() == 0
    assert page.is_visible("#welcome")


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(page, serious, theme):
    page.emulate_media(color_scheme=theme)
    assert serious(page) == []
    ask(page, "the cat")
    assert serious(page) == []
    page.click("#open-settings")
    assert serious(page) == []
    page.keyboard.press("Escape")


def test_it_fits_a_phone_of_320_pixels(page):
    whole = page.viewport_size
    page.set_viewport_size({"width": 320, "height": 600})
    ask(page, "x" * 200)
    assert page.evaluate("document.documentElement.scrollWidth") <= 320
    assert page.evaluate("document.getElementById('scroll').scrollWidth") <= 320
    assert page.evaluate("document.documentElement.scrollHeight") <= 600
    page.click("#open-settings")
    assert page.locator("#settings").evaluate("box => box.scrollWidth <= box.clientWidth")
    page.keyboard.press("Escape")
    page.set_viewport_size(whole)


def test_the_policy_forbids_the_network_and_foreign_scripts(page):
    assert page.evaluate("fetch('https://example.org').then(() => 'sent', () => 'refused')") == "refused"
    assert (
        page.evaluate("""() => {
      const script = document.createElement("script");
      script.textContent = "window.ran = true";
      document.body.append(script);
      return Boolean(window.ran);
    }""")
        is False
    )
    refusals, page.problems[:] = list(page.problems), []
    assert len(refusals) >= 2
    assert all("Content Security Policy" in line for line in refusals)


def test_temperature_and_seed_are_the_readers(page):
    def answer(temperature, seed):
        page.click("#new-chat")
        page.click("#open-settings")
        page.fill("#temperature", str(temperature))
        page.fill("#seed", str(seed))
        page.fill("#top-k", "0")
        page.fill("#max-tokens", "30")
        page.keyboard.press("Escape")
        return ask(page, "the cat")

    assert answer(1.5, 1) == answer(1.5, 1) != answer(1.5, 2)
    assert answer(0, 1) == answer(0, 2)


def test_an_answer_stops_and_the_next_one_is_whole(page):
    page.evaluate("() => { document.getElementById('max-tokens').value = 240; }")
    page.dispatch_event("#max-tokens", "input")
    page.fill("#question", "the cat sat")
    page.evaluate("() => { document.getElementById('send').click(); document.getElementById('stop').click(); }")
    page.wait_for_selector("#log > :last-child .stats")
    assert page.inner_text(".stats") == "stopped"
    assert page.is_visible("#send")
    ask(page, "low")
    assert "tokens/s" in page.locator(".stats").last.inner_text()


# ---- what is refused


def test_the_command_says_what_it_wrote(speed, tmp_path, command):
    code, out, err = command("export", "html", speed, tmp_path / "page.html")
    assert (code, err) == (0, "")
    assert out == f"{tmp_path / 'page.html'}  0.{out.split('0.')[-1]}"
    parameters = sum(p.numel() for p in load_model(speed)[0].parameters())
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert len(re.search(r'id="weights">([^<]*)<', text)[1]) < 1.6 * parameters
    assert json.loads(re.search(r'id="model">([^<]*)<', text)[1])["shape"]["width"] == 64


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architecture": "gpt2"}, "is of gpt2, which the page does not know. Accepted: speed, portable with qk_norm."),
        ({"qk_norm": False}, "is of Llama's shape"),
        ({"pattern": r"\w+|\W"}, r"cuts text by the pattern '\\w+|\\W', which the page does not know. Accepted: nanochat"),
    ],
)
def test_what_a_page_cannot_hold_is_refused(tmp_path, refused, changes, message):
    folder = save_folder(tmp_path / "model", **changes)
    refused(tmp_path, message, "export", "html", folder, tmp_path / "page.html")


def test_large_models_and_taken_names_are_refused(speed, tmp_path, refused, monkeypatch):
    shutil.copytree(speed, tmp_path / "model")
    (tmp_path / "taken.html").write_text("mine")
    refused(tmp_path, "taken.html exists", "export", "html", tmp_path / "model", tmp_path / "taken.html")
    refused(tmp_path, "is no name of a page. Accepted: a name that ends with .html", "export", "html", speed, tmp_path / "page")
    monkeypatch.setattr(html, "LARGEST", 1000)
    refused(tmp_path, "M parameters. Accepted: up to 0M", "export", "html", speed, tmp_path / "page.html")


def test_what_a_killed_export_left_is_cleared(speed, tmp_path):
    (tmp_path / ".page.html.123.tmp").write_text("half of one")
    html.export_html(speed, tmp_path / "page.html")
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
