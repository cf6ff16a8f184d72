"""EmbeddingGemma and e5-mistral as their authors lay them out, small and random, against sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from tests.backends import BACKENDS
from tests.engine.test_decoder_tokenizers import CASES, TEXTS
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.models")

SHAPE: dict[str, Any] = {
    "vocab_size": 440, "hidden_size": 32, "num_hidden_layers": 6, "num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, str]]] = {
    # name: transformers' stem, its own configuration, prompts
    "embeddinggemma": (
        "Gemma3Text",
        {"use_bidirectional_attention": True, "sliding_window": 8, "query_pre_attn_scalar": 16, "pad_token_id": 0},
        {"query": "task: search result | query: ", "document": "title: none | text: "},
    ),
    "e5-mistral": (
        "Mistral",
        {"sliding_window": 16, "pad_token_id": 2, "num_attention_heads": 4, "num_key_value_heads": 2},
        {"query": "Instruct: he drove to\nQuery: ", "document": ""},
    ),
}


def save(folder: Path, family: str) -> Any:
    """The sentence-transformers folder `saved` -> sentence-transformers' model of it."""
    stem, own, prompts = FAMILIES[family]
    torch.manual_seed(0)
    plain = folder / "plain"
    model = getattr(transformers, f"{stem}Model")(getattr(transformers, f"{stem}Config")(**{**SHAPE, **own}))
    add_noise(model)
    model.save_pretrained(plain)
    _, make, config, _ = CASES[family]
    make().save(str(plain / "tokenizer.json"))
    pad = {"pad_token": "</s>"} if family == "e5-mistral" else {}
    (plain / "tokenizer_config.json").write_text(json.dumps({**config, **pad}))
    chain = [modules.Transformer(str(plain), max_seq_length=48)]
    if family == "embeddinggemma":
        identity = torch.nn.Identity()
        wide, narrow = (modules.Dense(*sizes, False, activation_function=identity) for sizes in ((32, 128), (128, 32)))
        chain += [modules.Pooling(32, "mean"), wide, narrow]
    else:
        chain += [modules.Pooling(32, "lasttoken")]
    chain.append(modules.Normalize())
    theirs = sentence_transformers.SentenceTransformer(modules=chain, prompts=prompts, device="cpu")
    theirs.save(str(folder / "saved"), create_model_card=False)
    return sentence_transformers.SentenceTransformer(str(folder / "saved"), device="cpu")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_equals_sentence_transformers(family: str, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, family)
    with loaded(tmp_path / "saved", backend) as model:
        for prompt_name in ("query", "document"):
            expected: FloatArray = theirs.encode(TEXTS, prompt_name=prompt_name, batch_size=3, show_progress_bar=False)
            ours = model.embed(TEXTS, prompt_name=prompt_name)
            assert np.abs(ours - expected).max() <= 1e-5
        if family == "embeddinggemma":
            sliced = theirs.encode(TEXTS, truncate_dim=8, normalize_embeddings=True, show_progress_bar=False)
            assert np.abs(model.embed(TEXTS, dimensions=8) - sliced).max() <= 1e-5
        if backend != "torch":
            assert np.array_equal(np.stack([model.embed(text) for text in TEXTS]), model.embed(TEXTS))


def save_language_model(folder: Path, case: str = "e5-mistral", **own: Any) -> None:
    """A causal language model as transformers writes it, without sentence-transformers' files."""
    torch.manual_seed(0)
    shape = {**SHAPE, **FAMILIES["e5-mistral"][1], **own}
    model = transformers.MistralForCausalLM(transformers.MistralConfig(**shape))
    add_noise(model)
    model.save_pretrained(folder)
    _, make, config, _ = CASES[case]
    make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "</s>"}))


@pytest.mark.parametrize(("own", "mode"), [({}, "lasttoken"), ({"is_causal": False}, "mean")])
def test_without_modules_json_of_a_causal_language_model_the_last_token(
    own: dict[str, Any], mode: str, tmp_path: Path
) -> None:
    save_language_model(tmp_path, **own)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu")
    assert theirs[1].pooling_mode == mode
    with loaded(tmp_path, "native") as model:
        assert model.info.pooling == mode
        ours = model.embed(TEXTS)
    assert np.abs(ours - theirs.encode(TEXTS, batch_size=1, show_progress_bar=False)).max() <= 1e-5


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_text_that_is_all_prompt_has_no_last_token(backend: str, tmp_path: Path) -> None:
    save_language_model(tmp_path / "plain", "mistral")
    chain = [modules.Transformer(str(tmp_path / "plain")), modules.Pooling(32, "lasttoken", include_prompt=False)]
    theirs = sentence_transformers.SentenceTransformer(modules=chain, prompts={"query": "he drove to"}, device="cpu")
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    texts = ["", " stadium", "", " the weather is lovely"]
    expected = theirs.encode(texts, prompt_name="query", batch_size=1, show_progress_bar=False)
    assert not expected[0].any() and expected[1].any()
    with loaded(tmp_path / "saved", backend) as model:
        assert np.abs(model.embed(texts, prompt_name="query") - expected).max() <= 1e-5
        assert not model.embed("", prompt_name="query").any()
