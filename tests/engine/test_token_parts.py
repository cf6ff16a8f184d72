"""The tokens of a long text part by part are those of the whole, places and all.

After some characters that sentencepiece's normalizer changes, the library's places of a whole text are one off; they
are less so in parts, and are not compared.
"""

import random
from pathlib import Path

import pytest

from rtp_llm.engine import token_parts as module
from rtp_llm.engine.token_parts import token_parts
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import RequestTooLarge
from tests.engine.test_tokenizer_cuts import NAMES, load, random_texts

BY_CHARSMAP = ("xlm-roberta", "albert", "deberta-v2 of transformers 4")  # those that have sentencepiece's normalizer


@pytest.mark.parametrize("special", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_parts_are_the_whole(name: str, special: bool, assets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CHARACTERS", 20)
    tokenizer, cut = load(assets, name), 0
    for text in ["", " " * 99, *random_texts(5, 300, 400)]:
        parts = list(token_parts(tokenizer, text, add_special_tokens=special))
        tokens, whole = (
            [token for part in parts for token in part.tokens],
            tokenizer.tokens(text, add_special_tokens=special),
        )
        assert [(token.id, token.text) for token in tokens] == [(token.id, token.text) for token in whole]
        assert tokens == whole or name in BY_CHARSMAP
        assert [part.start for part in parts] + [len(text)] == [0] + [part.stop for part in parts]
        cut += len(parts) > 4
    assert cut > 100


def test_a_text_that_cannot_be_cut_is_bounded(assets: Path) -> None:
    tokenizer = load(assets, NAMES[0])
    with pytest.raises(RequestTooLarge, match="has 200001 characters, the limit is 200000"):
        list(token_parts(tokenizer, "x" * 200_001))
    assert sum(len(part.tokens) for part in token_parts(tokenizer, "x " * 200_001)) > 200_000


def test_of_an_unknown_make_there_is_one_part(assets: Path) -> None:
    tokenizer: Tokenizer = load(assets, NAMES[0])
    tokenizer.cuts = None
    text = "".join(random.Random(1).choices("ab ", k=40_000))
    (part,) = token_parts(tokenizer, text)
    assert part.tokens == tokenizer.tokens(text)
