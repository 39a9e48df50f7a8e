"""`nutshell push` against a hub on this machine: what arrives is a folder that opens, with its card."""

import base64

import pytest
from huggingface_hub import ModelCard

import nutshell
from nutshell import checkpoint
from nutshell.interop.push import with_metadata


def arrived(server, folder):
    """The files of the last commit, written into `folder`."""
    for line in server.commits[-1]:
        if line["key"] == "file":
            path = folder / line["value"]["path"]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(base64.b64decode(line["value"]["content"]))
    return folder


@pytest.mark.parametrize("exported", [False, True])
def test_what_arrives_is_the_model_with_a_card(hub_server, command, portable, tmp_path, exported):
    model = portable
    if exported:
        model = tmp_path / "export"
        assert command("export", "hf", portable, model)[0] == 0
    code, out, err = command("push", model, "me/acorn", "--tags", "tiny", "--licence", "mit", "--private")
    assert code == 0, err
    assert out.strip().startswith(f"{hub_server.url}/me/acorn/commit/")
    folder = arrived(hub_server, tmp_path / "arrived")
    assert {path.name for path in folder.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json", "README.md"}
    card = (folder / "README.md").read_text()
    head = ["library_name: transformers", "pipeline_tag: text-generation", "tags:", "- nutshell", "- tiny", "license: mit"]
    assert card.splitlines()[:8] == ["---", *head, "---"]
    assert (folder / "model.safetensors").read_bytes() == (portable / "model.safetensors").read_bytes()
    if exported:
        assert (model / "README.md").read_text() != card, "the user's folder stays as it is"


def test_a_run_is_pushed_as_its_newest_model(hub_server, command, portable, tmp_path):
    model, tok = nutshell.load(portable)
    checkpoint.save_model_folder(tmp_path / "run" / "sft" / "step-000001", model, tok)
    (tmp_path / "run" / "plan.json").write_text("{}")
    code, _, err = command("push", tmp_path / "run", "me/acorn")
    assert code == 0, err
    assert "# step-000001" in (arrived(hub_server, tmp_path / "arrived") / "README.md").read_text()


def test_gguf_goes_up_as_it_is(hub_server, command, portable, tmp_path):
    assert command("export", "gguf", portable, tmp_path / "gguf")[0] == 0
    code, _, err = command("push", tmp_path / "gguf", "me/acorn")
    assert code == 0, err
    folder = arrived(hub_server, tmp_path / "arrived")
    assert {path.name for path in folder.iterdir()} == {"README.md", *(path.name for path in (tmp_path / "gguf").iterdir())}
    assert (folder / "README.md").read_text().startswith("---\ntags:\n- nutshell\n---\n")


@pytest.mark.parametrize(
    ("fault", "says"),
    [
        (401, "the hub refuses (401)"),
        (403, "the hub refuses (403)"),
        ([503] * 99, "answers 503"),
        ([429] * 99, "slow down (429)"),
    ],
)
def test_what_the_hub_refuses_is_one_line(hub_server, refused, portable, tmp_path, fault, says):
    hub_server.faults["me/acorn"] = fault if isinstance(fault, list) else [fault]
    refused(tmp_path, says, "push", portable, "me/acorn")
    assert hub_server.commits == []


def test_offline_asks_nobody(hub_server, refused, portable, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    refused(tmp_path, "HF_HUB_OFFLINE is set", "push", portable, "me/acorn")
    assert hub_server.requests == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["acorn"], "accepted: OWNER/NAME"),
        (["me/acorn", "--tags", "two words"], "'two words' is no tag"),
        (["me/acorn", "--licence", "mit\nevil: 1"], "is no tag or licence"),
    ],
)
def test_bad_names(hub_server, refused, portable, tmp_path, arguments, says):
    refused(tmp_path, says, "push", portable, *arguments)
    assert hub_server.requests == []


def test_a_folder_that_is_no_model(hub_server, refused, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(tmp_path, "empty", "push", tmp_path / "empty", "me/acorn")


@pytest.mark.parametrize(
    ("head", "known"),
    [
        ("", ["nutshell"]),
        ("---\ntags: [b, a]\nlicense: gpl\n---\n", ["b", "a"]),
        ("---\ntags:\n  - b\n---\n", ["b"]),
        ("---\nlicense: x\n---\n", []),
    ],
)
def test_a_card_gets_tags_and_a_licence_whatever_its_head(head, known):
    """A list of tags on lines of its own was left as it was, and a licence stood twice, which the hub refuses."""
    card = ModelCard(with_metadata(f"{head}# Mine\n", ("a", "yes"), "mit"))
    assert (card.data["tags"], card.data["license"]) == ([*dict.fromkeys([*known, "a", "yes"])], "mit")
    assert card.text.strip() == "# Mine"


def test_a_card_whose_head_is_no_yaml_is_refused():
    with pytest.raises(ValueError, match=r"the header of README\.md cannot be read"):
        with_metadata("---\n: : [\n---\n# Mine\n", ("a",), "mit")
