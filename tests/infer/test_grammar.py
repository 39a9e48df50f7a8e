"""Replies that a JSON schema binds: random schemas and a random model, which knows nothing of JSON."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from nutshell.infer.engine import Engine
from nutshell.infer.grammar import GrammarState, JsonGrammars
from nutshell.infer.request import Vocabulary
from nutshell.infer.sampling import Sampling
from nutshell.model.config import ModelConfig
from nutshell.model.gpt import GPT
from nutshell.tokenizer import Tokenizer

pytest.importorskip("llguidance", reason="needs the extra json")

NAMES = ["name", "age", "a b", 'q"', "café", "☃"]
ENUMS = st.lists(st.sampled_from([*NAMES, 1, True, None, [], {}]), min_size=1, max_size=4, unique_by=repr)
SMALL = st.one_of(
    st.integers(0, 5).map(lambda most: {"type": "string", "maxLength": most}),
    st.tuples(st.integers(-20, 5), st.integers(5, 99)).map(
        lambda ends: {"type": "integer", "minimum": ends[0], "maximum": ends[1]}
    ),
    st.sampled_from([{"type": "boolean"}, {"type": "null"}, {"const": {"x": [1, None]}}]),
    st.just({"type": "string", "pattern": "^[a-c]{2}$"}),
    ENUMS.map(lambda these: {"enum": these}),
)


def wider(inner):
    return st.one_of(
        st.fixed_dictionaries({"type": st.just("array"), "items": inner, "maxItems": st.integers(0, 3)}),
        st.lists(inner, min_size=1, max_size=3).map(lambda some: {"anyOf": some}),
        st.dictionaries(st.sampled_from(NAMES), inner, max_size=3).flatmap(
            lambda fields: st.sets(st.sampled_from(sorted(fields))) .map(lambda needed: object_of(fields, needed))
            if fields else st.just(object_of({}, ()))),
    )  # fmt: skip


def object_of(fields, needed):
    return {"type": "object", "properties": fields, "required": sorted(needed), "additionalProperties": False}


SHORT = object_of({"a": {"type": "string", "maxLength": 4}, "b": {"type": "integer", "minimum": 0, "maximum": 9}}, ["a"])
SCHEMAS = st.recursive(SMALL, wider, max_leaves=6)
TYPES = {"string": str, "integer": int, "boolean": bool, "null": type(None), "array": list, "object": dict}


def fits(value, schema):
    """Whether `value` is what the schema describes: our own few words of JSON Schema, as an oracle."""
    if "anyOf" in schema:
        return any(fits(value, one) for one in schema["anyOf"])
    if "enum" in schema or "const" in schema:
        return json.dumps(value) in {json.dumps(one) for one in schema.get("enum", [schema.get("const")])}
    if type(value) is not TYPES[schema["type"]]:
        return False
    if schema["type"] == "string":
        return ("maxLength" not in schema or len(value) <= schema["maxLength"]) and (
            "pattern" not in schema or (len(value) == 2 and set(value) <= set("abc"))
        )
    if schema["type"] == "integer":
        return schema["minimum"] <= value <= schema["maximum"]
    if schema["type"] == "array":
        return len(value) <= schema["maxItems"] and all(fits(one, schema["items"]) for one in value)
    if schema["type"] == "object":
        known = schema["properties"]
        return set(schema["required"]) <= set(value) <= set(known) and all(fits(value[key], known[key]) for key in value)
    return True


@pytest.fixture
def engine(long_model, tok):
    return Engine(long_model, tok, max_rows=4)


@pytest.fixture(scope="module")
def grammars(tok):
    return JsonGrammars(tok, Vocabulary.of(tok).ends)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(schema=SCHEMAS, seed=st.integers(0, 2**32), temperature=st.sampled_from([0.0, 0.7, 1.5]))
def test_every_finished_reply_fits_its_schema(engine, grammars, schema, seed, temperature):
    sampling = Sampling(grammar=grammars.compile(schema), seed=seed, temperature=temperature, max_tokens=200)
    replies = engine.sample([[engine.tok.bos_id, 5, 6], [engine.tok.bos_id, 7]], 2, sampling)
    for reply in [one for some in replies for one in some]:
        assert reply.finish in ("stop", "length")
        assert reply.finish != "stop" or fits(json.loads(reply.text), schema), (schema, reply.text)
        assert reply.finish == "stop" or len(reply.ids) == 200


def test_any_object_parses_and_tools_are_off(engine, grammars):
    tok = engine.tok
    calls = {tok.special_id("<|python_start|>"): 100.0}
    for seed in range(12):
        sampling = Sampling(grammar=grammars.compile(), seed=seed, max_tokens=400, logit_bias={**calls, tok.encode("}")[0]: 5.0})
        (reply,) = engine.sample([[tok.bos_id, 9]], 1, sampling)[0]
        assert tok.special_id("<|python_start|>") not in reply.ids
        if reply.finish == "stop":
            assert isinstance(json.loads(reply.text), dict)


def test_a_bound_reply_is_the_same_alone_and_among_others_and_streamed(engine, grammars):
    bound = Sampling(grammar=grammars.compile(SHORT), seed=3, max_tokens=200)
    alone, among = engine.submit([5, 6], bound), None
    while engine.busy:
        engine.step()
    free = [engine.submit([5, 6], Sampling(seed=n, max_tokens=40)) for n in range(3)]
    among, deltas = engine.submit([5, 6], bound), []
    while engine.busy:
        deltas += engine.step()
    assert alone.ids == among.ids
    text = "".join(delta.text for delta in deltas if delta.request is among)
    assert text == among.completion().text
    assert (among.finish, fits(json.loads(text), SHORT)) == ("stop", True)
    assert not any(other.completion().text.startswith("{") for other in free)


def test_a_stop_string_still_ends_a_bound_reply(engine, grammars):
    sampling = Sampling(grammar=grammars.compile({"const": "abcdef"}), stop=("d",), max_tokens=50)
    (reply,) = engine.sample([[engine.tok.bos_id]], 1, sampling)[0]
    assert (reply.text, reply.finish) == ('"abc', "stop")


def test_a_grammar_that_cannot_go_on_ends_its_own_reply_alone(engine, grammars, monkeypatch):
    def broken(state, logits):
        raise RuntimeError("too complex")

    monkeypatch.setattr(GrammarState, "rule_out", broken)
    bound = engine.submit([5], Sampling(grammar=grammars.compile()))
    free = engine.submit([5], Sampling(max_tokens=5, logit_bias=dict.fromkeys(engine._vocabulary.ends, -100)))
    while engine.busy:
        engine.step()
    assert (bound.finish, str(bound.error)) == ("cancelled", "too complex")
    assert (free.finish, len(free.ids)) == ("length", 5)


def test_a_schema_that_the_vocabulary_cannot_spell_ends_its_reply_with_an_error():
    """It ended like a finished one, with text that is no JSON."""
    tok = Tokenizer.train_characters(["{:}"])
    shape = {"depth": 1, "width": 24, "heads": 1, "kv_heads": 1, "head_dim": 8, "context": 32}
    engine = Engine(GPT(ModelConfig(vocab_size=tok.vocab_size, bos_id=tok.bos_id, **shape)), tok)
    grammars = JsonGrammars(tok, tok.end_ids)
    for schema in ({"const": "a"}, object_of({"a": {}}, ["a"])):
        with pytest.raises(RuntimeError, match="cannot go on as its schema asks"):
            engine.sample([[tok.bos_id]], 1, Sampling(grammar=grammars.compile(schema), temperature=0))
    [[reply]] = engine.sample([[tok.bos_id]], 1, Sampling(grammar=grammars.compile(object_of({}, [])), temperature=0))
    assert (json.loads(reply.text), reply.finish) == ({}, "stop")


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "wizard"}, "wizard"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"$ref": "http://example.org/x"}, "example.org"),
        ({"allOf": [{"type": "string"}, {"type": "integer"}]}, "Unsatisfiable"),
        ({"type": "object", "properties": {f"p{n}": {} for n in range(3000)}}, "too big"),
    ],
)
def test_schemas_that_cannot_be_followed_are_refused(grammars, schema, words):
    with pytest.raises(ValueError, match=words):
        grammars.compile(schema)
