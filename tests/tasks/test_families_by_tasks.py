"""Every family with every task and pooling, at every length, against its authors' code: at most 1e-5 apart in fp32."""

import itertools
import json
from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, Params, TaskType
from tests.backends import BACKENDS
from tests.models.oracle import worst
from tests.tasks import families
from tests.tasks.checkpoints import loaded
from tests.tasks.families import (
    DECODERS,
    ENCODERS,
    FAMILIES,
    MAIN,
    ROOM,
    SHAPES,
    Checkpoint,
    all_lengths,
    beside,
    mixed_batch,
    sentences,
)
from tests.tasks.test_bge_m3 import Reference, check_sparse

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.models")

checkpoints = families.checkpoints
Checkpoints = Callable[..., Checkpoint]
POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
PAIRS_OF_POOLINGS = [*itertools.combinations(POOLINGS, 2)]
INPUTS = all_lengths()
YES, NO = 7, 9

every_backend = pytest.mark.parametrize("backend", BACKENDS)
every_shape = pytest.mark.parametrize("shape", SHAPES)


def of(families: Iterable[str]) -> pytest.MarkDecorator:
    """Each family in its shapes: the mission's in all, the others, whose layers are theirs by other names, in one."""
    cases = [(family, shape) for family in families for shape in SHAPES if family in MAIN or shape == "odd"]
    return pytest.mark.parametrize(("family", "shape"), cases)


every_family = of(FAMILIES)


@cache
def alone(model: Any, part: str) -> list[FloatArray]:
    """What transformers gives for each of `INPUTS` on its own, for all backends once."""
    options = {"use_cache": False} if type(model).__name__.startswith(DECODERS) else {}
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids]), **options)[part][0].numpy() for ids in INPUTS]


def pooled(hidden: list[FloatArray], modes: tuple[str, ...]) -> FloatArray:
    """sentence-transformers' Pooling on one padded batch; what stands in the padding must not matter."""
    states = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(rows) for rows in hidden], True, padding_value=99.0)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(rows), dtype=torch.long) for rows in hidden], True)
    features = {"token_embeddings": states, "attention_mask": mask}
    pooling = modules.Pooling(states.shape[-1], pooling_mode=modes)
    rows: FloatArray = pooling(features)["sentence_embedding"].numpy()
    return rows


def with_pooling(folder: Path, place: Path, modes: tuple[str, ...], width: int) -> Path:
    beside(folder, place)
    kinds = ["Transformer", "Pooling"]
    chain = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"sentence_transformers.models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (place / "modules.json").write_text(json.dumps(chain))
    (place / "1_Pooling").mkdir()
    modules.Pooling(width, pooling_mode=modes).save(str(place / "1_Pooling"))
    return place


def same_in_a_batch(rows: list[Any], compute: Callable[[list[list[int]]], Any], backend: str) -> None:
    """33 inputs of mixed lengths are, on our own ops, the same bits as among all."""
    places = mixed_batch(INPUTS)
    batch = compute([INPUTS[place] for place in places])
    expected = [rows[place] for place in places]
    assert worst(batch, expected) <= (1e-5 if backend == "torch" else 0)


@every_backend
@every_family
def test_every_token(family: str, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints(family, shape)
    with loaded(folder, backend, task_type="all_embedding") as model:
        rows = model.embed_all(INPUTS, normalize=False)["tokens"]
        assert worst(rows, alone(theirs, "last_hidden_state")) <= 1e-5
        same_in_a_batch(rows, lambda ids: model.embed_all(ids, normalize=False)["tokens"], backend)


@every_backend
@every_family
def test_every_pooling(family: str, shape: str, backend: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder, theirs = checkpoints(family, shape)
    expected = pooled(alone(theirs, "last_hidden_state"), POOLINGS)
    with loaded(with_pooling(folder, tmp_path / "all", POOLINGS, theirs.config.hidden_size), backend) as model:
        rows = model.embed(INPUTS, normalize=False)
        assert np.abs(rows - expected).max() <= 1e-5 * max(1.0, float(np.abs(expected).max()))
        same_in_a_batch([*rows], lambda ids: [*model.embed(ids, normalize=False)], backend)


@pytest.mark.parametrize("family", MAIN)
def test_pairs_of_poolings(family: str, checkpoints: Checkpoints, tmp_path: Path) -> None:
    folder, theirs = checkpoints(family, "odd")
    hidden, width = alone(theirs, "last_hidden_state"), theirs.config.hidden_size
    for modes in PAIRS_OF_POOLINGS:
        expected = pooled(hidden, modes)
        expected /= np.linalg.norm(expected, axis=1, keepdims=True)
        with loaded(with_pooling(folder, tmp_path / "-".join(modes), modes, width), "native") as model:
            assert np.abs(model.embed(INPUTS, normalize=True) - expected).max() <= 1e-5, modes


@cache
def with_heads(folder: Path, theirs: Any) -> tuple[Path, list[Any]]:
    """The checkpoint with BGE-M3's heads, and what FlagEmbedding makes of `sentences`."""
    width = theirs.config.hidden_size
    torch.manual_seed(3)
    sparse, colbert = torch.nn.Linear(width, 1), torch.nn.Linear(width, width)
    torch.nn.init.ones_(sparse.bias)
    place = beside(folder, folder.with_name(f"{folder.name}-m3"))
    for name, layer in (("sparse_linear.pt", sparse), ("colbert_linear.pt", colbert)):
        torch.save(layer.state_dict(), place / name)
    reference = Reference(place, (theirs, sparse, colbert), families.LIMIT)
    return place, [reference.encode(text) for text in sentences()]


@every_backend
@of(ENCODERS)
def test_sparse_and_colbert(family: str, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    place, expected = with_heads(*checkpoints(family, shape))
    with loaded(place, backend) as model:
        ours = model.embed_all(sentences())
    assert worst(ours["dense"], [dense for dense, _, _ in expected]) <= 1e-5
    assert worst(ours["colbert"], [vectors for _, _, vectors in expected]) <= 1e-5
    check_sparse(ours["sparse"], [weights for _, weights, _ in expected])


@every_backend
@pytest.mark.parametrize("num_labels", [1, 5])
@every_family
def test_classify(family: str, num_labels: int, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints(family, shape, "ForSequenceClassification", num_labels=num_labels)
    with loaded(folder, backend, max_seq_len=ROOM if family == "qwen3" else 0) as model:
        assert (model.info.tasks[0] is TaskType.RERANK) == (num_labels == 1)
        rows = [*model.classify(INPUTS, activation="none")]
        assert worst(rows, alone(theirs, "logits")) <= 1e-5
        same_in_a_batch(rows, lambda ids: [*model.classify(ids, activation="none")], backend)


@every_backend
@of(family for family in FAMILIES if FAMILIES[family][0] != "Gemma3Text")  # of which transformers has no such class
def test_classify_tokens(family: str, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints(family, shape, "ForTokenClassification", num_labels=5)
    with loaded(folder, backend, max_seq_len=ROOM if family == "qwen3" else 0) as model:
        assert model.info.tasks == (TaskType.TOKEN_CLASSIFY,)
        rows = model.classify_tokens(INPUTS, activation="none")
        assert worst(rows, alone(theirs, "logits")) <= 1e-5
        same_in_a_batch(rows, lambda ids: model.classify_tokens(ids, activation="none"), backend)


@cache
def reranked(folder: Path) -> list[tuple[str, str, FloatArray]]:
    """Of some of `sentences` as queries, under each activation, CrossEncoder's scores of all."""
    theirs = sentence_transformers.CrossEncoder(str(folder), device="cpu")
    # Beside a Qwen's config.json, AutoTokenizer takes any tokenizer.json for Qwen's own.
    theirs[0].processor = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    activations = {"none": torch.nn.Identity(), "sigmoid": torch.nn.Sigmoid()}
    return [
        (query, name, theirs.predict([(query, document) for document in sentences()], activation_fn=activation))
        for query in sentences()[::3]
        for name, activation in activations.items()
    ]


@every_backend
@of(family for family in FAMILIES if family != "qwen3")
def test_rerank(family: str, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    folder, _ = checkpoints(family, shape, "ForSequenceClassification", num_labels=1)
    with loaded(folder, backend) as model:
        for query, activation, expected in reranked(folder):
            ranked = model.rerank(query, sentences(), activation=activation)
            ours = [entry.score for entry in sorted(ranked, key=lambda entry: entry.index)]
            assert np.abs(np.array(ours) - expected).max() <= 1e-5


@every_backend
@every_shape
@pytest.mark.parametrize("tied", [True, False])
def test_yes_or_no(tied: bool, shape: str, backend: str, checkpoints: Checkpoints) -> None:
    folder, theirs = checkpoints("qwen3", shape, "ForCausalLM", tie_word_embeddings=tied)
    score = {"idx": 1, "name": "1", "path": "1_LogitScore", "type": "sentence_transformers.cross_encoder.LogitScore"}
    chain = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}, score]
    (folder / "modules.json").write_text(json.dumps(chain))
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    (folder / "1_LogitScore/config.json").write_text(json.dumps({"true_token_id": YES, "false_token_id": NO}))
    expected = [logits[-1, YES] - logits[-1, NO] for logits in alone(theirs, "logits")]

    def scores(ids: list[list[int]]) -> list[Any]:
        return model._run(ids, (TaskType.RERANK,), Params(activation="none"), progress=False)[TaskType.RERANK]

    with loaded(folder, backend, max_seq_len=ROOM) as model:
        rows = scores(INPUTS)
        assert worst(rows, expected) <= 1e-5
        same_in_a_batch(rows, scores, backend)
