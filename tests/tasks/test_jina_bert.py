"""JinaBERT end to end: vectors of jina-embeddings-v2 and scores of jina-reranker-v1, against the oracle."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from tests.backends import BACKENDS
from tests.models.jina_bert import save
from tests.tasks.checkpoints import loaded
from tests.tasks.families import LIMIT, PAD, VOCAB, all_lengths, sentences

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

SHAPE: dict[str, Any] = {"vocab_size": len(VOCAB), "max_position_embeddings": LIMIT, "pad_token_id": PAD}


def add_tokenizer(folder: Path) -> Any:
    vocab = {word: i for i, word in enumerate(VOCAB)}
    tokenizer = transformers.BertTokenizer(vocab=vocab, model_max_length=LIMIT)
    tokenizer.save_pretrained(folder)
    return tokenizer


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_vectors(backend: str, normed: bool, tmp_path: Path) -> None:
    theirs, inputs = save(tmp_path, normed, **SHAPE), all_lengths()
    add_tokenizer(tmp_path)
    with torch.no_grad():
        expected = np.stack([theirs(torch.tensor([ids])).last_hidden_state[0].mean(0).numpy() for ids in inputs])
    with loaded(tmp_path, backend) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("jina_bert", LIMIT)
        rows = model.embed(inputs, normalize=False)
        assert np.abs(rows - expected).max() <= 1e-5
        if backend != "torch":
            assert np.array_equal(model.embed(inputs[::-1], normalize=False)[::-1], rows)


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores(backend: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"architectures": ["JinaBertForSequenceClassification"], "num_labels": 1}
    theirs = save(tmp_path, prefix="bert.", **SHAPE, **changes)
    tokenizer, path = add_tokenizer(tmp_path), tmp_path / "model.safetensors"
    torch.manual_seed(1)
    pooler, classifier = torch.nn.Linear(64, 64), torch.nn.Linear(64, 1)
    tensors = {name: values for name, values in safetensors.load_file(path).items() if name.startswith("bert.")}
    for name, layer in (("bert.pooler.dense", pooler), ("classifier", classifier)):
        tensors |= {f"{name}.{kind}": values.data for kind, values in layer.named_parameters()}
    safetensors.save_file(tensors, path)
    query, *documents = sentences()[2:]
    logits = []
    for document in documents:
        encoded = tokenizer(query, document, truncation="longest_first", max_length=LIMIT, return_tensors="pt")
        with torch.no_grad():
            first = theirs(encoded["input_ids"], encoded["token_type_ids"]).last_hidden_state[0, 0]
            logits.append(classifier(torch.tanh(pooler(first))).item())
    with loaded(tmp_path, backend) as model:
        assert model.info.tasks == (TaskType.RERANK, TaskType.CLASSIFY)
        ranked = model.rerank(query, documents, activation="none")
        ours = [entry.score for entry in sorted(ranked, key=lambda entry: entry.index)]
        assert np.abs(np.array(ours) - logits).max() <= 1e-5


def test_colbert_as_its_authors_lay_it_out(tmp_path: Path) -> None:
    """As jina-colbert-v1: the projection beside the encoder's tensors."""
    theirs = save(tmp_path, prefix="bert.", **SHAPE, architectures=["HF_ColBERT"])
    tokenizer, path = add_tokenizer(tmp_path), tmp_path / "model.safetensors"
    torch.manual_seed(1)
    projection = torch.randn(24, 64)
    safetensors.save_file({**safetensors.load_file(path), "linear.weight": projection}, path)
    text = "[unused1] the weather is lovely"
    with torch.no_grad():
        states = theirs(tokenizer(text, return_tensors="pt")["input_ids"]).last_hidden_state[0]
    expected = torch.nn.functional.normalize(states @ projection.T, dim=-1).numpy()
    with loaded(tmp_path) as model:
        assert np.abs(model.embed_colbert([text.removeprefix("[unused1] ")])[0] - expected).max() <= 1e-5
