"""Several models of one run in one server: every stage and kept step, loaded when asked for, least recently used out."""

import concurrent.futures
import gc
import threading
import time
import weakref

import pytest

from nutshell.checkpoint import load, save_model_folder
from nutshell.infer.engine import Engine
from nutshell.serve.models import Models
from nutshell.serve.offers import offers

NAMES = ["run", "run/pretrain", "run/midtrain", "run/sft", "run/pretrain/step-000010", "run/pretrain/step-000020",
         "run/midtrain/step-000005", "run/sft/step-000003", "run/sft/step-000007"]  # fmt: skip


@pytest.fixture
def opened():
    return []


@pytest.fixture
def client(serving, run, opened, eventually):
    def open_engine(folder):
        model, tok = load(folder)
        engine = Engine(model.for_inference(), tok, max_rows=2)
        opened.append((folder.relative_to(run).as_posix(), weakref.ref(engine)))
        return engine

    models = Models("run", max_queue=8, folder=run, max_loaded=2)
    client = serving(None, models=models, open_engine=open_engine)
    eventually(lambda: models.started, seconds=20)
    return client


def ids(client):
    return [model["id"] for model in client.get("/v1/models").json()["data"]]


def loaded(client):
    return {model["id"] for model in client.get("/v1/models").json()["data"] if model["loaded"]}


def test_every_stage_and_step_is_listed_and_the_default_is_first(client):
    assert ids(client) == NAMES
    first, pretrain, *_ = client.get("/v1/models").json()["data"]
    assert (first["stage"], first["step"], first["kind"], first["loaded"]) == ("sft", 7, "chat", True)
    assert (pretrain["stage"], pretrain["step"], pretrain["kind"], pretrain["loaded"]) == ("pretrain", 20, "base", False)
    assert pretrain["context"] == pretrain["max_model_len"] == 64
    assert client.get("/v1/models/run/pretrain/step-000010").json()["step"] == 10
    assert client.get("/v1/models/run/rl").status_code == 404


def test_a_model_is_loaded_when_asked_for_and_the_least_recently_used_goes(client, ask, opened):
    assert ask(client, max_tokens=1, model="run/pretrain").json()["model"] == "run/pretrain"
    assert ask(client, max_tokens=1, model="run/sft/step-000007").status_code == 200  # the default's own folder
    assert loaded(client) == {"run", "run/sft", "run/sft/step-000007", "run/pretrain", "run/pretrain/step-000020"}
    assert ask(client, max_tokens=1, model="run/midtrain").status_code == 200
    assert {"run", "run/midtrain"} < loaded(client)
    assert "run/pretrain" not in loaded(client)
    assert [name for name, _ in opened] == ["sft/step-000007", "pretrain/step-000020", "midtrain/step-000005"]
    gc.collect()
    assert [engine() is None for _, engine in opened] == [False, True, False]  # its memory is free
    assert client.get("/health").json() == {"status": "ok"}


def test_many_who_ask_for_one_model_load_it_once(client, ask, opened):
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(client, max_tokens=2, model="run/pretrain").status_code, range(6)))
    assert answers == [200] * 6
    assert [name for name, _ in opened].count("pretrain/step-000020") == 1


def test_many_models_at_once_are_never_all_in_memory(client, ask, opened):
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda name: ask(client, max_tokens=1, model=name), NAMES * 2))
    assert {answer.status_code for answer in answers} <= {200, 503}
    assert sum(answer.status_code == 200 for answer in answers) >= 2
    gc.collect()
    assert sum(engine() is not None for _, engine in opened) <= 2
    assert ask(client, max_tokens=1).status_code == 200


def test_models_that_answer_are_not_unloaded(client, ask, eventually):
    client.service.models.max_loaded = 1
    threading.Thread(target=ask, args=(client,), kwargs={"max_tokens": 40}).start()
    worker = client.service.worker
    handle = worker.reserve(1)
    response = ask(client, model="run/pretrain")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "models_busy")
    assert response.headers["Retry-After"]
    handle.close()
    eventually(lambda: worker.in_flight == 0, seconds=5)
    assert ask(client, max_tokens=1, model="run/pretrain").status_code == 200


def test_an_unknown_model_is_a_404_that_names_those_there(client, ask):
    for name in ("gpt-4", "run/", "run/pretrain/../sft", "../run", ""):
        error = ask(client, model=name).json()["error"]
        assert (error["param"], error["code"]) == ("model", "model_not_found")
        assert "'run/pretrain'" in error["message"]


def test_one_broken_model_harms_no_other(client, ask, run):
    weights = run / "midtrain" / "step-000005" / "model.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-100])
        error = ask(client, model="run/midtrain").json()["error"]
        assert (error["type"], error["code"]) == ("server_error", "model_failed")
        assert str(run) not in error["message"]
        assert ask(client, max_tokens=1).status_code == 200
        assert client.get("/health").status_code == 200
    finally:
        weights.write_bytes(whole)
    assert ask(client, max_tokens=1, model="run/midtrain").status_code == 200


def test_a_new_step_becomes_the_default(client, ask, run, make_model, tok, monkeypatch):
    monkeypatch.setattr("nutshell.serve.models.FRESH_SECONDS", 0.0)
    new = save_model_folder(run / "rl" / "step-000001", make_model(64), tok, meta={"stage": "rl", "step": 1})
    try:
        assert ids(client)[0:1] + ids(client)[4:5] == ["run", "run/rl"]
        assert client.get("/v1/models/run").json()["stage"] == "rl"
        assert ask(client, max_tokens=1).json()["model"] == "run"
        assert client.get("/v1/models/run").json()["loaded"]
    finally:
        (new / "manifest.json").unlink()


def test_a_run_that_has_just_begun_answers_from_its_first_checkpoint_on(serving, make_model, tok, ask, tmp_path, eventually):
    (tmp_path / "metrics.jsonl").write_text('{"stage": "pretrain", "step": 1, "loss": 5.0}\n')
    models = Models("young", max_queue=8, folder=tmp_path)
    client = serving(None, models=models, open_engine=lambda folder: Engine(load(folder)[0].for_inference(), tok, max_rows=2))
    time.sleep(0.2)
    assert client.get("/health").json()["status"] == "loading"
    assert client.get("/runs").status_code == 200
    assert ask(client, max_tokens=1).status_code == 503
    save_model_folder(tmp_path / "pretrain" / "step-000001", make_model(64), tok, meta={"stage": "pretrain", "step": 1})
    eventually(lambda: models.started, seconds=20)
    assert ask(client, max_tokens=1).status_code == 200


def test_a_model_folder_offers_itself_alone(run):
    (one,) = offers(run / "sft" / "step-000003")
    assert (one.id, one.stage, one.step) == ("run", "sft", 3)
    assert offers(run / "sft")[0].id == "run"


def test_a_model_whose_folder_is_damaged_replaced_or_gone_while_it_is_served(client, ask, run, make_model, tok, monkeypatch):
    """Siblings of F21: one broken config made every answer a 500 under a well /health, a deleted folder took the model in memory
    with it, and another model in the same folder was announced while the old one answered."""
    monkeypatch.setattr("nutshell.serve.models.FRESH_SECONDS", 0.0)

    def answer(**fields):
        response = ask(client, temperature=0, max_tokens=8, **fields)
        assert response.status_code == 200, response.text
        return response.json()["choices"][0]["message"]["content"]

    config = run / "midtrain" / "step-000005" / "config.json"
    whole, other = config.read_text(), answer(model="run/sft/step-000003")
    newest = run / "sft" / "step-000007"
    try:
        for broken in ("{broken", "[]"):
            config.write_text(broken)
            assert ids(client) == NAMES
            said = answer()
        assert said != other
        newest.rename(run / "away")  # the same name, other weights
        (run / "sft" / "step-000003").rename(newest)
        assert answer() == other
        newest.rename(run / "sft" / "step-000003")
        run.rename(run.with_name("gone"))
        assert answer() == other
        assert client.get("/health").status_code == 200
    finally:
        if run.with_name("gone").exists():
            run.with_name("gone").rename(run)
        config.write_text(whole)
        if (run / "away").exists():
            (run / "away").rename(newest)


def test_a_default_that_cannot_be_loaded_is_a_failed_server(client, ask, run, make_model, tok, monkeypatch):
    """A sibling of F21: a damaged newest step made every answer a 500, and /health said ok."""
    monkeypatch.setattr("nutshell.serve.models.FRESH_SECONDS", 0.0)
    new = save_model_folder(run / "rl" / "step-000001", make_model(64), tok, meta={"stage": "rl", "step": 1})
    try:
        (new / "model.safetensors").write_bytes(b"")
        assert ask(client).status_code == 500
        health = client.get("/health")
        assert (health.status_code, health.json()["status"]) == (503, "failed")
        assert "cannot be loaded" in health.json()["reason"]
    finally:
        (new / "manifest.json").unlink()
    assert ask(client, max_tokens=1).status_code == 200
    assert client.get("/health").status_code == 200


def test_a_step_that_was_there_a_moment_ago_is_a_404(client, ask, run, monkeypatch):
    """A sibling of F34: within a second of its removal by a run that trains, an old step was a 500."""
    assert "run/pretrain/step-000010" in ids(client)
    monkeypatch.setattr("nutshell.serve.models.FRESH_SECONDS", 1000.0)
    monkeypatch.setattr(client.service.models, "_listed", time.monotonic())
    old = run / "pretrain" / "step-000010"
    old.rename(run / "away")
    try:
        assert ask(client, model="run/pretrain/step-000010").status_code == 404
    finally:
        (run / "away").rename(old)
