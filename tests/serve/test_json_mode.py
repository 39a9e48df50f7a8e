"""`response_format`: answers that are JSON, of a model that knows nothing of JSON."""

import json
import sys

import pytest

from nutshell.infer.engine import Engine

SCHEMA = {
    "type": "object",
    "properties": {"city": {"type": "string", "maxLength": 8}, "people": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["city", "people"],
    "additionalProperties": False,
}
AS_SCHEMA = {"type": "json_schema", "json_schema": {"name": "place", "strict": True, "schema": SCHEMA}}


@pytest.fixture
def client(serving, make_model, tok):
    pytest.importorskip("llguidance", reason="needs the extra json")
    return serving(Engine(make_model(512), tok, max_rows=4))


def check(text):
    place = json.loads(text)
    assert sorted(place) == ["city", "people"]
    assert len(place["city"]) <= 8
    assert place["people"] in range(100)


def test_whole_streamed_and_chosen_answers_fit_the_schema(client, ask, stream):
    fields = {"response_format": AS_SCHEMA, "seed": 5, "max_tokens": 200}
    choices = ask(client, n=3, **fields).json()["choices"]
    for choice in choices:
        assert choice["finish_reason"] == "stop"
        check(choice["message"]["content"])
    events = stream(client, **fields)
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in events[:-1])
    assert text == choices[0]["message"]["content"]
    body = {"prompt": "A city: ", **fields}
    check(client.post("/v1/completions", json=body).json()["choices"][0]["text"])


def test_an_object_parses_or_says_that_it_was_cut(client, ask, tok):
    ends = {str(tok.encode("}")[0]): 6}
    finishes = set()
    for seed in range(8):
        choice = ask(client, response_format={"type": "json_object"}, seed=seed, max_tokens=80, logit_bias=ends).json()[
            "choices"
        ][0]
        finishes.add(choice["finish_reason"])
        if choice["finish_reason"] == "stop":
            assert isinstance(json.loads(choice["message"]["content"]), dict)
    assert "stop" in finishes
    assert ask(client, response_format=AS_SCHEMA, max_tokens=3).json()["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        ({"type": "xml"}, "accepted: 'text', 'json_object', 'json_schema'"),
        ({"type": ["text"]}, "accepted: 'text'"),
        ({"json_schema": {}}, "accepted: 'text'"),
        ({"type": "json_schema"}, "needs the schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": True}}, "needs the schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "wizard"}}}, "wizard"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "array", "uniqueItems": True}}}, "uniqueItems"),
    ],
)
def test_formats_that_cannot_be_followed_are_refused(client, ask, wanted, words):
    error = ask(client, response_format=wanted).json()["error"]
    assert (error["param"], words in error["message"]) == ("response_format", True), error
    assert client.service.worker.in_flight == 0


def test_without_the_package_the_refusal_says_how_to_get_it(serving, engine, ask, monkeypatch):
    monkeypatch.setitem(sys.modules, "llguidance", None)
    client = serving(engine)
    answer = ask(client, response_format={"type": "json_object"})
    assert answer.status_code == 400
    assert "pip install 'nutshell-lm[json]'" in answer.json()["error"]["message"]
    assert ask(client, max_tokens=2, response_format={"type": "text"}).status_code == 200
