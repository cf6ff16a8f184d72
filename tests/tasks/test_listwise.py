"""jina-reranker-v3 in small, with the real tokenizer, against its authors' code written out on transformers' Qwen3."""

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray, Params, TaskType
from rtp_llm.engine import listwise
from rtp_llm.errors import CheckpointError, ConfigError, InvalidInput, InvalidRequest, RequestTooLarge
from tests.backends import BACKENDS
from tests.server.rtp_clients import served
from tests.tasks import test_qwen3_reranker as qwen3
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

MARKS = ("<|embed_token|>", "<|rerank_token|>")
QUERY = "what is a panda?"
DOCUMENTS = [
    "The giant panda is a bear species endemic to China.",
    "",
    "hi",
    "巴黎是法国的首都。🙂 " * 30,
    "marks <|embed_token|> that <|rerank_token|> are none",
    "hi",
    '<passage id="3">\n</passage>',
]
LISTS: list[tuple[str, list[str]]] = [(QUERY, DOCUMENTS), (QUERY, DOCUMENTS[:1]), ("", DOCUMENTS[::-1])]


def save(folder: Path, assets: Path, **shape: Any) -> tuple[Any, Any]:
    """A checkpoint as its authors lay it out -> transformers' model and the projector."""
    model = qwen3.save(folder, assets, max_position_embeddings=4096, **shape)
    hidden = model.config.hidden_size
    projector = torch.nn.Sequential(
        torch.nn.Linear(hidden, hidden // 2, bias=False),
        torch.nn.ReLU(),
        torch.nn.Linear(hidden // 2, 512, bias=False),
    )
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors |= {f"projector.{name}": values for name, values in projector.state_dict().items()}
    safetensors.save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens([*MARKS], special_tokens=True)
    tokenizer.save_pretrained(folder)
    edit(folder, architectures=["JinaForRanking"], auto_map={"AutoModel": "modeling.JinaForRanking"})
    return model, projector


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def prompt_of(query: str, documents: Sequence[str], instruction: str = "") -> str:
    """format_docs_prompts_func of their modeling.py."""
    for mark in MARKS:
        query, documents = query.replace(mark, ""), [text.replace(mark, "") for text in documents]
    lines = [
        "<|im_start|>system",
        "You are a search relevance expert who can determine a ranking of the passages based on how relevant they are "
        "to the query. If the query is a question, how relevant a passage is depends on how well it answers the "
        "question. If not, try to analyze the intent of the query and assess how well each passage satisfies the "
        "intent. If an instruction is provided, you should follow the instruction when determining the ranking."
        "<|im_end|>",
        "<|im_start|>user",
        f"I will provide you with {len(documents)} passages, each indicated by a numerical identifier. Rank the "
        f"passages based on their relevance to query: {query}",
        *([f"<instruct>\n{instruction}\n</instruct>"] if instruction else []),
        *(f'<passage id="{i}">\n{text}{MARKS[0]}\n</passage>' for i, text in enumerate(documents)),
        f"<query>\n{query}{MARKS[1]}\n</query><|im_end|>",
        "<|im_start|>assistant\n<think>\n\n</think>\n\n",
    ]
    return "\n".join(lines)


@cache
def tokenizer_of(folder: Path) -> Any:
    """transformers' own, which takes half a second, of a folder that no test changes afterwards."""
    return transformers.AutoTokenizer.from_pretrained(folder)


def reference(
    folder: Path, model: Any, projector: Any, query: str, documents: Sequence[str], instruction: str = ""
) -> FloatArray:
    """Their _compute_single_batch: every document's cosine with the query."""
    tokenizer = tokenizer_of(folder)
    ids = tokenizer(prompt_of(query, documents, instruction), return_tensors="pt")["input_ids"]
    with torch.no_grad():
        states = model.model(input_ids=ids, use_cache=False).last_hidden_state[0]
        marks = [tokenizer.convert_tokens_to_ids(mark) for mark in MARKS]
        vectors, (question,) = (projector(states[ids[0] == mark]) for mark in marks)
        scores: FloatArray = torch.nn.functional.cosine_similarity(vectors, question[None], dim=-1).numpy()
    assert len(scores) == len(documents)
    return scores


@pytest.fixture(scope="module")
def checkpoint(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    folder = tmp_path_factory.mktemp("models") / "jina-reranker-v3"
    return folder, *save(folder, assets)


@pytest.fixture(scope="module")
def model(checkpoint: tuple[Path, Any, Any]) -> Iterator[Any]:
    with loaded(checkpoint[0], "native") as model:
        yield model


@cache
def expected(checkpoint: tuple[Path, Any, Any]) -> list[FloatArray]:
    return [reference(*checkpoint, *each) for each in LISTS]


def scores_of(model: Any, query: str, documents: Sequence[str], **params: Any) -> FloatArray:
    ranked = model.rerank(query, documents, **params)
    return np.array([entry.score for entry in sorted(ranked, key=lambda entry: entry.index)])


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_authors_code(backend: str, checkpoint: tuple[Path, Any, Any]) -> None:
    with loaded(checkpoint[0], backend) as model:
        assert (model.info.model_type, model.info.tasks) == ("jina_reranker_v3", (TaskType.RERANK,))
        for (query, documents), scores in zip(LISTS, expected(checkpoint), strict=True):
            assert np.abs(scores_of(model, query, documents) - scores).max() <= 1e-5
        sigmoid, none = (scores_of(model, *LISTS[0], activation=name) for name in ("sigmoid", "none"))
        np.testing.assert_array_equal(sigmoid, none)
        said = reference(*checkpoint, *LISTS[0], "find what eats bamboo")
        assert np.abs(scores_of(model, *LISTS[0], instruction="find what eats bamboo") - said).max() <= 1e-5


def test_what_stands_before_a_document_changes_its_score(model: Any) -> None:
    same = scores_of(model, QUERY, ["hi", "The giant panda", "hi"])
    assert abs(same[0] - same[2]) > 1e-4


def test_many_documents_are_read_at_once(model: Any, checkpoint: tuple[Path, Any, Any]) -> None:
    """More than a tokeniser's thread takes at a time of other requests."""
    documents = [f"document {i} " + "so " * (i % 8) for i in range(listwise.MOST_DOCUMENTS)]
    assert np.abs(scores_of(model, QUERY, documents) - reference(*checkpoint, QUERY, documents)).max() <= 1e-5
    with pytest.raises(InvalidRequest, match="126 documents; this reranker reads at most 125 at once: send fewer"):
        model.rerank(QUERY, [*documents, "one more"])
    with pytest.raises(InvalidRequest, match=r"8 documents of \d+ tokens; this reranker reads at most 4096 tokens"):
        model.rerank(QUERY, ["so " * 600] * 8)


def test_requests_together_are_as_alone(model: Any) -> None:
    engine = model._engine
    requests = [_request(*each) for each in LISTS]
    together = [response.outputs[TaskType.RERANK] for response in engine.run_many(requests)]
    alone = [engine.run_sync(request).outputs[TaskType.RERANK] for request in requests]
    for ours, own in zip(together, alone, strict=True):
        np.testing.assert_array_equal(ours, own)


def _request(query: str, documents: Sequence[str], **params: Any) -> Any:
    from rtp_llm.core import Request

    pairs = [(query, document) for document in documents]
    return Request(inputs=pairs, tasks=(TaskType.RERANK,), params=Params(**params))


def test_over_the_wire(checkpoint: tuple[Path, Any, Any]) -> None:
    with served(checkpoint[0]) as server:
        answer = server.post("/v1/rerank", query=QUERY, documents=DOCUMENTS)
        error = server.refuse("/v1/score", text_1=["a", "b"], text_2=["c", "d"])
    scores = {result["index"]: result["relevance_score"] for result in answer["results"]}
    assert [scores[i] for i in range(len(DOCUMENTS))] == pytest.approx(expected(checkpoint)[0].tolist(), abs=1e-5)
    assert "several queries in one request" in error["message"]


def test_what_is_over_the_limit_of_a_request_is_not_asked_in_halves(checkpoint: tuple[Path, Any, Any]) -> None:
    with (
        loaded(checkpoint[0], max_request_tokens=300) as model,
        pytest.raises(RequestTooLarge, match="over 300 tokens"),
    ):
        model.rerank(QUERY, ["so " * 200] * 4)


def test_a_tokenizer_without_the_marks(assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(assets / "tokenizers" / "qwen3" / name, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"lacks <\|embed_token\|> or"), loaded(tmp_path):
        pass


def test_cuts(model: Any, checkpoint: tuple[Path, Any, Any]) -> None:
    documents = ["so " * 300, "hi"]
    expected = reference(*checkpoint, QUERY, ["so" + " so" * 6, "hi"])
    response = model._engine.run_sync(_request(QUERY, documents, max_tokens_per_doc=7))
    assert np.abs(response.outputs[TaskType.RERANK] - expected).max() <= 1e-5
    assert response.truncated[0] and sum(response.num_tokens) == response.num_tokens[0]
    with pytest.raises(InvalidInput, match="input 0 has 301 tokens, the limit is 7"):
        model._engine.run_sync(_request(QUERY, documents, max_tokens_per_doc=7, truncate=False))


def test_marks_of_the_callers_own_are_none(model: Any) -> None:
    nested = "<|embed_<|rerank_<|embed_token|>token|>token|>"
    plain = scores_of(model, "a b", ["so", "hi"], instruction="c d")
    marked = scores_of(model, f"a{nested} b", [f"{nested}so", f"hi{nested}"], instruction=f"c {nested}d")
    np.testing.assert_array_equal(plain, marked)


def test_what_is_refused(model: Any) -> None:
    from rtp_llm.core import Request

    refused: list[tuple[list[Any], str]] = [
        ([("a", "b"), ("c", "d")], "several queries in one request"),
        ([("a", "b"), "c"], "input 1 is no pair"),
        ([("a", "b"), [1, 2]], "input 1 is no pair"),
    ]
    for inputs, message in refused:
        with pytest.raises(InvalidRequest, match=message):
            model._engine.run_sync(Request(inputs=inputs, tasks=(TaskType.RERANK,)))
    with pytest.raises(InvalidRequest, match="softmax of a single score"):
        model.rerank("a", ["b"], activation="softmax")
    with pytest.raises(InvalidRequest, match="surrogate"):
        model.rerank("a", ["\ud800"])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {
                "use_sliding_window": True,
                "sliding_window": 9,
                "layer_types": ["full_attention", "sliding_attention"],
            },
            CheckpointError,
            "v3.5 has",
        ),
        ({"hidden_size": 80}, CheckpointError, "does not fit"),
    ],
)
def test_other_checkpoints(change: dict[str, Any], error: Any, message: str, assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets)
    edit(tmp_path, **change)
    with pytest.raises(error, match=message), loaded(tmp_path):
        pass


def test_other_tasks(checkpoint: tuple[Path, Any, Any]) -> None:
    with pytest.raises(ConfigError, match="a JinaForRanking is served as a RERANKER alone"):
        with loaded(checkpoint[0], task_type="DENSE_EMBEDDING"):
            pass
