"""BGE-M3: dense, sparse and colbert from one forward, against FlagEmbedding's formulas written out in torch."""

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import SparseVector, TaskType
from rtp_llm.errors import CheckpointError, InvalidRequest, UnsupportedTask
from tests.backends import BACKENDS
from tests.tasks.checkpoints import LIMIT, PAIRS, SHAPES, TEXTS, VOCAB, loaded, save, save_m3, tokenizer

torch = pytest.importorskip("torch")
F = torch.nn.functional


class Reference:
    """FlagEmbedding 1.4, finetune/embedder/encoder_only/m3/modeling.py and inference/embedder/encoder_only/m3.py."""

    def __init__(self, folder: Path, parts: tuple[Any, Any, Any], limit: int = LIMIT) -> None:
        self.tokenizer = tokenizer(folder)
        self.limit = limit
        self.model, self.sparse_linear, self.colbert_linear = parts

    def encode(self, text: str, dim: int | None = None) -> tuple[Any, dict[int, float], Any]:
        with torch.no_grad():
            return self._encode(text, dim)

    def _encode(self, text: str, dim: int | None) -> tuple[Any, dict[int, float], Any]:
        encoded = self.tokenizer(text, truncation=True, max_length=self.limit, return_tensors="pt")
        hidden, mask = self.model(**encoded).last_hidden_state, encoded["attention_mask"]
        dense = F.normalize(hidden[:, 0][..., :dim], dim=-1)[0].numpy()
        weights = torch.relu(self.sparse_linear(hidden))[0, :, 0].tolist()
        colbert = self.colbert_linear(hidden[:, 1:]) * mask[:, 1:, None].float()
        vectors = F.normalize(colbert[..., :dim], dim=-1)[0, : int(mask.sum()) - 1].numpy()
        lexical: dict[int, float] = defaultdict(float)
        special = self.tokenizer.special_tokens_map
        unused = {
            self.tokenizer.convert_tokens_to_ids(special[role])
            for role in ("cls_token", "eos_token", "pad_token", "unk_token")
            if role in special
        }
        for weight, token in zip(weights, encoded["input_ids"][0].tolist(), strict=True):
            if token not in unused and weight > 0:
                lexical[token] = max(lexical[token], weight)
        return dense, dict(lexical), vectors

    def score(self, left: str, right: str, weights: Sequence[float]) -> dict[str, float]:
        """compute_score of one pair."""
        (q_dense, q_sparse, q_colbert), (p_dense, p_sparse, p_colbert) = self.encode(left), self.encode(right)
        dense = float(q_dense @ p_dense)
        sparse = sum(weight * p_sparse.get(token, 0.0) for token, weight in q_sparse.items())
        colbert = float((q_colbert @ p_colbert.T).max(-1).sum() / len(q_colbert))
        w_dense, w_sparse, w_colbert = weights
        total = (w_dense * dense + w_sparse * sparse + w_colbert * colbert) / sum(weights)
        return {"dense": dense, "sparse": sparse, "colbert": colbert, "hybrid": total}


def as_dict(vector: SparseVector) -> dict[int, float]:
    return dict(zip(vector.indices.tolist(), vector.values.tolist(), strict=True))


def check_sparse(ours: list[SparseVector], expected: list[dict[int, float]]) -> None:
    assert any(expected), "the weights are all zero: the test says nothing"
    for vector, weights in zip(ours, expected, strict=True):
        assert as_dict(vector) == pytest.approx(weights, abs=1e-5)
        assert (np.diff(vector.indices) > 0).all() and (vector.values > 0).all()
        assert vector.values.dtype == np.float32 and vector.indices.dtype == np.int32


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("shape", "colbert_dim"), [("tiny", None), ("odd", None), ("odd", 20)])
def test_all_three_equal_flag_embedding(shape: str, colbert_dim: int | None, backend: str, tmp_path: Path) -> None:
    reference = Reference(tmp_path, save_m3(tmp_path, colbert_dim, **SHAPES[shape]))
    dense, sparse, colbert = zip(*map(reference.encode, TEXTS), strict=True)
    with loaded(tmp_path, backend) as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT, TaskType.TOKENS)
        ours = model.embed_all(TEXTS)
        alone = model.embed(TEXTS), model.embed_sparse(TEXTS), model.embed_colbert(TEXTS)
    assert np.abs(np.stack(ours["dense"]) - np.stack(dense)).max() <= 1e-5
    check_sparse(ours["sparse"], list(sparse))
    for vectors, expected in zip(ours["colbert"], colbert, strict=True):
        assert vectors.shape == expected.shape and np.abs(vectors - expected).max() <= 1e-5
    same = [np.array_equal(a, b) for a, b in zip(ours["colbert"], alone[2], strict=True)]
    same += [as_dict(a) == as_dict(b) for a, b in zip(ours["sparse"], alone[1], strict=True)]
    # Dense alone needs one row of the last layer; torch sums in another order for another number of rows.
    assert all(same) and np.abs(alone[0] - np.stack(ours["dense"])).max() <= (1e-6 if backend == "torch" else 0)
    assert np.abs(alone[0] - np.stack(dense)).max() <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save_m3(tmp_path, **SHAPES["odd"])
    with loaded(tmp_path, backend) as model:
        together, backwards = model.embed_all(TEXTS), model.embed_all(TEXTS[::-1])
        for place, text in enumerate(TEXTS):
            for other, at in ((backwards, -1 - place), (model.embed_all([text]), 0)):
                assert np.array_equal(together["dense"][place], other["dense"][at])
                assert as_dict(together["sparse"][place]) == as_dict(other["sparse"][at])
                assert np.array_equal(together["colbert"][place], other["colbert"][at])


@pytest.mark.parametrize("size", [1, 7, 32])
def test_dimensions_slice_then_normalise(size: int, tmp_path: Path) -> None:
    reference = Reference(tmp_path, save_m3(tmp_path))
    with loaded(tmp_path) as model:
        ours = model.embed_all(TEXTS, dimensions=size)
    for place, text in enumerate(TEXTS):
        dense, _, vectors = reference.encode(text, size)
        assert np.abs(ours["dense"][place] - dense).max() <= 1e-5
        assert np.abs(ours["colbert"][place] - vectors).max() <= 1e-5


@pytest.mark.parametrize("weights", [None, (0.4, 0.2, 0.4), (1.0, 0.3, 1.0), (1.0, 1.0, 0.0)])
def test_scores_equal_flag_embedding(weights: tuple[float, float, float] | None, tmp_path: Path) -> None:
    reference = Reference(tmp_path, save_m3(tmp_path))
    left, right = ["so sunny", "he drove to stadium", "the query passage"], TEXTS
    with loaded(tmp_path) as model:
        ours: Any = {
            kind: model.similarity(left, right, kind=kind, weights=weights if kind == "hybrid" else None)
            for kind in ("dense", "sparse", "colbert", "hybrid")
        }
    for i, query in enumerate(left):
        for j, passage in enumerate(right):
            expected = reference.score(query, passage, weights or (1, 1, 1))
            assert {kind: float(ours[kind][i, j]) for kind in ours} == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("weights", [(1, 1), (0, 0, 0), (1, -1, 1), (float("nan"), 1, 1)])
def test_weights_that_make_no_mean(weights: tuple[float, ...], tmp_path: Path) -> None:
    save_m3(tmp_path)
    with loaded(tmp_path) as model, pytest.raises(InvalidRequest, match="weights: "):
        model.similarity(["a"], ["b"], kind="hybrid", weights=weights)


def test_tokens_name_each_id_apart(tmp_path: Path) -> None:
    save_m3(tmp_path)
    with loaded(tmp_path) as model:
        (vector,) = model.embed_sparse(["so sunny today outside"], return_tokens=True)
    assert vector.tokens == tuple(VOCAB[index] for index in vector.indices)


def test_every_token_with_all_embedding(tmp_path: Path) -> None:
    theirs = save(tmp_path)
    with loaded(tmp_path, task_type="all_embedding") as model:
        assert model.info.tasks == (TaskType.TOKENS,)
        normalised, raw = model.embed_all(TEXTS)["tokens"], model.embed_all(TEXTS, normalize=False)["tokens"]
    for text, unit, plain in zip(TEXTS, normalised, raw, strict=True):
        encoded = tokenizer(tmp_path)(text, truncation=True, max_length=LIMIT, return_tensors="pt")
        with torch.no_grad():
            hidden = theirs(**encoded).last_hidden_state[0]
        assert np.abs(plain - hidden.numpy()).max() <= 1e-5
        assert np.abs(unit - F.normalize(hidden, dim=-1).numpy()).max() <= 1e-5


FLAGS = [("sparse_embedding", TaskType.SPARSE), ("colbert_embedding", TaskType.COLBERT), ("dense_embedding", "dense")]


@pytest.mark.parametrize(("flag", "task"), FLAGS)
def test_a_single_task_by_its_flag(flag: str, task: str, tmp_path: Path) -> None:
    save_m3(tmp_path)
    with loaded(tmp_path, task_type=flag) as model:
        assert model.info.tasks[0] == task
        assert list(model.embed_all(["a b"])) == [TaskType(task).value]
        if task == TaskType.SPARSE:
            with pytest.raises(UnsupportedTask, match="this model offers sparse, not rerank"):
                model.rerank("a", ["b"])


def test_colbert_vectors_rank(tmp_path: Path) -> None:
    """By FlagEmbedding's mean."""
    save_m3(tmp_path)
    with loaded(tmp_path) as model:
        ranked = model.rerank(TEXTS[0], TEXTS)
        scores = model.similarity(TEXTS[:1], TEXTS, kind="colbert")[0]
        assert ranked[0].index == 0 and [entry.score for entry in ranked] == sorted(scores.tolist(), reverse=True)


def test_pairs_and_ids_are_inputs_too(tmp_path: Path) -> None:
    save_m3(tmp_path)
    with loaded(tmp_path) as model:
        vectors = model.embed_colbert([*PAIRS[:2], [2, 7, 3], [5]])
    assert [len(rows) for rows in vectors[2:]] == [2, 0]


def test_modules_json_beside_the_heads_says_how_dense_is_pooled(tmp_path: Path) -> None:
    st = pytest.importorskip("sentence_transformers")
    modules = pytest.importorskip("sentence_transformers.models")
    save(tmp_path / "plain")
    transformer = modules.Transformer(str(tmp_path / "plain"), max_seq_length=LIMIT)
    theirs = st.SentenceTransformer(modules=[transformer, modules.Pooling(32, "cls")], device="cpu").eval()
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    _, sparse, colbert = save_m3(tmp_path / "heads")
    for name in ("sparse_linear.pt", "colbert_linear.pt"):
        (tmp_path / "heads" / name).rename(tmp_path / "saved" / name)
    with loaded(tmp_path / "saved") as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.SPARSE, TaskType.COLBERT, TaskType.TOKENS)
        assert np.abs(model.embed(TEXTS) - theirs.encode(TEXTS)).max() <= 1e-5


def test_a_missing_head_is_named(tmp_path: Path) -> None:
    save_m3(tmp_path)
    (tmp_path / "colbert_linear.pt").unlink()
    with loaded(tmp_path, task_type="dense_embedding") as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.TOKENS)
    for task_type in ("auto", "bge_m3"):
        with pytest.raises(CheckpointError, match=r"colbert_linear\.pt is missing"):
            with loaded(tmp_path, task_type=task_type):
                pass


@pytest.mark.parametrize("rows", [2, 0])
def test_a_head_of_the_wrong_shape(rows: int, tmp_path: Path) -> None:
    save_m3(tmp_path)
    state = {"weight": torch.zeros(rows, 32), "bias": torch.zeros(rows)} if rows else {"other": torch.zeros(1)}
    torch.save(state, tmp_path / "sparse_linear.pt")
    with pytest.raises(CheckpointError, match=r"sparse_linear\.pt"):
        with loaded(tmp_path):
            pass


def test_config_of_xlm_roberta_roles(tmp_path: Path) -> None:
    """`</s>` is eos there and gets no weight; BERT's [SEP] has no such role and keeps its own, as in FlagEmbedding."""
    save_m3(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "eos_token": "[SEP]"}))
    with loaded(tmp_path) as model:
        assert all(VOCAB.index("[SEP]") not in vector.indices for vector in model.embed_sparse(TEXTS))
