"""Each family end to end, its real tokenizer and a random model of its shape, against sentence-transformers."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from tests.engine.tokenizer_folders import append_end_of_text, set_keys
from tests.models.oracle import add_noise

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
TEXTS = [
    "",
    "hello",
    "The weather is lovely today. " * 5,
    "今天天气很好。",
    "naïve café 🙂" * 9,
    "word " * 300,
    "<pad> a <pad>",
]
FAMILIES: dict[str, tuple[str, str, str, dict[str, Any]]] = {
    "qwen3-embedding": ("Qwen3", "qwen3", "lasttoken", {"vocab_size": 151936, "num_key_value_heads": 2}),
    "gte-qwen2": ("Qwen2", "qwen2", "lasttoken", {"vocab_size": 151936, "num_key_value_heads": 2, "is_causal": False}),
    "bge-m3": ("XLMRoberta", "xlm-roberta", "cls", {"vocab_size": 250002, "max_position_embeddings": 130}),
    "nomic-embed": ("NomicBert", "bert-base-uncased", "mean", {"vocab_size": 30528}),
    "roberta": ("Roberta", "roberta-base", "mean", {"vocab_size": 50265, "max_position_embeddings": 130}),
}


def save(folder: Path, tokenizers: Path, family: str) -> None:
    """A checkpoint as its authors lay it out: transformer, pooling, normalize."""
    name, tokenizer, pooling, shape = FAMILIES[family]
    torch.manual_seed(0)
    plain = folder / "plain"
    model = getattr(transformers, f"{name}Model")(getattr(transformers, f"{name}Config")(**{**SHAPE, **shape}))
    add_noise(model)
    model.save_pretrained(plain)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        if (tokenizers / tokenizer / file).exists():
            shutil.copy(tokenizers / tokenizer / file, plain / file)
    if family == "qwen3-embedding":
        append_end_of_text(plain / "tokenizer.json")
    if tokenizer.startswith("qwen"):
        # With a chat template, sentence-transformers would write a checkpoint that reads messages, not texts.
        set_keys(plain / "tokenizer_config.json", chat_template=None)
    modules = pytest.importorskip("sentence_transformers.models")
    transformer = modules.Transformer(str(plain), max_seq_length=120)
    chain = [transformer, modules.Pooling(SHAPE["hidden_size"], pooling), modules.Normalize()]
    prompts = {"query": "Instruct: find it\nQuery:", "document": ""}
    sentence_transformers.SentenceTransformer(modules=chain, prompts=prompts, device="cpu").save(
        str(folder / "saved"), create_model_card=False
    )
    if family == "nomic-embed":
        # The authors' own code, which neither side runs.
        set_keys(folder / "saved" / "config.json", auto_map={"AutoModel": "nomic-ai/code--modeling.NomicBertModel"})
    if family == "gte-qwen2":
        set_keys(folder / "saved" / "tokenizer_config.json", add_eos_token=True)


@pytest.mark.parametrize("family", FAMILIES)
def test_equals_sentence_transformers(family: str, assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets / "tokenizers", family)
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    if family == "gte-qwen2":
        theirs.tokenizer.add_eos_token = True  # transformers 5 does not read the key where there is a tokenizer.json
    with Model(str(tmp_path / "saved")) as model:
        for prompt_name in ("query", "document"):
            expected = theirs.encode(TEXTS, prompt_name=prompt_name, batch_size=3, show_progress_bar=False)
            ours = model.embed(TEXTS, prompt_name=prompt_name)
            assert np.abs(ours - expected).max() <= 1e-5
        assert np.array_equal(np.stack([model.embed(text) for text in TEXTS]), model.embed(TEXTS))


def test_info_names_the_family(assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets / "tokenizers", "roberta")
    hf = json.loads((tmp_path / "saved" / "config.json").read_text())
    (tmp_path / "saved" / "config.json").write_text(json.dumps({k: v for k, v in hf.items() if k != "model_type"}))
    with Model(str(tmp_path / "saved")) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("roberta", 120)
