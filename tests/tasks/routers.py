"""Random checkpoints with a Router: sparse ones that look queries up, dense ones whose routes share a transformer."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, SparseVector
from tests.tasks.checkpoints import LIMIT, VOCAB, save

LONG = "the weather is lovely " * LIMIT
WORDS_AGAIN = ("so so so sunny sunny so", "UNKNOWN unknown words , words", "the [PAD] weather [MASK] [CLS]")


def token_weights(size: int, seed: int = 0) -> Any:
    """[size]; every third is 0, some are negative, as training may leave them."""
    torch = pytest.importorskip("torch")
    weights = torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2 + 3
    weights[::3] = 0
    return weights


def encoder_modules(folder: Path, activation: str = "relu", **shape: Any) -> list[Any]:
    """A masked language model of few words and its pooling."""
    torch = pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    model = save(folder / "plain", "BertForMaskedLM", **shape)
    with torch.no_grad():
        model.cls.predictions.bias.copy_(torch.randn(len(VOCAB), generator=torch.Generator().manual_seed(1)))
    model.save_pretrained(folder / "plain")
    transformer = modules.Transformer(str(folder / "plain"), transformer_task="fill-mask")
    return [transformer, modules.SpladePooling("max", activation)]


def save_sparse(
    folder: Path,
    chain: list[Any] | None = None,
    *,
    limit: int | None = None,
    config: dict[str, Any] | None = None,
    **router: Any,
) -> Path:
    """Documents by a masked language model, queries by their tokens' weights, of at most `limit` tokens.

    `config` goes into config_sentence_transformers.json, `router` to the Router.
    """
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")
    chain = chain or encoder_modules(folder)
    tokenizer = chain[0].tokenizer
    table = modules.SparseStaticEmbedding(tokenizer=tokenizer, weight=token_weights(len(tokenizer.get_vocab())))
    routes = {"query": [table], "document": chain}
    model = library.SparseEncoder(modules=[modules.Router(routes, **{"default_route": "document", **router})])
    model.save(str(folder / "saved"), create_model_card=False)
    if limit is not None:
        set_keys(next((folder / "saved").glob("query_0_*")) / "tokenizer_config.json", model_max_length=limit)
    set_keys(folder / "saved" / "config_sentence_transformers.json", **(config or {}))
    return folder / "saved"


def save_dense(folder: Path, *, is_asym: bool = False, out: int = 24, **router: Any) -> Path:
    """One BERT; queries and documents have a Dense each, and unless `is_asym` a pooling.

    `is_asym`: the layout of the older Asym, whose transformer and pooling come before it.
    """
    torch = pytest.importorskip("torch")
    library = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.sentence_transformer.modules")
    save(folder / "plain")
    transformer = modules.Transformer(str(folder / "plain"))
    torch.manual_seed(5)
    own = {name: modules.Dense(32, out) for name in ("query", "document")}
    pools = {"query": modules.Pooling(32, "mean"), "document": modules.Pooling(32, "mean" if is_asym else "cls")}
    routes = {name: [own[name]] if is_asym else [transformer, pools[name], own[name]] for name in own}
    before = [transformer, pools["query"]] if is_asym else []
    model = library.SentenceTransformer(modules=[*before, modules.Router(routes, **router), modules.Normalize()])
    model.save(str(folder / "saved"), create_model_card=False)
    return folder / "saved"


def dense_of(vectors: list[SparseVector], size: int) -> FloatArray:
    """[vectors, size], after a look at what each of them must be."""
    rows = np.zeros((len(vectors), size), np.float32)
    for row, vector in zip(rows, vectors, strict=True):
        assert vector.values.all() and (np.diff(vector.indices) > 0).all()
        row[vector.indices] = vector.values
    return rows


def set_keys(path: Path, **keys: Any) -> None:
    values = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**values, **keys}))


def as_published(folder: Path) -> Path:
    """The layout of OpenSearch's doc-v2 and doc-v3: the transformer in the folder itself, no sentence_bert_config.json.

    router_config.json has the published file's 638 bytes, whose SHA-256 begins with c3734145.
    """
    (encoder,) = folder.glob("document_0_*")
    for file in encoder.iterdir():
        if file.name != "sentence_bert_config.json":
            file.rename(folder / file.name)
    (encoder / "sentence_bert_config.json").unlink()
    encoder.rmdir()
    names = "SparseStaticEmbedding", "MLMTransformer", "SpladePooling"
    table, masked, pooling = (f"sentence_transformers.sparse_encoder.models.{name}.{name}" for name in names)
    settings = {
        "types": {"query_0_SparseStaticEmbedding": table, "": masked, "document_1_SpladePooling": pooling},
        "structure": {"query": ["query_0_SparseStaticEmbedding"], "document": ["", "document_1_SpladePooling"]},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    (folder / "router_config.json").write_text(json.dumps(settings, indent=4))
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Router"}]
    (folder / "modules.json").write_text(json.dumps(modules))
    return folder


def save_token_weights(folder: Path, weights: Any, name: str = "weight") -> None:
    """Other weights of the queries' words than `save_sparse` has written."""
    from safetensors.torch import save_file

    save_file({name: weights}, folder / "query_0_SparseStaticEmbedding" / "model.safetensors")
