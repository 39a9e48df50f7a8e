"""The names, keys and origins that a server answers to: F30, F42 (3, 43, 44)."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.serve import server

CHAT = "/v1/chat/completions"
QUESTION = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1}


class StartedError(Exception):
    """The server would have begun to load its model."""


@pytest.fixture
def app_options(monkeypatch):
    """app_options(**options of serve) -> those that its application was made with."""

    def ask(**options):
        made = {}

        def create_app(*args, **given):
            made.update(given)
            raise StartedError

        monkeypatch.setattr(server, "create_app", create_app)
        with pytest.raises(StartedError):
            server.serve("nothing", print, **options)
        return made

    return ask


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "::1"])
def test_f42_a_server_answers_at_the_address_that_it_names(app_options, serving, engine, host):
    """F42 (3): --host 127.0.0.2, host.docker.internal and `localhost.` were 400s, the first at the very address in the log."""
    allowed = app_options(host=host, allow_hosts=["host.docker.internal", "Box.Example."])["allowed_hosts"]
    client = serving(engine, allowed_hosts=allowed)
    names = (f"[{host}]" if ":" in host else host, "localhost.", "LOCALHOST", "127.9.9.9", "host.docker.internal", "box.example")
    for name in names:
        for port in ("", ":80", ":8123"):
            assert client.get("/health", headers={"Host": name + port}).status_code == 200, name
    for name in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "[::2]", "xlocalhost", "box.example.evil"):
        response = client.get("/health", headers={"Host": name})
        assert (response.status_code, response.json()["error"]["code"]) == (400, "unknown_host"), name
        assert "--allow-host" in response.json()["error"]["message"]


def test_f42_a_reused_connection_outlives_the_pauses_of_clients(serving, engine):
    """F42 (43): a connection idle for 5 s was closed under a client that was just using it again."""
    assert serving(engine).server.config.timeout_keep_alive >= 60


HEADER_SIGNS = string.ascii_letters + string.digits + string.punctuation


@given(key=st.text(HEADER_SIGNS, min_size=1, max_size=40), blanks=st.tuples(*[st.text(" \t\r\n", max_size=2)] * 2))
def test_f42_a_key_is_taken_without_its_blanks(key, blanks):
    """F42 (44): a key with a blank or a line end, as a file or a shell leaves it, matched nothing that a client could send."""
    assert server.checked_key(blanks[0] + key + blanks[1], "127.0.0.1", 0) == key


@given(
    key=st.text(HEADER_SIGNS, max_size=5),
    bad=st.characters(exclude_characters=HEADER_SIGNS),
    end=st.text(HEADER_SIGNS, max_size=5),
)
def test_f42_a_key_that_no_header_carries_is_refused(key, bad, end):
    """F42 (44): `schlüssel` was taken, and each client's library then failed to send it."""
    with pytest.raises(ValueError, match="use ASCII letters"):
        server.checked_key(f"{key}a{bad}b{end}", "127.0.0.1", 0)


def test_f42_a_key_may_be_sent_as_clients_do(serving, engine):
    client = serving(engine, api_key="k!~ey")
    for value, status in (("Bearer k!~ey", 200), ("bearer  k!~ey", 200), ("Bearer K!~EY", 401), ("Bearer k!~ey k", 401),
                          (b"Bearer k!~ey\xfc", 401), ("Basic k!~ey", 401)):  # fmt: skip
        assert client.get("/v1/models", headers={"Authorization": value}).status_code == status, value


def test_f30_listed_origins_alone_get_leave_and_errors_are_readable_there(serving, engine):
    """F30: there was no list of origins. A page needs the header on refusals too, or it sees a failed connection."""
    site = "https://app.example"
    client = serving(engine, api_key="right", cors_origins=[site])
    right = {"Authorization": "Bearer right"}
    for origin in (site, "https://evil.example", "https://app.example.evil", "http://app.example", "null"):
        leave = site if origin == site else None
        asked = {"Origin": origin, "Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        before = client.options(CHAT, headers=asked)
        assert (before.status_code == 200, before.headers.get("access-control-allow-origin")) == (origin == site, leave)
        answers = (
            client.post(CHAT, json=QUESTION, headers={"Origin": origin, **right}),
            client.post(CHAT, json=QUESTION, headers={"Origin": origin}),
            client.post(CHAT, json={}, headers={"Origin": origin, **right}),
            client.post(CHAT, content=b" " * (2**21 + 1), headers={"Origin": origin, **right}),
        )
        assert [answer.status_code for answer in answers] == [200, 401, 400, 413]
        assert {answer.headers.get("access-control-allow-origin") for answer in answers} == {leave}
