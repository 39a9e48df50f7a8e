"""What the page shows of the training: stages and steps, two side by side, texts gone on with, tokens."""

import pytest
import torch
from driver import done, focused, last_answer, reload, say

from nutshell.checkpoint import load
from nutshell.infer.engine import Engine
from nutshell.serve.models import Models

pytestmark = pytest.mark.browser


@pytest.fixture
def page(open_page, serving, run, eventually):
    """The page of a server that offers a whole run: random weights, 64 tokens of context, answers of 8 tokens."""

    def open_engine(folder):
        model, tok = load(folder)
        return Engine(model.for_inference(), tok, max_rows=2)

    models = Models("run", max_queue=8, folder=run)
    client = serving(None, models=models, open_engine=open_engine)
    eventually(lambda: models.started, seconds=20)
    page = open_page(client=client)
    page.set_default_timeout(8000)
    page.wait_for_selector("#model option", state="attached")
    page.click("#open-settings")
    page.fill("#max-tokens", "8")
    page.fill("#temperature", "1")
    page.fill("#seed", "2")  # the model's weights are drawn from a seed too: what is said is always the same
    page.keyboard.press("Escape")
    return page


def texts(page):
    return page.locator("article.assistant .body").all_inner_texts()


def test_a_stage_or_step_answers_each_conversation(page):
    groups = page.locator("#model optgroup")
    assert [groups.nth(at).get_attribute("label") for at in range(groups.count())] == ["pretrain", "midtrain", "sft"]
    assert page.locator("#model optgroup[label=sft] option").all_inner_texts() == ["sft, newest", "step 3", "step 7"]
    page.select_option("#model", "run/sft/step-000003")
    say(page, "a")
    page.click("#new-chat")
    say(page, "b")
    assert [body["model"] for body in page.requests] == ["run/sft/step-000003", "run"]
    page.click("#chats li:last-child .open")
    assert page.input_value("#model") == "run/sft/step-000003"
    page.select_option("#model", "run/midtrain")
    page.click("button.regenerate")
    done(page)
    assert page.requests[-1]["model"] == "run/midtrain"
    assert "2/2" in page.inner_text(".assistant .versions")
    reload(page)
    page.wait_for_selector("#model option", state="attached")
    assert page.input_value("#model") == "run/midtrain"


def test_the_gauge_and_going_on_after_the_longest_length(page):
    say(page, "a")
    assert "longest length" in page.inner_text(".assistant .note")
    first, used = last_answer(page), int(page.get_attribute("#context", "value"))
    assert page.inner_text("#context-said") == f"{used} of 64 tokens of context"
    page.click(".resume")
    done(page)
    assert page.requests[1]["messages"][1]["role"] == "assistant"
    assert page.locator("article").count() == 2
    assert len(last_answer(page)) >= len(first)
    assert int(page.get_attribute("#context", "value")) >= used + 8  # bytes that are no text become longer
    assert page.inner_text(".stats").startswith("16 tokens")
    assert focused(page) == "question"


def test_two_models_side_by_side_with_one_seed(page):
    page.select_option("#compare", "run")
    say(page, "a")
    assert len(set(texts(page))) == 1  # the same model and seed say the same
    assert page.requests[0]["seed"] == page.requests[1]["seed"]
    page.select_option("#compare", "run/pretrain")
    page.locator("button.regenerate:visible").first.click()
    done(page)
    left, right = texts(page)
    assert left != right
    for _ in range(3):  # in this order each time
        page.locator("button.regenerate:visible").first.click()
        done(page)
    left, right = texts(page)
    assert page.locator(".pair .name").all_inner_texts() == ["run", "run/pretrain"]
    assert [body["model"] for body in page.requests[2:]] == ["run", "run/pretrain"] * 4
    page.click(".choose:visible")
    page.select_option("#compare", "")
    say(page, "b")
    assert page.requests[-1]["messages"][1]["content"].strip() == right
    reload(page)
    assert len(texts(page)) == 3


def test_a_base_model_goes_on_with_a_text(page):
    page.select_option("#model", "run/pretrain")
    assert page.get_attribute("#kind-text", "aria-pressed") == "true"
    say(page, "Once upon")
    assert page.requests[0]["prompt"] == "Once upon"
    assert page.requests[0]["model"] == "run/pretrain"
    page.click("#send")  # nothing written: it goes on
    done(page)
    said = page.evaluate("document.querySelector('article.assistant .body').textContent")
    assert page.requests[1]["prompt"].startswith("Once upon")
    assert "Once upon" + said == page.requests[1]["prompt"] + said[len(page.requests[1]["prompt"]) - len("Once upon") :]
    say(page, " a nut")
    assert page.requests[2]["prompt"] == "Once upon" + said + " a nut"


def test_a_text_goes_on_beyond_the_context(page):
    """A sibling of F26: at 64 tokens the text ended in an error for ever."""
    page.select_option("#model", "run/pretrain")
    page.fill("#question", "Once upon a time there was a small nut in a shell")
    for _ in range(9):
        page.press("#question", "Enter")
        done(page)
    assert page.locator(".error").count() == 0
    assert "its beginning was left out" in page.locator("article.assistant").last.inner_text()


def test_the_token_view_shows_what_the_model_held_likely(page, run):
    page.select_option("#model", "run/pretrain")
    say(page, "Once upon")
    page.click("button.tokens")
    page.wait_for_selector(".token")
    shown = [
        float(title.strip("< %")) for title in page.locator(".token").evaluate_all("nodes => nodes.map(({ title }) => title)")
    ]

    model, tok = load(run / "pretrain" / "step-000020")
    text = page.evaluate("[...document.querySelectorAll('.bubble, .body')].map((node) => node.textContent).join('')")
    ids = [tok.bos_id, *tok.encode(text)]
    with torch.no_grad():
        probabilities = model(torch.tensor([ids]))[0, :-1].softmax(-1)
    taken = [100 * float(row[id]) for row, id in zip(probabilities, ids[1:], strict=True)][-len(shown) :]
    assert len(shown) >= 8
    assert [max(one, 0.1) for one in taken] == pytest.approx(shown, abs=0.3)

    page.locator(".token").nth(1).click()
    assert len(page.locator(".alternatives tr").all()) in (8, 9)  # with the one that was taken
    assert page.locator(".alternatives .taken").count() == 1
    page.keyboard.press("ArrowRight")
    assert page.get_attribute(".token >> nth=2", "aria-selected") == "true"
    page.click("button.tokens")
    assert page.locator(".token-view").count() == 0


def test_what_a_tool_put_out_is_not_the_models_choice(open_page):
    page = open_page()
    say(page, "the sum please")
    page.click("button.tokens")
    page.wait_for_selector(".token")
    given = page.locator(".token[data-level=given]").all_inner_texts()
    assert (given[0], "".join(given[1:-1]), given[-1]) == ("<|output_start|>", "132", "<|output_end|>")
