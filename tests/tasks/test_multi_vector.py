"""Late interaction against sentence-transformers' MultiVectorEncoder, on random weights, in every layout."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, Params, TaskType
from rtp_llm.errors import CheckpointError, InvalidRequest
from tests.backends import BACKENDS
from tests.models.oracle import worst
from tests.tasks import late
from tests.tasks.checkpoints import loaded
from tests.tasks.families import ENCODERS
from tests.tasks.late import SIZE, SKIPPED, TEXTS

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
pytest.importorskip("sentence_transformers.multi_vector_encoder")
safetensors = pytest.importorskip("safetensors.torch")

EXPANSIONS: dict[str, dict[str, Any]] = {
    "none": {"query_length": 9, "document_length": 30},
    "unseen": {"query_expansion": {"strategy": "fixed", "attend": False, "length": 16}, "document_length": 12},
    "seen": {"query_expansion": {"strategy": "fixed", "attend": True, "length": 16}},
    "at least": {"query_expansion": {"strategy": "min", "length": 16, "token": "[unused1]"}, "query_length": 30},
}
PROMPTS = {"query": "query : ", "document": "passage : "}


def theirs(folder: Path) -> Any:
    return sentence_transformers.MultiVectorEncoder(str(folder), device="cpu")


def expected(folder: Path) -> tuple[list[FloatArray], list[FloatArray]]:
    """Their queries and documents."""
    model = theirs(folder)
    return model.encode_query(TEXTS, convert_to_numpy=True), model.encode_document(TEXTS, convert_to_numpy=True)


Answers = tuple[list[FloatArray], list[FloatArray], FloatArray]


def answers(folder: Path) -> Answers:
    """Their queries and documents, and the similarities of these."""
    model = theirs(folder)
    queries = model.encode_query(TEXTS, convert_to_numpy=True)
    documents = model.encode_document(TEXTS, convert_to_numpy=True)
    return queries, documents, model.similarity(queries, documents).numpy()


# Of a folder that stays as it is, for all backends once.
answers_once = cache(answers)


def check(folder: Path, backend: str = "numpy", known: Answers | None = None, **options: Any) -> None:
    queries, documents, scores = known or answers(folder)
    with loaded(folder, backend, **options) as model:
        assert model.info.tasks == (TaskType.COLBERT, TaskType.TOKENS) and model.info.dimension == SIZE
        assert worst(model.embed_colbert(TEXTS, prompt_name="query"), queries) <= 1e-5
        assert worst(model.embed_colbert(TEXTS), documents) <= 1e-5
        assert np.abs(model.similarity(TEXTS, TEXTS, kind="colbert") - scores).max() <= 1e-5 * np.abs(scores).max()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize(("family", "shape"), [("bert", "tiny"), ("bert", "odd"), ("modernbert", "odd")])
def test_equals_multi_vector_encoder(
    family: str, shape: str, expansion: str, backend: str, once: Callable[..., Path]
) -> None:
    mask = {"skiplist_words": SKIPPED}
    folder = once(late.save, family, shape, lengths=EXPANSIONS[expansion], mask=mask, prompts=PROMPTS)
    check(folder, backend, answers_once(folder))


@pytest.mark.parametrize("expansion", ["unseen", "seen"])
@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("family", [family for family in ENCODERS if family not in ("bert", "modernbert")])
def test_every_encoder(family: str, backend: str, expansion: str, once: Callable[..., Path]) -> None:
    folder = once(late.save, family, "odd", lengths=EXPANSIONS[expansion], mask={"skiplist_words": SKIPPED})
    if "deberta" not in family or expansion != "unseen":
        check(folder, backend, answers_once(folder))
        return
    name = "deberta-v2" if family == "deberta" else "deberta"
    with pytest.raises(CheckpointError, match=f"of {name}, an expansion is served with attend true"), loaded(folder):
        pass


@pytest.mark.parametrize("expansion", EXPANSIONS)
@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_is_alone_bit_for_bit(expansion: str, backend: str, once: Callable[..., Path]) -> None:
    folder = once(late.save, lengths=EXPANSIONS[expansion], mask={"skiplist_words": SKIPPED})
    with loaded(folder, backend) as model:
        for name in ("query", "document"):
            together = model.embed_colbert(TEXTS, prompt_name=name)
            backwards = model.embed_colbert(TEXTS[::-1], prompt_name=name)[::-1]
            alone = [model.embed_colbert([text], prompt_name=name)[0] for text in TEXTS]
            for rows in zip(together, backwards, alone, strict=True):
                np.testing.assert_array_equal(rows[0], rows[1])
                np.testing.assert_array_equal(rows[0], rows[2])


@pytest.mark.parametrize(
    "mask",
    [
        {"skiplist_words": SKIPPED, "skiplist_tasks": ["query", "document"]},
        {"skiplist_words": SKIPPED, "skiplist_tasks": "query"},
        {"keep_only_token_ids": [2, 3, 9, 10, 11]},
        {},
    ],
)
def test_what_is_left_out(mask: dict[str, Any], tmp_path: Path) -> None:
    check(late.save(tmp_path, lengths=EXPANSIONS["unseen"], mask=mask))


def test_several_projections_and_a_mean_of_similarities(tmp_path: Path) -> None:
    check(late.save(tmp_path, projections=3, similarity_fn_name="meanmaxsim"))


@pytest.mark.parametrize("model_type", ["ColBERT", None])
@pytest.mark.parametrize("family", ["bert", "modernbert"])
@pytest.mark.parametrize(
    "settings",
    [
        {"attend_to_expansion_tokens": False, "skiplist_words": SKIPPED},
        {"attend_to_expansion_tokens": True, "prompts": {"query": "he ", "document": "[D] to "}},
        {"do_query_expansion": False},
        {"query_length": None, "document_length": None, "query_prefix": "query: ", "document_prefix": None},
    ],
)
def test_pylate(settings: dict[str, Any], family: str, model_type: str | None, tmp_path: Path) -> None:
    check(late.save_pylate(tmp_path, family, model_type, **settings))


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_jina_colbert_v2(backend: str, tmp_path: Path) -> None:
    """Its config.json has no model_type, and its names are those of code that sentence-transformers has not."""
    model = late.save_jina_v2(tmp_path)
    tokenizer = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(tmp_path)
    linear = safetensors.load_file(tmp_path / "model.safetensors")["linear.weight"]
    texts = ["the weather is lovely today", "he", "so sunny outside " * 5]
    with loaded(tmp_path, backend) as ours:
        assert ours.info.tasks == (TaskType.COLBERT, TaskType.TOKENS)
        vectors = ours.embed_colbert(texts)
    for text, rows in zip(texts, vectors, strict=True):
        ids = tokenizer(f"[DocumentMarker] {text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            states = model(input_ids=ids).last_hidden_state[0] @ linear.T
        assert worst([rows], [torch.nn.functional.normalize(states, dim=-1).numpy()]) <= 1e-5


@pytest.mark.parametrize("marker", ["[unused{}]", "[unused{}] "])
def test_pylate_of_colberts_own(marker: str, tmp_path: Path) -> None:
    """Markers that the tokenizer has as usual tokens, and the mask in the place of the padding."""
    prefixes = {f"{side}_prefix": marker.format(place) for place, side in enumerate(("query", "document"))}
    folder = late.save_pylate(tmp_path, tokens=["[unused0]", "[unused1]"], **prefixes)
    edit(folder / "tokenizer_config.json", pad_token="[MASK]")
    check(folder)
    with loaded(folder) as model:
        (item,) = model._engine._tokenizer.encode(["he drove"], Params(prompt_name="query"))
        assert item.input_ids[:3].tolist() == [late.VOCAB.index(token) for token in ("[CLS]", "[unused0]", "he")]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "metadata",
    [
        {"query_token_id": "[unused0]", "doc_token_id": "[unused1]", "doc_maxlen": 18, "query_maxlen": 14,
         "mask_punctuation": True, "attend_to_mask_tokens": False},
        {"query_token_id": "[Q]", "attend_to_mask_tokens": True, "mask_punctuation": False},
        None,
    ],
)  # fmt: skip
def test_colberts_own(metadata: dict[str, Any] | None, backend: str, once: Callable[..., Path]) -> None:
    folder = once(late.save_authors, metadata)
    check(folder, backend, answers_once(folder))


REAL = [
    "What's the capital of France? (Paris!)",
    "",
    "!?.,;: '\"- -- … ¿¡",
    "It's well-known: 3.5 % of U.S. companies' e-mails; see https://example.com/a?b=c",
    "今天天气很好,我们去公园散步吧。",
    "word " * 60,
]


@pytest.mark.parametrize(
    ("name", "layout"), [("bert-base-uncased", "authors"), ("bert-base-uncased", "pylate"), ("roberta-base", "pylate")]
)
def test_real_tokenizers(name: str, layout: str, assets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    transformers = pytest.importorskip("transformers")
    kind = {"bert-base-uncased": "BertTokenizerFast", "roberta-base": "RobertaTokenizerFast"}[name]
    tokenizer = getattr(transformers, kind).from_pretrained(assets / "tokenizers" / name, model_max_length=40)
    if layout == "authors":
        late.save_authors(tmp_path, {"doc_maxlen": 30}, tokenizer)
    else:
        late.save_pylate(tmp_path, "bert" if name.startswith("bert") else "roberta", tokenizer=tokenizer)
    monkeypatch.setattr("tests.tasks.test_multi_vector.TEXTS", REAL)
    check(tmp_path)


def test_ready_ids_pass_as_they_are(tmp_path: Path) -> None:
    folder = late.save(tmp_path, lengths=EXPANSIONS["unseen"])
    with loaded(folder) as model:
        (vectors,) = model.embed_colbert([[2, 9, 10, 3]], prompt_name="query")
        assert len(vectors) == 4


def test_the_flag_stands_over_the_limit_of_documents(tmp_path: Path) -> None:
    folder = late.save(tmp_path, lengths=EXPANSIONS["unseen"])
    model = theirs(folder)
    model[0].document_length = 35
    documents = model.encode_document(TEXTS, convert_to_numpy=True)
    with loaded(folder, max_seq_len=35) as ours:
        assert ours.info.max_seq_len == 35
        assert worst(ours.embed_colbert(TEXTS), documents) <= 1e-5
        assert worst(ours.embed_colbert(TEXTS, prompt_name="query"), expected(folder)[0]) <= 1e-5


def test_dimensions_and_normalize(tmp_path: Path) -> None:
    queries, documents = expected(late.save(tmp_path))
    with loaded(tmp_path / "saved") as model:
        for vectors, whole in zip(model.embed_colbert(TEXTS, dimensions=8), documents, strict=True):
            shorter = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
            np.testing.assert_allclose(vectors, shorter, rtol=0, atol=1e-5)
        for vectors, whole in zip(
            model.embed_colbert(TEXTS, prompt_name="query", normalize=False), queries, strict=True
        ):
            lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
            assert np.abs(lengths - 1).max() > 0.1
            np.testing.assert_allclose(vectors / lengths, whole, rtol=0, atol=1e-5)


def test_maxsim_has_no_activation(tmp_path: Path) -> None:
    with loaded(late.save(tmp_path)) as model:
        scores = [entry.score for entry in model.rerank("he drove", TEXTS, activation="none")]
        assert scores == [entry.score for entry in model.rerank("he drove", TEXTS)]
        with pytest.raises(InvalidRequest, match="activation: 'sigmoid'"):
            model.rerank("he drove", TEXTS, activation="sigmoid")


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


FIXED = {"strategy": "fixed", "length": 16}


@pytest.mark.parametrize(
    ("file", "values", "message"),
    [
        ("sentence_bert_config.json", {"query_expansion": {"strategy": "odd", "length": 9}}, "is not served; strategy"),
        (
            "sentence_bert_config.json",
            {"query_expansion": {"strategy": "fixed"}},
            "is not served; strategy fixed or min",
        ),
        ("sentence_bert_config.json", {"query_expansion": {**FIXED, "every": 2}}, "is not served"),
        (
            "sentence_bert_config.json",
            {"query_expansion": {**FIXED, "length": 0}},
            "length is 0; a whole number from 1",
        ),
        (
            "sentence_bert_config.json",
            {"query_expansion": {**FIXED, "token": "[GONE]"}},
            "lacks the token '\\[GONE\\]'",
        ),
        ("sentence_bert_config.json", {"query_expansion": FIXED, "query_length": 9}, "query_length 9 is less than"),
        ("sentence_bert_config.json", {"document_length": "long"}, "document_length is 'long'"),
        ("tokenizer_config.json", {"padding_side": "left"}, "padding_side left puts a query's expansion before it"),
        ("1_Dense/config.json", {"module_input_name": "sentence_embedding"}, "only 'token_embeddings' is supported"),
        ("2_MultiVectorMask/config.json", {"skiplist_words": [1]}, "skiplist_words is .1.; a list of strings"),
    ],
)
def test_what_is_refused(file: str, values: dict[str, Any], message: str, tmp_path: Path) -> None:
    folder = late.save(tmp_path, lengths={"query_expansion": {**FIXED, "attend": True}})
    edit(folder / file, **values)
    with pytest.raises(CheckpointError, match=message), loaded(folder):
        pass


@pytest.mark.parametrize(("factor", "is_served"), [(1, True), (2, False)])
def test_token_pooling(factor: float, is_served: bool, tmp_path: Path) -> None:
    folder = late.save(tmp_path)
    chain = json.loads((folder / "modules.json").read_text())
    kind = "sentence_transformers.multi_vector_encoder.modules.token_pooling.HierarchicalTokenPooling"
    chain.append({"idx": 4, "name": "4", "path": "4_Pooling", "type": kind})
    (folder / "modules.json").write_text(json.dumps(chain))
    (folder / "4_Pooling").mkdir()
    late.write(folder / "4_Pooling" / "config.json", {"pool_factor": factor, "num_protected_tokens": 1})
    if is_served:
        check(folder)
        return
    with pytest.raises(CheckpointError, match="pool_factor 2 is not served; remove the module"), loaded(folder):
        pass


@pytest.mark.parametrize("name", [None, "sentence_embedding"])
def test_a_normalize_of_a_vector_that_is_not_there(name: str | None, tmp_path: Path) -> None:
    folder = late.save(tmp_path)
    late.write(folder / "3_Normalize" / "config.json", {"module_input_name": name} if name else {})
    check(folder)


def test_without_a_projection(tmp_path: Path) -> None:
    folder = late.save_pylate(tmp_path)
    chain = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(chain[:1]))
    with pytest.raises(CheckpointError, match="there is no Dense"), loaded(folder):
        pass


def test_lengths_by_side_of_a_checkpoint_of_one_vector(tiny_bert: Path, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tiny_bert, tmp_path / "copy")
    edit(tmp_path / "copy" / "sentence_bert_config.json", query_length=8)
    with (
        pytest.raises(CheckpointError, match="query_length is served with a vector for each token"),
        loaded(tmp_path / "copy"),
    ):
        pass


def test_a_stray_linear_weight_is_refused(tmp_path: Path) -> None:
    folder = late.save_authors(tmp_path)
    edit(folder / "config.json", architectures=["BertModel"])
    with pytest.raises(CheckpointError, match="1 unexpected: linear.weight"), loaded(folder):
        pass
