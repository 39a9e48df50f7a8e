"""POST /v1/completions, /tokenize, /detokenize and /tokenizer_info against a real server and a real engine."""

import json

import pytest

from nutshell.eval.score import score

TEXT = "The capital of France is Paris"


@pytest.fixture
def client(serving, engine):
    return serving(engine)


@pytest.fixture
def complete(client):
    def post(prompt, **fields):
        response = client.post("/v1/completions", json={"prompt": prompt, **fields})
        assert response.status_code == 200, response.text
        return response.json()

    return post


def test_continues_texts_as_the_engine_does(complete, engine):
    answer = complete([TEXT, "Once upon"], max_tokens=6, temperature=0, n=2)
    assert answer["object"] == "text_completion"
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    expected = engine.generate([TEXT, "Once upon"], max_tokens=6, temperature=0)
    assert [choice["text"] for choice in answer["choices"]] == [text for text in expected for _ in range(2)]
    assert answer["usage"]["completion_tokens"] <= 24


def test_token_arrays_are_taken_as_they_are(complete, tok):
    ids = [tok.bos_id, *tok.encode(TEXT)]
    fields = {"max_tokens": 5, "temperature": 0}
    as_text, as_ids, as_list = complete(TEXT, **fields), complete(ids, **fields), complete([ids], **fields)
    assert as_text["choices"] == as_ids["choices"] == as_list["choices"]
    assert as_text["usage"] == as_ids["usage"]


@pytest.mark.parametrize("max_tokens", [0, 1, 4])
@pytest.mark.parametrize("as_ids", [False, True])
def test_echoed_logprobs_are_those_of_score(complete, engine, tok, max_tokens, as_ids):
    """The oracle is what `nutshell eval` stands on."""
    ids = tok.encode(TEXT)
    prompt = [tok.bos_id, *ids] if as_ids else TEXT
    (choice,) = complete(prompt, echo=True, logprobs=3, max_tokens=max_tokens, temperature=0)["choices"]
    logprobs = choice["logprobs"]
    size, skipped = (len(ids) + 1, 1) if as_ids else (len(ids), 0)
    assert {len(column) - size for column in logprobs.values()} == {len(logprobs["tokens"]) - size}
    assert len(logprobs["tokens"]) - size <= max_tokens
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    for start in (2, len(ids) - 1):
        (expected,) = score(engine.model, [([tok.bos_id, *ids[:start]], ids[start:])])
        got = logprobs["token_logprobs"][start + skipped : size]
        greedy = [p == max(top.values()) for p, top in zip(got, logprobs["top_logprobs"][start + skipped : size], strict=True)]
        assert sum(got) == pytest.approx(expected.logprob, abs=1e-4)
        assert all(greedy) == expected.greedy
    for offset, token in list(zip(logprobs["text_offset"], logprobs["tokens"], strict=True))[:size]:
        if token != "<|bos|>":
            assert choice["text"][offset:].startswith(token)
    assert choice["text"].startswith(TEXT)


def test_the_one_greedy_token_of_harnesses_is_the_engines(complete, engine, tok):
    """It is taken from the scored prompt, and must be what generating it gives."""
    fields = {"echo": True, "logprobs": 1, "temperature": 0}
    (short,), (long,) = (complete(TEXT, max_tokens=n, **fields)["choices"] for n in (1, 2))
    size = len(tok.encode(TEXT)) + 1
    assert short["logprobs"]["tokens"] == long["logprobs"]["tokens"][:size]
    last, top = short["logprobs"]["token_logprobs"][-1], short["logprobs"]["top_logprobs"][-1]
    assert last == max(top.values())
    assert last == pytest.approx(long["logprobs"]["token_logprobs"][size - 1], abs=1e-4)
    assert short["finish_reason"] == "length"
    assert short["text"] == TEXT + engine.generate([TEXT], max_tokens=1, temperature=0)[0]


def test_a_stream_gives_the_same(client, complete):
    fields = {"max_tokens": 8, "temperature": 0.8, "seed": 5, "n": 2, "echo": True, "logprobs": 2}
    whole = complete(TEXT, **fields)
    body = {"prompt": TEXT, "stream": True, "stream_options": {"include_usage": True}, **fields}
    with client.stream("POST", "/v1/completions", json=body) as response:
        data = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
    assert data[-1] == "[DONE]"
    *chunks, last = map(json.loads, data[:-1])
    assert (last["choices"], last["usage"]) == ([], whole["usage"])
    for choice in whole["choices"]:
        own = [chunk["choices"][0] for chunk in chunks if chunk["choices"][0]["index"] == choice["index"]]
        assert "".join(one["text"] for one in own) == choice["text"]
        assert own[-1]["finish_reason"] == choice["finish_reason"]
        for column, values in choice["logprobs"].items():
            assert [value for one in own for value in one["logprobs"][column]] == values


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["a", [1]]}, "prompt"),
        ({"prompt": [1, -1]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": {"text": "a"}}, "prompt"),
        ({"prompt": [399, 400]}, "prompt"),
        ({"prompt": "word " * 200}, "prompt"),
        ({"prompt": ["a"] * 21}, "prompt"),
        ({"suffix": "end"}, "suffix"),
        ({"best_of": 3}, None),
        ({"max_tokens": 0}, None),
        ({"logprobs": 21}, "logprobs"),
        ({"response_format": {"type": "xml"}}, "response_format"),
    ],
)
def test_what_is_refused_is_named(serving, engine, fields, param):
    client = serving(engine, max_queue=16)
    response = client.post("/v1/completions", json={"prompt": "a", **fields})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert client.service.worker.in_flight == 0


def test_special_tokens_in_a_text_stay_text(client, complete, tok):
    name = "<|assistant_end|>"
    (choice,) = complete(name, echo=True, logprobs=0, max_tokens=0)["choices"]
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"] == name
    tokens = client.post("/tokenize", json={"prompt": name}).json()
    assert tokens == {"tokens": [tok.bos_id, *tok.encode(name)], "count": len(tok.encode(name)) + 1, "max_model_len": 128}


def test_tokenizer_routes(client, tok):
    text = "naïve café 日本語 and ☃"
    tokens = client.post("/tokenize", json={"prompt": text, "add_special_tokens": False}).json()["tokens"]
    assert tokens == tok.encode(text)
    assert client.post("/detokenize", json={"tokens": tokens}).json() == {"prompt": text}
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    ids = client.post("/tokenize", json={"messages": messages}).json()["tokens"]
    assert tok.decode(ids, special=True) == "<|bos|><|user_start|>Be kind.\n\nHi<|user_end|><|assistant_start|>"
    about = client.get("/tokenizer_info").json()
    assert (about["bos_token"], about["eos_token"], about["vocab_size"]) == ("<|bos|>", "<|assistant_end|>", tok.vocab_size)
    for path, body in (("/tokenize", {}), ("/tokenize", {"prompt": 1}), ("/detokenize", {"tokens": [400]}),
                       ("/detokenize", {"tokens": [-1]}), ("/detokenize", {})):  # fmt: skip
        assert client.post(path, json=body).status_code == 400, (path, body)


def test_f26_a_prompt_at_the_border_of_the_context(serving, engine, tok):
    """Siblings of F26 and F21: without max_tokens a prompt as long as the context was a failure of the engine, so that three of
    them made /health say failed; and a text could not be gone on with beyond the context."""
    client = serving(engine)

    def post(length, **fields):
        return client.post("/v1/completions", json={"prompt": [5] * length, **fields})

    for max_tokens in (None, -1, 5):
        assert [post(length, max_tokens=max_tokens).status_code for length in (127, 128)] == [200, 400]
    assert post(128, max_tokens=0, echo=True).status_code == 200
    assert client.service.worker.failures == 0
    cut = post(500, max_tokens=3, truncate_prompt_tokens=100).json()
    assert (cut["usage"]["prompt_tokens"], cut["nutshell"]) == (100, {"dropped_tokens": 400})
    text = "a small nut in a shell " * 40
    length = len(tok.encode(text)) + 1
    cut = client.post("/v1/completions", json={"prompt": text, "max_tokens": 1, "truncate_prompt_tokens": 60}).json()
    assert (cut["usage"]["prompt_tokens"], cut["nutshell"]) == (60, {"dropped_tokens": length - 60})
    assert post(9, max_tokens=1, truncate_prompt_tokens=9, echo=True).status_code == 400
