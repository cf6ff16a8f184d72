"""Sparse embeddings by routes against sentence-transformers' SparseEncoder, on random weights."""

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, Params, Request, SparseVector, TaskType
from rtp_llm.errors import InvalidRequest
from tests.backends import BACKENDS
from tests.tasks import routers
from tests.tasks.checkpoints import SHAPES, TEXTS, VOCAB, loaded
from tests.tasks.routers import dense_of
from tests.tasks.test_splade import make_other

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers")
modules = pytest.importorskip("sentence_transformers.sparse_encoder.modules")

ALL = [*TEXTS, *routers.WORDS_AGAIN, routers.LONG]
SIDES: dict[str | None, str] = {"query": "encode_query", "document": "encode_document", None: "encode"}


def theirs(folder: Path) -> Any:
    return sentence_transformers.SparseEncoder(str(folder), device="cpu")


def expected(folder: Path, name: str | None, texts: list[str] = ALL, **options: Any) -> FloatArray:
    """Each text alone: in a batch, padding takes a text's own [PAD] away from it."""
    model = theirs(folder)
    encode = (
        getattr(model, SIDES[name]) if name in SIDES else lambda *args, **given: model.encode(*args, task=name, **given)
    )
    rows = [encode([text], convert_to_sparse_tensor=False, **options).numpy()[0] for text in texts]
    return np.stack(rows)


def check(folder: Path, backend: str = "numpy", texts: list[str] = ALL, size: int = len(VOCAB)) -> None:
    rows = {name: expected(folder, name, texts) for name in SIDES}
    assert not np.array_equal(rows["query"], rows["document"])
    with loaded(folder, backend) as model:
        assert model.info.tasks == (TaskType.SPARSE,) and model.info.dimension == size
        for name, wanted in rows.items():
            ours = dense_of(model.embed_sparse(texts, prompt_name=name), size)
            assert np.abs(ours - wanted).max() <= 1e-5, name
        queries = dense_of(model.embed_sparse(texts, prompt_name="query"), size)
        np.testing.assert_array_equal(queries, rows["query"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("activation", ["relu", "log1p_relu"])
def test_equals_sparse_encoder(activation: str, shape: str, backend: str, tmp_path: Path) -> None:
    chain = routers.encoder_modules(tmp_path, activation, **SHAPES[shape])
    check(routers.save_sparse(tmp_path, chain), backend)


@pytest.mark.parametrize("family", ["DistilBert", "Gte", "ModernBert"])
def test_other_encoders(family: str, tmp_path: Path) -> None:
    make_other(tmp_path, family)
    transformer = modules.Transformer(str(tmp_path / "plain"), transformer_task="fill-mask")
    check(routers.save_sparse(tmp_path / "routed", [transformer, modules.SpladePooling("max")]), "native")


def test_published_layout(tmp_path: Path) -> None:
    folder = routers.as_published(routers.save_sparse(tmp_path))
    digest = hashlib.sha256((folder / "router_config.json").read_bytes()).hexdigest()
    assert digest == "c373414574b65ea6612a43c16a17d8a5942e91ccde1cd1433e41619af02a8264"
    check(folder)


def test_real_words(assets: Path, tmp_path: Path) -> None:
    """BERT's 30,522, under a limit that the table does not share with the encoder."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    tokens = (assets / "tokenizers" / "bert-base-uncased" / "vocab.txt").read_text().splitlines()
    torch.manual_seed(2)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    BertForMaskedLM(BertConfig(vocab_size=len(tokens), max_position_embeddings=48, **shape)).save_pretrained(
        tmp_path / "plain"
    )
    vocab = {token: place for place, token in enumerate(tokens)}
    BertTokenizer(vocab=vocab, model_max_length=48).save_pretrained(tmp_path / "plain")
    transformer = modules.Transformer(str(tmp_path / "plain"), transformer_task="fill-mask")
    folder = routers.save_sparse(tmp_path, [transformer, modules.SpladePooling("max")], limit=20)
    texts = [
        "What's the weather in NY now?",
        "",
        "Où est la bibliothèque? “Naïve” café — 3,5 €",
        "今天天气很好",
        "🙂🚀 \t\n emoji",
        "supercalifragilisticexpialidocious " * 30,
        "the the The THE",
        "[SEP] [UNK] zzzqqq",
        "\ud7ff",
    ]
    check(folder, "native", texts, len(tokens))
    with loaded(folder) as model:
        long = model._engine.run_sync(_request([texts[5], "the"], "query"))
        assert list(long.num_tokens) == [20, 1] and list(long.truncated) == [True, False]
        with pytest.raises(InvalidRequest, match="input 0 has at least .* tokens and the limit is 20"):
            model.embed_sparse([texts[5]], prompt_name="query", truncate=False)


def _request(texts: list[Any], name: str | None = None, **params: Any) -> Request:
    return Request(inputs=texts, tasks=(TaskType.SPARSE,), params=Params(prompt_name=name, **params))


def same(left: list[SparseVector], right: list[SparseVector]) -> bool:
    pairs = list(zip(left, right, strict=True))
    return all(np.array_equal(a.indices, b.indices) and np.array_equal(a.values, b.values) for a, b in pairs)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_is_alone_in_any_order(backend: str, tmp_path: Path) -> None:
    with loaded(routers.save_sparse(tmp_path), backend) as model:
        run = model._engine.run_sync
        alone = {name: [model.embed_sparse([text], prompt_name=name)[0] for text in ALL] for name in SIDES}
        for name, vectors in alone.items():
            assert same(model.embed_sparse(ALL, prompt_name=name), vectors)
            assert same(model.embed_sparse(ALL[::-1], prompt_name=name)[::-1], vectors)
        for count in (0, 1, 4, len(ALL)):
            mixed = run(_request([*ALL[:count], *ALL], num_queries=count))
            assert same(mixed.outputs[TaskType.SPARSE], [*alone["query"][:count], *alone["document"]])
            assert 0 < mixed.batch_rows <= len(ALL)


def test_a_query_costs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with loaded(routers.save_sparse(tmp_path), result_cache_mb=1) as model:
        before = model.embed_sparse(ALL, prompt_name="query")

        def run(*_: Any) -> None:
            raise AssertionError("a model pass")

        monkeypatch.setattr(model._engine.runtime, "run", run)
        assert same(model.embed_sparse(ALL, prompt_name="query"), before)
        response = model._engine.run_sync(_request(["so so sunny", ""], "query"))
        assert list(response.num_tokens) == [3, 0] and response.batch_rows == 0
        many = model.embed_sparse(["the weather is lovely today"] * 3000, prompt_name="query")
        assert len(many) == 3000 and same(many[-1:], many[:1])


def test_token_ids_and_tokens(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    with loaded(folder) as model:
        so = VOCAB.index("so")
        (by_text,) = model.embed_sparse(["so so"], prompt_name="query", return_tokens=True)
        (by_ids,) = model.embed_sparse([[so, so]], prompt_name="query")
        assert by_text.tokens == tuple(VOCAB[i] for i in by_text.indices) and same([by_text], [by_ids])
        with pytest.raises(InvalidRequest, match="out of this model's vocabulary"):
            model.embed_sparse([[len(VOCAB)]], prompt_name="query")


def test_similarity(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    original = theirs(folder)
    scores = original.similarity(original.encode_query(ALL[3:6]), original.encode_document(ALL)).numpy()
    with loaded(folder) as model:
        ours = model.similarity(ALL[3:6], ALL, kind="sparse")
        assert np.abs(ours - scores).max() <= 1e-5 * np.abs(scores).max()


@pytest.mark.parametrize("most", [1, 5, 10_000])
def test_max_active_dims(most: int, tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path, config={"max_active_dims": 3})
    with loaded(folder) as model:
        for name in SIDES:
            whole = model.embed_sparse(ALL, prompt_name=name, max_active_dims=len(VOCAB))
            for given, count in ((None, 3), (most, most)):
                rows = expected(folder, name, max_active_dims=given)
                ours = model.embed_sparse(ALL, prompt_name=name, max_active_dims=given)
                assert np.abs(dense_of(ours, len(VOCAB)) - rows).max() <= 1e-5
                assert [len(vector.values) for vector in ours] == [min(count, len(vector.values)) for vector in whole]
        with pytest.raises(InvalidRequest, match="max_active_dims: 0 is not at least 1"):
            model.embed_sparse(["a"], max_active_dims=0)


def test_of_equal_weights_the_first_are_kept(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    routers.save_token_weights(folder, torch.ones(len(VOCAB)))
    with loaded(folder) as model:
        (vector,) = model.embed_sparse(["today sunny is so the"], prompt_name="query", max_active_dims=2)
        whole = np.sort([VOCAB.index(word) for word in ("today", "sunny", "is", "so", "the")])
        np.testing.assert_array_equal(vector.indices, whole[:2])


def test_prompts(tmp_path: Path) -> None:
    prompts = {"query": "query : ", "document": "passage : ", "sts": "a b c "}
    folder = routers.save_sparse(tmp_path, config={"prompts": prompts, "default_prompt_name": "sts"})
    check(folder)
    with loaded(folder) as model:
        rows = np.stack(
            [
                theirs(folder).encode([text], prompt_name="sts", convert_to_sparse_tensor=False).numpy()[0]
                for text in ALL
            ]
        )
        assert np.abs(dense_of(model.embed_sparse(ALL, prompt_name="sts"), len(VOCAB)) - rows).max() <= 1e-5


def test_default_routes(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path, default_route=None)
    check(folder)
    _parameters(folder, default_route="query")
    check(folder)
    _parameters(folder, default_route=None, allow_empty_key=False)
    with (
        loaded(folder) as model,
        pytest.raises(InvalidRequest, match="say what the inputs are for.* one of query, document"),
    ):
        model.embed_sparse(["a"])
    with loaded(folder) as model:
        for name in ("query", "document"):
            rows = expected(folder, name)
            assert np.abs(dense_of(model.embed_sparse(ALL, prompt_name=name), len(VOCAB)) - rows).max() <= 1e-5


@pytest.mark.parametrize(
    "mappings",
    [
        {("query", "text"): "document", ("document", None): "query"},
        {(None, "text"): "query", ("document", "text"): "document"},
        {(None, None): "document", ("look", "text"): "query"},
        {("query", "image"): "document"},
        {("query", ("image", "text")): "document", (None, "image"): "query"},
    ],
)
def test_route_mappings(mappings: dict[Any, str], tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path, route_mappings=mappings)
    names = [*SIDES, *(task for task, _ in mappings if task == "look")]
    with loaded(folder) as model:
        for name in names:
            rows = expected(folder, name)
            assert np.abs(dense_of(model.embed_sparse(ALL, prompt_name=name), len(VOCAB)) - rows).max() <= 1e-5, name


def test_routes_of_other_names(tmp_path: Path) -> None:
    folder = _renamed(routers.save_sparse(tmp_path), {"query": "lookup", "document": "expand"}, default_route="expand")
    with loaded(folder) as model:
        assert {"lookup", "expand", "query", "document"} <= {*model.info.prompts}
        for name in ("lookup", "expand", None):
            rows = expected(folder, name)
            assert np.abs(dense_of(model.embed_sparse(ALL, prompt_name=name), len(VOCAB)) - rows).max() <= 1e-5
        with pytest.raises(InvalidRequest, match="no route for 'query'; .* one of lookup, expand"):
            model.embed_sparse(ALL, prompt_name="query")


@pytest.mark.parametrize("at", ["query_0_SparseStaticEmbedding", "."])
def test_weights_by_token(at: str, tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    weights = {"the": 1.5, "weather": 2, "not a word": 0.25, "a": -1.0}
    table = folder / "query_0_SparseStaticEmbedding"
    (folder / at / "idf.json").write_text(json.dumps(weights))
    (table / "config.json").write_text('{"frozen": true, "path": "idf.json"}')
    with loaded(folder) as model:
        (vector,) = model.embed_sparse(["the weather a UNKNOWN so"], prompt_name="query", return_tokens=True)
        found = dict(zip(vector.tokens or (), vector.values.tolist(), strict=True))
        assert found == {"the": 1.5, "weather": 2.0, "a": -1.0, "[UNK]": 0.25}
        tokenizer = theirs(routers.save_sparse(tmp_path / "other"))[0].tokenizer
        original = modules.SparseStaticEmbedding.from_json(str(folder / at / "idf.json"), tokenizer=tokenizer)
        np.testing.assert_array_equal(dense_of([vector], len(VOCAB))[0] != 0, original.weight.detach().numpy() != 0)


def _renamed(folder: Path, names: dict[str, str], **parameters: Any) -> Path:
    path = folder / "router_config.json"
    settings = json.loads(path.read_text())
    settings["structure"] = {names.get(name, name): ids for name, ids in settings["structure"].items()}
    settings["parameters"].update(parameters)
    path.write_text(json.dumps(settings))
    return folder


def _parameters(folder: Path, **parameters: Any) -> None:
    _renamed(folder, {}, **parameters)


def test_weights_in_half_precision_are_widened(tmp_path: Path) -> None:
    folder = routers.save_sparse(tmp_path)
    routers.save_token_weights(folder, routers.token_weights(len(VOCAB)).to(torch.bfloat16))
    check(folder)


def test_routes_that_share_the_encoder(tmp_path: Path) -> None:
    """They may take the logarithm twice or once."""
    transformer, pooling = routers.encoder_modules(tmp_path)
    routes = {"query": [transformer, modules.SpladePooling("max", "log1p_relu")], "document": [transformer, pooling]}
    model = sentence_transformers.SparseEncoder(modules=[modules.Router(routes, default_route="document")])
    model.save(str(tmp_path / "saved"), create_model_card=False)
    folder = tmp_path / "saved"
    with loaded(folder) as ours:
        for name in SIDES:
            rows = expected(folder, name)
            assert np.abs(dense_of(ours.embed_sparse(ALL, prompt_name=name), len(VOCAB)) - rows).max() <= 1e-5


def test_the_flag_limits_queries_too(tmp_path: Path) -> None:
    with loaded(routers.save_sparse(tmp_path), max_seq_len=5) as model:
        for name, count in (("query", 5), ("document", 5)):
            response = model._engine.run_sync(_request([routers.LONG], name))
            assert list(response.num_tokens) == [count] and list(response.truncated) == [True]
        assert list(model._engine.run_sync(_request(["the " * 9], "query", max_tokens=3)).num_tokens) == [3]
