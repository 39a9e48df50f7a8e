"""Feedback over HTTP into SQLite, and out of it as files that the trainer reads."""

import json
import sqlite3
import threading

import pytest

from nutshell.cli.main import main
from nutshell.data.conversations import read_conversations
from nutshell.serve.feedback import Feedback, FeedbackStore, export
from nutshell.tokenizer.chat import parse_messages, render

ASKED = [{"role": "user", "content": "2+2?"}]
TURN = [*ASKED, {"role": "assistant", "content": "It is 5."}]


@pytest.fixture
def store(tmp_path):
    return FeedbackStore(tmp_path / "said.db")


def body(**changes):
    return {"conversation": "c1", "messages": TURN, "rating": "down", "better": "It is 4.", **changes}


def test_a_thumb_and_a_better_answer_become_training_data(serving, engine, store, tmp_path, tok, capsys):
    client = serving(engine, feedback_store=store)
    tool = {"role": "assistant", "content": [{"type": "python", "text": "2+2"}, {"type": "python_output", "text": "4"},
                                             {"type": "text", "text": "4."}]}  # fmt: skip
    longer = [{"role": "system", "content": "Be brief."}, *TURN, {"role": "user", "content": "Sure?"}, tool]
    assert client.post("/feedback", json=body()).json() == {"stored": True}
    assert client.post("/feedback", json=body(messages=longer, rating="up", better=None)).json() == {"stored": True}
    assert client.get("/feedback").json() == {"enabled": True, "count": 2}
    with pytest.raises(SystemExit) as end:
        main(["feedback", "export", str(store.path), "--out", str(tmp_path / "out"), "--json"])
    assert end.value.code == 0
    assert json.loads(capsys.readouterr().out) == {"said": 2, "sft": 2, "pairs": 1}
    learned = [render(c["messages"], tok) for c in read_conversations(tmp_path / "out" / "sft.jsonl", check=parse_messages)]
    texts = [tok.decode([token for token, kept in zip(ids, mask, strict=True) if kept]) for ids, mask in learned]
    assert texts == ["It is 4.", "2+24."]
    pair = json.loads((tmp_path / "out" / "pairs.jsonl").read_text())
    assert pair == {"prompt": ASKED, "chosen": [{"role": "assistant", "content": "It is 4."}], "rejected": TURN[1:]}


def test_a_liked_answer_is_preferred_to_a_disliked_one_of_the_same_prompt(store, tmp_path):
    for number, (text, rating) in enumerate([("Four.", "up"), ("Five.", "down"), ("Six.", "down"), ("4", None)]):
        messages = [*ASKED, {"role": "assistant", "content": text}]
        store.put(Feedback(conversation=f"c{number}", messages=messages, rating=rating))
    store.put(Feedback(conversation="other", messages=[{"role": "user", "content": "Hi"}, TURN[1]], rating="up"))
    assert export(store, tmp_path / "out") == {"said": 4, "sft": 2, "pairs": 2}
    pairs = [json.loads(line) for line in (tmp_path / "out" / "pairs.jsonl").read_text().splitlines()]
    assert [(p["chosen"][0]["content"], p["rejected"][0]["content"]) for p in pairs] == [("Four.", "Five."), ("Four.", "Six.")]


def test_what_is_said_again_replaces_and_nothing_forgets(store):
    assert store.put(Feedback(**body()))
    assert store.put(Feedback(**body(rating="up", better="  ")))
    (row,) = store.rows()
    assert (row["rating"], row["better"]) == ("up", None)
    assert store.put(Feedback(**body(conversation="c2", rating="up")))
    assert not store.put(Feedback(**body(rating=None, better=None)))
    assert [row["conversation"] for row in store.rows()] == ["c2"]


@pytest.mark.parametrize(
    ("changes", "param", "said"),
    [
        ({"rating": "good"}, "rating", "'up' or 'down'"),
        ({"messages": ASKED}, None, "must end with the answer"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [*ASKED, {"role": "assistant", "content": ""}]}, None, "must end with the answer"),
        ({"messages": [*ASKED, {"role": "robot", "content": "x"}]}, "messages[1].role", "'assistant'"),
        ({"better": 4}, "better", "valid string"),
        ({"better": "x" * 100_001}, "better", "100000"),
        ({"conversation": ""}, "conversation", "at least 1"),
    ],
)
def test_a_wrong_field_is_named(serving, engine, store, changes, param, said):
    client = serving(engine, feedback_store=store)
    response = client.post("/feedback", json=body(**changes))
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param
    assert said in response.json()["error"]["message"]
    assert store.count() == 0


def test_broken_bodies_and_a_server_without_the_flag(serving, engine, store):
    client = serving(engine, feedback_store=store)
    for raw in (b"", b"[]", b"{", b'{"conversation": "c", "messages": [' + b"[" * 5000):
        response = client.post("/feedback", content=raw, headers={"Content-Type": "application/json"})
        assert response.status_code == 400, raw[:50]
    off = serving(engine)
    assert off.get("/feedback").json() == {"enabled": False, "count": 0}
    response = off.post("/feedback", json=body())
    assert (response.status_code, response.json()["error"]["code"]) == (404, "feedback_off")


def test_many_at_once_lose_nothing(serving, engine, store):
    client = serving(engine, feedback_store=store)
    others = FeedbackStore(store.path)  # as another process would

    def work(number):
        for turn in range(5):
            assert client.post("/feedback", json=body(conversation=f"{number}-{turn}")).status_code == 200
            others.put(Feedback(**body(conversation=f"other {number}-{turn}")))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 60


def test_a_new_file_that_several_open_at_once_is_ours(tmp_path):
    """The workers of `serve --workers N`: one saw the file before the other had said whose it is."""
    together, opened = threading.Barrier(6), []

    def open_each():
        for round_ in range(20):
            together.wait(20)
            opened.append(FeedbackStore(tmp_path / f"{round_}.db").count())

    threads = [threading.Thread(target=open_each) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert opened == [0] * 120


def test_a_full_file_is_said_and_stays_whole(serving, engine, tmp_path):
    store = FeedbackStore(tmp_path / "said.db", most_bytes=64 * 1024)
    client = serving(engine, feedback_store=store)
    answers = [client.post("/feedback", json=body(conversation=f"c{n}", better="x" * 9000)) for n in range(8)]
    assert [a.status_code for a in answers[-2:]] == [507, 507]
    assert answers[-1].json()["error"]["code"] == "feedback_full"
    assert store.count() == sum(a.status_code == 200 for a in answers) > 2
    assert store.path.stat().st_size <= 64 * 1024
    assert client.post("/feedback", json=body(conversation="c0", rating=None, better=None)).json() == {"stored": False}


def test_a_locked_file_is_said(serving, engine, store, monkeypatch):
    connect = sqlite3.connect
    monkeypatch.setattr(sqlite3, "connect", lambda path, timeout: connect(path, timeout=0.05))
    client = serving(engine, feedback_store=store)
    blocker = connect(store.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    response = client.post("/feedback", json=body())
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    blocker.close()
    assert client.post("/feedback", json=body()).status_code == 200


def test_other_files_are_refused(tmp_path, capsys):
    text, other = tmp_path / "notes.db", tmp_path / "other.db"
    text.write_text("a text that is no database " * 200)
    database = sqlite3.connect(other)
    database.execute("CREATE TABLE t (x)")
    database.close()
    for path in (text, other):
        with pytest.raises(ValueError, match="Accepted: a new file, or one of ours"):
            FeedbackStore(path)
    with pytest.raises(SystemExit) as end:
        main(["feedback", "export", str(tmp_path / "nothing.db"), "--out", str(tmp_path / "out")])
    assert end.value.code == 2
    assert "nothing.db does not exist" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_that_is_moved_away_or_replaced_while_it_is_served(serving, engine, store):
    """A sibling of F46: every answer said "no such table" for ever, and the count was a 500."""
    client = serving(engine, feedback_store=store)
    assert client.post("/feedback", json=body()).json() == {"stored": True}
    for name in (store.path.name, store.path.name + "-wal", store.path.name + "-shm"):
        (store.path.parent / name).unlink(missing_ok=True)
    assert client.post("/feedback", json=body()).json() == {"stored": True}
    assert client.get("/feedback").json() == {"enabled": True, "count": 1}
    store.path.write_bytes(b"something else" * 1000)
    for response in (client.post("/feedback", json=body()), client.get("/feedback")):
        assert (response.status_code, response.json()["error"]["code"]) == (503, "feedback_busy")
    store.path.unlink()
    assert client.post("/feedback", json=body()).json() == {"stored": True}
