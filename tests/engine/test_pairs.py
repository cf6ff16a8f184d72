"""How pairs over the limit are cut in FlagEmbedding's way, and the vocabulary's words."""

from pathlib import Path
from typing import Any

import pytest

from rtp_llm.core import Params
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.truncation import only_second
from rtp_llm.errors import InvalidRequest
from tests.conftest import WORDS


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder: Path = tmp_path_factory.mktemp("vocab_only")
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    return Tokenizer(folder, max_seq_len=16, vocab_size=1000)


@pytest.mark.parametrize("first", [0, 1, 7, 8, 9, 30])
@pytest.mark.parametrize("second", [0, 3, 12, 40])
def test_three_quarters_for_the_first(first: int, second: int) -> None:
    kept = only_second(first, second, room=9, limit=12)
    assert kept == (min(first, 9), min(second, 9 - min(first, 9)))


@pytest.mark.parametrize(
    ("pair", "lengths"),
    [
        (("the " * 30, "weather " * 30), (12, 1)),
        (("the " * 5, "weather " * 30), (5, 8)),
        (("the " * 14, "is"), (12, 1)),
        (("the " * 14, ""), (12, 0)),
        (("the " * 13, ""), (12, 0)),
        (("", "weather " * 30), (0, 13)),
        (("the is", "weather"), (2, 1)),
        (("", ""), (0, 0)),
    ],
)
def test_only_second(tokenizer: Tokenizer, pair: tuple[str, str], lengths: tuple[int, int]) -> None:
    (item,) = tokenizer.encode([pair], Params(truncation="only_second"))
    assert item.token_type_ids is not None
    assert (item.token_type_ids == 0).sum() == lengths[0] + 2
    assert (item.token_type_ids == 1).sum() == lengths[1] + 1
    assert item.truncated == (sum(lengths) < sum(len(text.split()) for text in pair))
    if item.truncated:
        with pytest.raises(InvalidRequest, match="the limit is 16"):
            tokenizer.encode([pair], Params(truncation="only_second", truncate=False))


@pytest.mark.parametrize("text", ["the", "the " * 40])
def test_a_single_text_is_cut_as_ever(tokenizer: Tokenizer, text: str) -> None:
    (item,), (as_ever,) = (tokenizer.encode([text], params) for params in (Params(truncation="only_second"), Params()))
    assert item.input_ids.tolist() == as_ever.input_ids.tolist() and item.truncated == as_ever.truncated


def test_pieces_name_each_id_apart(tokenizer: Tokenizer) -> None:
    assert len({tokenizer.piece(token_id) for token_id in range(1000)}) == 1000


@pytest.mark.parametrize(("most", "kept"), [(None, 6), (1, 1), (6, 6), (9, 6)])
@pytest.mark.parametrize("truncation", ["longest_first", "only_second"])
def test_max_tokens_per_doc(tokenizer: Tokenizer, most: int | None, kept: int, truncation: Any) -> None:
    params = Params(max_tokens_per_doc=most, truncation=truncation, truncate=False)
    (item,) = tokenizer.encode([("he drove", "the weather is lovely today !")], params)
    assert item.token_type_ids is not None and (item.token_type_ids == 1).sum() == kept + 1
    assert item.truncated == (kept < 6)
    whole = [token.id for token in tokenizer.tokens(("he drove", "the weather is lovely today !"))]
    assert item.input_ids.tolist() == [*whole[: 4 + kept], whole[-1]]


def test_a_document_cut_to_its_own_limit_still_has_to_fit(tokenizer: Tokenizer) -> None:
    with pytest.raises(InvalidRequest, match="the limit is 16"):
        tokenizer.encode([("he", "a b c " * 9)], Params(max_tokens_per_doc=20, truncate=False))
