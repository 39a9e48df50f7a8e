"""Real clients, unchanged, against a real server: openai-python, LangChain, lm-evaluation-harness, schemathesis."""

import warnings
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from nutshell.eval.score import score

QUESTION = [{"role": "user", "content": "What is the capital of France?"}]


def openai_client(client):
    openai = pytest.importorskip("openai")
    return openai.OpenAI(base_url=f"{client.url}/v1", api_key="none", max_retries=0)


def test_openai_chat(serving, scripted):
    api = openai_client(serving(scripted("It is Paris.")))
    answer = api.chat.completions.create(model="tiny", messages=QUESTION, max_tokens=20, seed=-1, logprobs=True, top_logprobs=0)
    assert answer.choices[0].message.content == "It is Paris."
    assert "".join(entry.token for entry in answer.choices[0].logprobs.content) == "It is Paris."
    chunks = list(api.chat.completions.create(
        model="tiny", messages=QUESTION, stream=True, stream_options={"include_usage": True}
    ))  # fmt: skip
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "It is Paris."
    assert chunks[-1].usage.completion_tokens == answer.usage.completion_tokens
    assert [model.id for model in api.models.list()] == ["tiny"]


def test_openai_errors_are_its_own_classes(serving, engine):
    openai = pytest.importorskip("openai")

    api = openai_client(serving(engine))
    with pytest.raises(openai.NotFoundError, match="'tiny'"):
        api.chat.completions.create(model="gpt-4", messages=QUESTION)
    with pytest.raises(openai.BadRequestError, match="functions"):
        api.chat.completions.create(model="tiny", messages=QUESTION, tools=[{"type": "function", "function": {"name": "f"}}])
    with pytest.raises(openai.BadRequestError, match="json_schema"):
        api.chat.completions.create(model="tiny", messages=QUESTION, response_format={"type": "xml"})


def test_openai_parses_an_answer_into_a_class(serving, engine):
    pytest.importorskip("llguidance", reason="needs the extra json")

    class Place(BaseModel):
        name: Literal["Paris", "Rome"]
        visited: bool
        notes: list[Literal["big", "old"]] = Field(max_length=2)

    api = openai_client(serving(engine))
    answer = api.chat.completions.parse(model="tiny", messages=QUESTION, response_format=Place, seed=1)
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].message.parsed.name in ("Paris", "Rome")


def test_openai_reads_a_calculation_as_text(serving, scripted):
    api = openai_client(serving(scripted("That is §47+85§132.")))
    with api.chat.completions.create(model="tiny", messages=QUESTION, stream=True) as parts:
        assert "".join(part.choices[0].delta.content or "" for part in parts) == "That is 132."


def test_openai_completions(serving, engine, tok):
    api = openai_client(serving(engine))
    ids = [tok.bos_id, *tok.encode("Once upon a time")]
    answer = api.completions.create(model="tiny", prompt=["Once upon a time", "There was"], max_tokens=4, temperature=0)
    assert [choice.text for choice in answer.choices] == engine.generate(
        ["Once upon a time", "There was"], max_tokens=4, temperature=0
    )
    streamed = api.completions.create(model="tiny", prompt=ids, max_tokens=4, temperature=0, stream=True)
    assert "".join(chunk.choices[0].text for chunk in streamed) == answer.choices[0].text


OWN_TOOLS = [{"type": "function", "function": {"name": "get_current_timestamp", "description": "Now", "parameters": {
    "type": "object", "properties": {}, "required": []}}}]  # fmt: skip


def test_what_open_webui_sends(serving, scripted, stream):
    """The requests of its 0.12.4, made as its routers/openai.py, routers/tasks.py and utils/middleware.py make them: the list of
    models, a chat, title, tags and follow-ups from one user's message, Continue, and functions of its own in each chat."""
    client = serving(scripted("A title."), name="demo/sft", ignore_tools=True)
    (model,) = client.get("/v1/models", headers={"Authorization": "Bearer"}).json()["data"]
    assert {"id", "object", "created", "owned_by"} <= set(model)
    options = {"temperature": 0.7, "top_p": 0.9, "seed": 1, "stop": ["\n\n"], "max_tokens": 400, "frequency_penalty": 0.1}
    more = {"model": model["id"], "tools": OWN_TOOLS, "stream_options": {"include_usage": True}}
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Name?"}]
    events = stream(client, messages=[{"role": "system", "content": "Be brief."}, *turns], **options, **more)
    assert "".join(event["choices"][0]["delta"].get("content", "") for event in events[:-2]) == "A title."
    assert events[-2]["usage"]["completion_tokens"] > 0
    task = {"model": model["id"], "stream": False, "messages": [{"role": "user", "content": "### Task:\nGenerate a title. JSON"}]}
    for limit in ({"max_tokens": 1000}, {}):  # the title's, and none: tags and follow-ups
        answer = client.post("/v1/chat/completions", json={**task, **limit})
        assert answer.json()["choices"][0]["message"]["content"] == "A title."
    goes_on = {"messages": turns[:2], "continue_final_message": True, "add_generation_prompt": False}
    assert client.post("/v1/chat/completions", json=goes_on).status_code == 200
    for refused in ("required", {"type": "function", "function": {"name": "get_current_timestamp"}}):
        body = {"messages": turns, "tools": OWN_TOOLS, "tool_choice": refused}
        assert client.post("/v1/chat/completions", json=body).status_code == 400


def test_langchain(serving, scripted):
    langchain = pytest.importorskip("langchain_openai")
    from langchain_core.messages import AIMessage, HumanMessage, SystemMessage

    client = serving(scripted("It is Paris."))
    model = langchain.ChatOpenAI(base_url=f"{client.url}/v1", api_key="none", model="tiny", max_retries=0, streaming=False)
    messages = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("Capital of France?")]
    assert model.invoke(messages).content == "It is Paris."
    assert "".join(chunk.content for chunk in model.stream(messages)) == "It is Paris."
    assert [answer.content for answer in model.batch([messages] * 6)] == ["It is Paris."] * 6


ITEMS = [("The capital of France is", " Paris."), ("The capital of France is", " Seine"), ("Once upon a", " time there was")]


@pytest.mark.parametrize("batch_size", [1, 3])
def test_lm_evaluation_harness_gets_the_numbers_of_score(serving, engine, tok, batch_size, monkeypatch):
    """`local-completions` with our tokenizer behind /tokenizer_info: log-likelihoods are those of eval/score.py."""
    completions = harness("LocalCompletionsAPI")
    from lm_eval.api.instance import Instance

    client = serving(engine)
    model = completions(
        base_url=f"{client.url}/v1/completions", model="tiny", batch_size=batch_size, max_length=128, tokenizer_backend="remote"
    )
    requests = [Instance("loglikelihood", {}, item, number) for number, item in enumerate(ITEMS)]
    found = model.loglikelihood(requests, disable_tqdm=True)
    pairs = [(tok.encode(context), tok.encode(context + answer)[len(tok.encode(context)) :]) for context, answer in ITEMS]
    expected = score(engine.model, pairs)
    assert [value for value, _ in found] == pytest.approx([one.logprob for one in expected], abs=1e-4)
    assert [greedy for _, greedy in found] == [one.greedy for one in expected]
    (text,) = model.generate_until(
        [Instance("generate_until", {}, ("Once upon a", {"until": ["\n\n"], "max_gen_toks": 5}), 0)], disable_tqdm=True
    )
    ids = tok.encode("Once upon a")
    from nutshell.infer.sampling import Sampling

    oracle = engine.sample([ids], 1, Sampling(max_tokens=5, temperature=0, stop=("\n\n",)), tools=False)[0][0]
    assert text == oracle.text


def test_lm_evaluation_harness_chats(serving, scripted):
    chat = harness("LocalChatCompletion")
    from lm_eval.api.instance import Instance
    from lm_eval.models.api_models import JsonChatStr

    client = serving(scripted("It is Paris."))
    model = chat(base_url=f"{client.url}/v1/chat/completions", model="tiny", tokenizer_backend=None, tokenized_requests=False)
    prompt = JsonChatStr('[{"role": "user", "content": "What is the capital of France?"}]')
    request = Instance("generate_until", {}, (prompt, {"until": ["\n"], "max_gen_toks": 16}), 0)
    assert model.generate_until([request], disable_tqdm=True) == ["It is Paris."]


def harness(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("lm_eval")
        from lm_eval.models import openai_completions
    return getattr(openai_completions, name)


@pytest.mark.slow
def test_schemathesis_finds_no_answer_but_those_of_the_schema(serving, engine, caplog):
    """Requests made from /openapi.json: none may end in a 5xx, and each error has the one shape."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, given, settings

    caplog.set_level("CRITICAL", "nutshell.serve")
    client = serving(engine, max_queue=200)
    schema = schemathesis.openapi.from_url(f"{client.url}/openapi.json")
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"} <= {one.path for one in operations}
    for operation in operations:
        # No streams, and few tokens: what is tried are the bodies.
        @given(case=operation.as_strategy())
        @settings(max_examples=15, deadline=None, phases=[Phase.generate], suppress_health_check=list(HealthCheck))
        def attempt(case):
            if isinstance(case.body, dict):
                case.body = {**case.body, "max_tokens": 1}
            response = case.call()
            assert response.status_code < 500, (case.body, response.text)
            if response.status_code >= 400 and response.request.method != "HEAD":
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        attempt()
