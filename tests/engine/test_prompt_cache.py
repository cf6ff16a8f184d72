"""What is kept of callers' prompts is bounded in characters, however many and however long they are."""

from pathlib import Path

import pytest

from rtp_llm.core import Params
from rtp_llm.engine.prompt_cache import PromptCache
from tests.engine.tokenizer_folders import make


def test_a_value_comes_back_for_its_prompt_and_kind() -> None:
    cache = PromptCache[int]()
    cache.put("a", 1)
    cache.put("a", 2, special=False)
    assert [cache.get("a"), cache.get("a", special=False), cache.get("b")] == [1, 2, None]


@pytest.mark.parametrize("length", [1, 1000, 100_000, 2_000_000])
def test_all_prompts_together_are_bounded(length: int) -> None:
    cache = PromptCache[int]()
    for number in range(5000):
        cache.put(f"{number:08}"[-length:] + "x" * (length - 8), number)
        if length > 1000 and number > 50:
            break
    kept = sum(len(prompt) for prompt, _ in cache._values)
    assert cache._values and (kept <= 1 << 20 or len(cache._values) == 1) and len(cache._values) <= 4096


def test_prompts_of_requests_do_not_fill_memory(assets: Path, tmp_path: Path) -> None:
    from rtp_llm.engine.tokenizer import Tokenizer

    tokenizer = Tokenizer(make("qwen3-embedding", assets, tmp_path), max_seq_len=8192)
    for number in range(20):
        tokenizer.encode(["a"], Params(prompt=f"{number}" + "the weather " * 10_000))
    assert sum(len(prompt) for prompt, _ in tokenizer._prompt_lengths._values) <= 1 << 20
