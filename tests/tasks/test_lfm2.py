"""LFM2's embedders as they are published, end to end: one vector a text, or one a token; LFM2.5's look both ways."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from tests.models.oracle import worst
from tests.models.test_lfm2 import BOTH_WAYS, edit, look_both_ways
from tests.tasks import late
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.multi_vector_encoder")

every_backend = pytest.mark.parametrize("backend", ["numpy", "native"])
every_direction = pytest.mark.parametrize("both_ways", [False, True])


def changed(theirs: Any, folder: Path, *, both_ways: bool) -> None:
    """sentence-transformers' model and its folder as of LFM2.5, whose authors' code it would not run without leave."""
    if both_ways:
        look_both_ways(theirs[0].auto_model)
        edit(folder, **BOTH_WAYS)


@every_backend
@every_direction
@pytest.mark.parametrize("expands", [True, False])
def test_late_interaction(expands: bool, both_ways: bool, backend: str, tmp_path: Path) -> None:
    folder = late.save_pylate(tmp_path, "lfm2", do_query_expansion=expands, skiplist_words=late.SKIPPED)
    theirs = sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")
    changed(theirs, folder, both_ways=both_ways)
    # One at a time: the authors' convolutions read the padding beside a shorter text.
    queries = theirs.encode_query(late.TEXTS, batch_size=1, convert_to_numpy=True)
    documents = theirs.encode_document(late.TEXTS, batch_size=1, convert_to_numpy=True)
    with loaded(folder, backend) as model:
        assert model.info.model_type == ("lfm2_bidirec" if both_ways else "lfm2")
        assert model.info.tasks == (TaskType.COLBERT, TaskType.TOKENS) and model.info.dimension == late.SIZE
        assert worst(model.embed_colbert(late.TEXTS, prompt_name="query"), queries) <= 1e-5
        assert worst(model.embed_colbert(late.TEXTS), documents) <= 1e-5


@every_backend
@every_direction
@pytest.mark.parametrize("pooling", ["cls", "lasttoken", "mean"])
def test_one_vector_a_text(pooling: str, both_ways: bool, backend: str, tmp_path: Path) -> None:
    modules = pytest.importorskip("sentence_transformers.models")
    late.save_encoder(tmp_path / "plain", "lfm2", "tiny")
    chain = [modules.Transformer(str(tmp_path / "plain")), modules.Pooling(32, pooling)]
    folder, prompts = tmp_path / "saved", {"query": "query : ", "document": "passage : "}
    sentence_transformers.SentenceTransformer(modules=chain, prompts=prompts, device="cpu").save(
        str(folder), create_model_card=False
    )
    theirs = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    changed(theirs, folder, both_ways=both_ways)
    texts = [text for text in late.TEXTS if text]
    expected = theirs.encode(texts, prompt_name="query", batch_size=1, normalize_embeddings=True)
    with loaded(folder, backend) as model:
        assert model.info.model_type == ("lfm2_bidirec" if both_ways else "lfm2")
        assert model.info.tasks == (TaskType.DENSE, TaskType.TOKENS)
        assert np.abs(model.embed(texts, prompt_name="query", normalize=True) - expected).max() <= 1e-5
