"""BGE-M3 and bge-reranker in their authors' shape: XLM-R with its real tokenizer, random weights."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import loaded
from tests.tasks.test_bge_m3 import Reference, check_sparse

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

LIMIT = 62
SHAPE = {
    "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 50, "vocab_size": 250002,
    "max_position_embeddings": LIMIT + 2, "type_vocab_size": 1, "pad_token_id": 1, "layer_norm_eps": 1e-5,
}  # fmt: skip
TEXTS = [
    "What is BGE M3?",
    "",
    "今天天气很好。🙂",
    "naïve café — “quotes” <unk> <pad>",
    "word " * 100,
    "what What ▁what",
]
PAIRS = [("what is panda?", "hi"), ("", "a"), ("word " * 80, "passage " * 80), ("query", "今天天气很好。" * 30)]


def save(folder: Path, assets: Path, head: str, **options: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.XLMRobertaConfig(**SHAPE, **options)
    model = getattr(transformers, f"XLMRoberta{head}")(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    shutil.copy(assets / "tokenizers" / "xlm-roberta" / "tokenizer.json", folder / "tokenizer.json")
    roles = {"bos": "<s>", "eos": "</s>", "cls": "<s>", "sep": "</s>", "unk": "<unk>", "pad": "<pad>"}
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": LIMIT}
    settings["model_input_names"] = ["input_ids", "attention_mask"]
    settings |= {f"{role}_token": token for role, token in roles.items()}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return model


def test_bge_m3(assets: Path, tmp_path: Path) -> None:
    model = save(tmp_path, assets, "Model")
    sparse, colbert = torch.nn.Linear(36, 1), torch.nn.Linear(36, 36)
    for name, layer in (("sparse_linear.pt", sparse), ("colbert_linear.pt", colbert)):
        torch.save(layer.state_dict(), tmp_path / name)
    reference = Reference(tmp_path, (model, sparse, colbert), LIMIT)
    with loaded(tmp_path, "native") as ours:
        assert ours.info.max_seq_len == LIMIT
        outputs = ours.embed_all(TEXTS, return_tokens=True)
        scores = {kind: ours.similarity(TEXTS[:2], TEXTS[2:], kind=kind) for kind in ("dense", "sparse", "colbert")}
    expected = [reference.encode(text) for text in TEXTS]
    for place, (dense, _, vectors) in enumerate(expected):
        assert np.abs(outputs["dense"][place] - dense).max() <= 1e-5
        assert outputs["colbert"][place].shape == vectors.shape
        assert np.abs(outputs["colbert"][place] - vectors).max() <= 1e-5
    check_sparse(outputs["sparse"], [weights for _, weights, _ in expected])
    assert all(len(set(vector.tokens)) == len(vector.indices) for vector in outputs["sparse"])
    special = {0, 1, 2, 3}
    assert not special & {index for vector in outputs["sparse"] for index in vector.indices.tolist()}
    for i, query in enumerate(TEXTS[:2]):
        for j, passage in enumerate(TEXTS[2:]):
            pair = reference.score(query, passage, (1, 1, 1))
            assert all(abs(scores[kind][i, j] - pair[kind]) <= 1e-5 for kind in scores)


def test_bge_reranker(assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets, "ForSequenceClassification", num_labels=1)
    theirs = sentence_transformers.CrossEncoder(str(tmp_path), device="cpu")
    expected = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
    with loaded(tmp_path, "native") as model:
        assert model.info.tasks == (TaskType.RERANK, TaskType.CLASSIFY)
        ours = [model.rerank(query, [document], activation="none")[0].score for query, document in PAIRS]
    assert np.abs(np.array(ours) - expected).max() <= 1e-5
