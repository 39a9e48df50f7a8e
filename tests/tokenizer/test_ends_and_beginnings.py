"""Which special tokens begin a document and end a reply, in a tokenizer of our own and in those of others."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nutshell.tokenizer import SPECIAL_TOKENS, Tokenizer, _bpe
from nutshell.tokenizer.huggingface import BEGINNINGS, ENDS

OTHERS = ("<|end_of_text|>", "<|eot_id|>", "<|im_end|>", "[INST]")


@given(names=st.lists(st.sampled_from(sorted({*SPECIAL_TOKENS, *BEGINNINGS, *ENDS, *OTHERS})), unique=True))
def test_any_special_tokens(names, tmp_path_factory):
    """The engine, `generation_config.json` and `tokenizer_config.json` name the same; a Llama 3's were not known to the last."""
    tok = Tokenizer._of(_bpe.Encoder([], "gpt2", names))
    begins = [name for name in BEGINNINGS if name in names]
    folder = tmp_path_factory.mktemp("tok")
    tok.save(folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    assert config.get("bos_token") == (begins[0] if begins else None)
    assert config.get("eos_token") == next((name for name in ENDS if name in names), None)
    if not begins:
        with pytest.raises(ValueError, match="no special token that begins a document"):
            _ = tok.end_ids
        return
    assert tok.bos_id == tok.special_tokens[begins[0]]
    wanted = {tok.special_tokens[n] for n in ("<|assistant_end|>", "<|user_start|>", "<|end_of_text|>") if n in names}
    assert set(tok.end_ids) == wanted | {tok.bos_id}
