"""Adapters that requests choose, through the whole engine: each as its own model, together in batches and caches."""

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.cli import embed
from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError, InvalidRequest
from rtp_llm.quantize import Options, quantize
from tests.models import test_adapted as adapted
from tests.models.test_jina_v3 import TASKS
from tests.tasks.checkpoints import VOCAB

pytest.importorskip("torch")
pytest.importorskip("transformers")

TEXTS = ["the weather is lovely today .", "he drove to stadium", "so so so sunny", "a " * 40]
V5 = ["classification", "clustering", "retrieval", "text-matching"]


def save(folder: Path, kind: str) -> Path:
    """With a tokenizer, and as sentence-transformers pools it."""
    from transformers import BertTokenizer

    adapted.save(folder, kind)
    BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("v3"), "v3")


def merged(folder: Path, task: str) -> Model:
    return Model(folder, json_model_override_args=json.dumps({"lora_task": task}))


@pytest.mark.parametrize(("kind", "names"), [("v3", TASKS), ("v5 Qwen3", V5)])
@pytest.mark.parametrize("options", [{}, {"result_cache_mb": 1, "prefix_cache_mb": 1, "quantization": "int8"}])
def test_each_equals_the_model_that_was_loaded_with_it(
    options: dict[str, Any], kind: str, names: list[str], tmp_path: Path
) -> None:
    folder = save(tmp_path, kind)
    with Model(folder, **options) as model:
        assert list(model.info.adapters) == names and not model.info.merged_adapter
        ours = {name: [model.embed(TEXTS, adapter=name, prompt="the query ") for _ in "ab"] for name in names}
    for name, (first, again) in ours.items():
        np.testing.assert_array_equal(first, again)
        if not options:
            with merged(folder, name) as other:
                assert (other.info.adapters, other.info.merged_adapter) == ((), name)
                np.testing.assert_allclose(first, other.embed(TEXTS, prompt="the query "), atol=2e-5)
    vectors = [own for own, _ in ours.values()]
    assert all(not np.allclose(left, right, atol=1e-3) for left, right in zip(vectors, vectors[1:], strict=False))


def test_of_many_requests_at_a_time_each_has_its_own(folder: Path) -> None:
    """The same texts under each adapter and under none wait in one queue."""
    choices = [None, *TASKS] * 4
    with Model(folder, num_threads=2) as model:
        alone = {name: model.embed(TEXTS, adapter=name) for name in dict.fromkeys(choices)}
        found: dict[int, Any] = {}
        threads = [
            threading.Thread(target=lambda i=i, name=name: found.update({i: model.embed(TEXTS, adapter=name)}))
            for i, name in enumerate(choices)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for place, name in enumerate(choices):
        np.testing.assert_array_equal(found[place], alone[name])


@pytest.mark.parametrize("name", ["summary", ""])
def test_one_that_there_is_not(name: str, folder: Path, tiny_bert: Path) -> None:
    with (
        Model(folder) as model,
        pytest.raises(InvalidRequest, match=f"'{name}' is not one of the model's adapters: retr"),
    ):
        model.embed(TEXTS, adapter=name)
    with Model(tiny_bert) as model, pytest.raises(InvalidRequest, match="this model has no adapters; leave it out"):
        model.embed(TEXTS, adapter="summary")


def test_one_that_was_loaded_alone_is_the_only_one(folder: Path) -> None:
    with merged(folder, "separation") as model:
        np.testing.assert_array_equal(model.embed(TEXTS, adapter="separation"), model.embed(TEXTS))
        with pytest.raises(InvalidRequest, match="loaded with the adapter 'separation' alone; leave lora_task out of"):
            model.embed(TEXTS, adapter="classification")


def test_of_v5_one_must_be_chosen(tmp_path: Path) -> None:
    with Model(save(tmp_path, "v5 Qwen3")) as model:
        with pytest.raises(
            InvalidRequest, match="made with one of its adapters: send `task`.*one of classification, clust"
        ) as error:
            model.embed(TEXTS)
        assert error.value.param == "task"
        # Where queries are compared with documents it is retrieval's.
        found = {one.document: one.score for one in model.rerank(TEXTS[0], TEXTS[1:])}
        vectors = model.embed(TEXTS, adapter="retrieval", normalize=True)
    assert [found[text] for text in TEXTS[1:]] == pytest.approx((vectors[1:] @ vectors[0]).tolist(), abs=1e-5)


def test_on_the_command_line(folder: Path, tmp_path: Path) -> None:
    texts, vectors = tmp_path / "texts.txt", tmp_path / "vectors.npy"
    texts.write_text("\n".join(TEXTS))
    embed.main([str(folder), str(texts), str(vectors), "--adapter", "text-matching"])
    with Model(folder) as model:
        np.testing.assert_array_equal(np.load(vectors), model.embed(TEXTS, adapter="text-matching"))


def test_a_checkpoint_in_8_bits_has_none(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapters of which each request chooses: serve it with --quantization int8"):
        quantize(EngineConfig(checkpoint_path=str(folder)), tmp_path / "out", Options())
