"""A `portable` model behind the server: one answer, whole and streamed."""

from nutshell.infer.engine import Engine
from nutshell.model.build import build_model
from nutshell.model.config import ModelConfig


def test_a_portable_model_is_served(serving, ask, stream, tok):
    config = ModelConfig(
        architecture="portable", vocab_size=tok.vocab_size, depth=2, width=64, heads=4, kv_heads=2, head_dim=16, mlp_width=128,
        context=128, window_pattern="L", bos_id=tok.bos_id,
    )  # fmt: skip
    client = serving(Engine(build_model(config).eval(), tok, max_rows=2))
    whole = ask(client, max_tokens=8, temperature=0.9, seed=7).json()
    assert 1 <= whole["usage"]["completion_tokens"] <= 8
    chunks = [event for event in stream(client, max_tokens=8, temperature=0.9, seed=7) if event != "[DONE]"]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    assert text == whole["choices"][0]["message"]["content"]
