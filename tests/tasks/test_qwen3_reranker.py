"""Qwen3-Reranker in each of its forms against the model card's own code, random weights, the start of its tokenizer."""

import json
import shutil
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.chat_format import ChatFormat
from rtp_llm.config import EngineConfig
from rtp_llm.core import Input, Params, Prefixes, TaskType, pack
from rtp_llm.engine.chat_rerank import ChatRerank
from rtp_llm.engine.rerank_template import RerankTemplate
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.engine.tokenizer_pool import TokenizerPool
from rtp_llm.errors import CheckpointError, ConfigError, InvalidInput, InvalidRequest
from rtp_llm.model_config import read_model_config
from tests.backends import BACKENDS
from tests.engine.tokenizer_folders import shortened
from tests.models.oracle import add_noise
from tests.server.rtp_clients import served
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LIMIT = 160
YES, NO = 9693, 2152
SHAPE = {
    "hidden_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 14,
    "intermediate_size": 48, "vocab_size": 151936, "max_position_embeddings": 512,
}  # fmt: skip
PAIRS = [
    ("what is a panda?", "hi"),
    ("what is a panda?", "The giant panda is a bear species endemic to China."),
    ("", ""),
    ("capital of France", "巴黎是法国的首都。🙂 " * 40),
    ("a very long query " * 40, "document"),
]
INSTRUCTION = "Given a web search query, retrieve relevant passages that answer the query"


def save(folder: Path, assets: Path, *, tied: bool = True, head: str = "ForCausalLM", **shape: Any) -> Any:
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**{**SHAPE, **shape}, tie_word_embeddings=tied)
    model = getattr(transformers, f"Qwen3{head}")(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    words = assets / "tokenizers" / "qwen3"
    (folder / "tokenizer.json").write_text(shortened(words / "tokenizer.json"), encoding="utf-8")
    shutil.copy(words / "tokenizer_config.json", folder / "tokenizer_config.json")
    return model


def card_ids(folder: Path, pairs: list[tuple[str, str]], instruction: str, limit: int) -> list[list[int]]:
    """process_inputs of the model card."""
    tokenize = transformers.AutoTokenizer.from_pretrained(folder, padding_side="left")
    prefix = (
        "<|im_start|>system\nJudge whether the Document meets the requirements based on the Query and the Instruct "
        'provided. Note that the answer can only be "yes" or "no".<|im_end|>\n<|im_start|>user\n'
    )
    suffix = "<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    before, after = (tokenize.encode(text, add_special_tokens=False) for text in (prefix, suffix))
    texts = [f"<Instruct>: {instruction}\n<Query>: {query}\n<Document>: {doc}" for query, doc in pairs]
    bodies = tokenize(texts, padding=False, truncation="longest_first", max_length=limit - len(before) - len(after))
    return [before + body + after for body in bodies["input_ids"]]


def card_scores(model: Any, all_ids: list[list[int]]) -> Any:
    """compute_logits of the model card, one pair at a time."""
    scores = []
    with torch.no_grad():
        for ids in all_ids:
            last = model(torch.tensor([ids])).logits[:, -1, :]
            both = torch.stack([last[:, NO], last[:, YES]], dim=1)
            scores.append(torch.nn.functional.log_softmax(both, dim=1)[:, 1].exp().item())
    return np.array(scores)


def scores(model: Any, **params: Any) -> Any:
    return np.array([model.rerank(query, [document], **params)[0].score for query, document in PAIRS])


@pytest.fixture(scope="module")
def original(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A checkpoint that no test changes, and transformers' model of it."""
    folder = tmp_path_factory.mktemp("original") / "Qwen3-Reranker-0.6B"
    return folder, save(folder, assets)


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "apart"])
def card(
    request: pytest.FixtureRequest, original: tuple[Path, Any], assets: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Any]:
    """A checkpoint, and what the model card's code makes of `PAIRS`, for all backends once."""
    folder, theirs = original
    if not request.param:
        folder = tmp_path_factory.mktemp("card") / "Qwen3-Reranker-0.6B"
        theirs = save(folder, assets, tied=False)
    return folder, card_scores(theirs, card_ids(folder, PAIRS, INSTRUCTION, LIMIT))


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_the_model_card(backend: str, card: tuple[Path, Any]) -> None:
    folder, expected = card
    with loaded(folder, backend, max_seq_len=LIMIT) as model:
        assert model.info.tasks == (TaskType.RERANK,)
        ours = scores(model)
        assert np.abs(ours - expected).max() <= 1e-5
        logits = np.log(expected) - np.log1p(-expected)
        assert np.abs(scores(model, activation="none") - logits).max() <= 1e-5


def test_instruction_and_batch(original: tuple[Path, Any]) -> None:
    folder, theirs = original
    documents = [document for _, document in PAIRS]
    pairs = [("panda", document) for document in documents]
    expected = card_scores(theirs, card_ids(folder, pairs, "Find the bear", LIMIT))
    with loaded(folder, "native", max_seq_len=LIMIT) as model:
        together = {entry.index: entry.score for entry in model.rerank("panda", documents, instruction="Find the bear")}
        alone = [model.rerank("panda", [text], instruction="Find the bear")[0].score for text in documents]
    assert [together[index] for index in range(len(documents))] == alone
    assert np.abs(np.array(alone) - expected).max() <= 1e-5


def test_an_instruction_is_bounded(original: tuple[Path, Any]) -> None:
    with loaded(original[0], max_seq_len=LIMIT) as model, pytest.raises(InvalidRequest, match="instruction has"):
        model.rerank("panda", ["a"], instruction="find the bear " * 1000)


def test_max_tokens_per_doc(original: tuple[Path, Any]) -> None:
    with loaded(original[0], max_seq_len=LIMIT) as model:
        (cut,) = model.rerank("panda", ["one two three four five"], max_tokens_per_doc=3)
        (whole,) = model.rerank("panda", ["one two three"])
    assert cut.score == whole.score


def test_the_documents_of_a_query_share_what_stands_before_them(original: tuple[Path, Any]) -> None:
    documents = ["a panda", "", ": a colon", "the bear " * 100, "巴黎"]
    pairs: list[Input] = [*(("panda", document) for document in documents), ("alone", "a"), [1, 2, 3]]
    with loaded(original[0], "native", max_seq_len=LIMIT) as model:
        pool = model._engine._tokenizer
        items = pool.encode(pairs, Params(), rerank=True)
        ids = pool.encode([("panda", "")], Params(), rerank=True)[0].input_ids
    prefixes = [np.frombuffer(item.prefix, np.int32).tolist() for item in items]
    assert len(prefixes[0]) == len(ids) - 10 and prefixes[0] == ids[: len(prefixes[0])].tolist()
    assert prefixes[:5] == [prefixes[0]] * 5 and prefixes[5:] == [[], []]
    assert pack(items[:5], "last", Prefixes.find(items[:5], {})).num_seqs == 6


@pytest.mark.parametrize("backend", ["native", "numpy"])
def test_what_is_kept_of_a_query_changes_no_bit(backend: str, assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets, num_hidden_layers=3)
    documents = [f"document {i} " + "of a panda " * (i % 5) for i in range(12)]
    scores: dict[int, Any] = {}
    computed: dict[int, list[int]] = {}
    for megabytes in (0, 1):
        options = {"max_context_batch_size": 1, "max_seq_len": LIMIT, "num_threads": 1, "prefix_cache_mb": megabytes}
        with loaded(tmp_path, backend, task_type="reranker", **options) as model:
            runtime: Any = model._engine.runtime
            tokens = computed.setdefault(megabytes, [])
            prepare = runtime.model.prepare
            runtime.model.prepare = lambda batch, tokens=tokens, prepare=prepare: (
                tokens.append(batch.num_tokens) or prepare(batch)
            )
            twice = [model.rerank("panda", documents) for _ in range(2)]
            assert [entry.score for entry in twice[0]] == [entry.score for entry in twice[1]]
            scores[megabytes] = sorted((entry.index, entry.score) for entry in twice[0])
            assert (runtime._prefixes.num_bytes > 0) == (megabytes > 0)
    assert scores[0] == scores[1]
    # Kept: the prefix is computed once for both requests; else once a batch, of which each has several.
    prefix = (sum(computed[0]) - sum(computed[1])) // (len(computed[0]) - 1)
    assert len(computed[0]) > 2 and prefix > 60
    assert sum(computed[0]) - sum(computed[1]) == (len(computed[0]) - 1) * prefix


def test_conversion_to_sequence_classification(assets: Path, tmp_path: Path) -> None:
    language_model = save(tmp_path / "original", assets, tied=False)
    torch.manual_seed(0)
    config = transformers.Qwen3Config(**SHAPE, num_labels=1, pad_token_id=151643)
    conversion = transformers.Qwen3ForSequenceClassification(config).eval()
    conversion.model.load_state_dict(language_model.model.state_dict())
    rows = language_model.lm_head.weight.detach()
    conversion.score.weight.data = (rows[YES] - rows[NO])[None]
    folder = tmp_path / "conversion"
    conversion.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tmp_path / "original" / name, folder / name)
    expected = card_scores(language_model, card_ids(folder, PAIRS, INSTRUCTION, LIMIT))
    with loaded(folder, max_seq_len=LIMIT) as model:
        assert model.info.tasks == (TaskType.RERANK, TaskType.CLASSIFY)
        assert np.abs(scores(model) - expected).max() <= 1e-5


@pytest.mark.parametrize("no", [NO, None])
def test_logit_score_module(no: int | None, assets: Path, tmp_path: Path) -> None:
    theirs = save(tmp_path, assets)
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.base.modules.transformer.Transformer"}
    ]
    module = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules.append({"idx": 1, "name": "1", "path": "1_LogitScore", "type": module})
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    (tmp_path / "1_LogitScore").mkdir()
    settings = {"true_token_id": YES, "false_token_id": no, "module_input_name": "causal_logits"}
    (tmp_path / "1_LogitScore" / "config.json").write_text(json.dumps(settings))
    (tmp_path / "config_sentence_transformers.json").write_text(
        json.dumps({"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.linear.Identity"})
    )
    expected = []
    with torch.no_grad():
        for ids in card_ids(tmp_path, PAIRS, INSTRUCTION, LIMIT):
            last = theirs(torch.tensor([ids])).logits[0, -1]
            expected.append(float(last[YES] if no is None else last[YES] - last[no]))
    with loaded(tmp_path, max_seq_len=LIMIT) as model:
        assert model.info.tasks == (TaskType.RERANK,)
        assert np.abs(scores(model) - np.array(expected)).max() <= 1e-5


def test_the_route_gives_p_yes_as_the_original(original: tuple[Path, Any]) -> None:
    documents = [document for _, document in PAIRS]
    with served(original[0], max_seq_len=LIMIT) as server:
        plain = server.post("/v1/reranker", query="panda", documents=documents, instruction="Find the bear")
        assert server.post("/v1/reranker", query="panda", documents=documents, normalize=True)["results"]
        best = server.model.rerank("panda", documents, instruction="Find the bear")
        default = server.post("/v1/reranker", query="panda", documents=documents)
    assert [result["index"] for result in plain["results"]] == [entry.index for entry in best]
    assert [result["relevance_score"] for result in plain["results"]] == pytest.approx(
        [e.score for e in best], abs=1e-6
    )
    assert default["results"] != plain["results"]
    assert all(0 < result["relevance_score"] < 1 for result in plain["results"])


def test_refusals(assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets)
    with loaded(tmp_path, task_type="reranker", max_seq_len=LIMIT) as model:
        with pytest.raises(InvalidRequest, match="input 0 is a single text; a reranker reads pairs"):
            model._run(["just a text"], (TaskType.RERANK,), Params(), progress=False)
        with pytest.raises(InvalidRequest, match="shorten or split it"):
            model.rerank("a " * 200, ["b"], truncate=False)
    with pytest.raises(ConfigError, match="leaves no room beside a template of"):
        with loaded(tmp_path, task_type="reranker", max_seq_len=40):
            pass
    path = tmp_path / "config.json"
    path.write_text(path.read_text().replace('"qwen3"', '"qwen2"'))
    with pytest.raises((ConfigError, CheckpointError)):
        with loaded(tmp_path, task_type="reranker"):
            pass


PAIR: Input = ("a", "b")
BAD: Input = ("a", "alpha \ud800")
MISREAD: list[tuple[list[Input], dict[str, Any], int]] = [
    ([[1, 2, 3], [1, 2], BAD], {}, 2),
    ([PAIR] * 7 + [BAD], {}, 7),
    ([PAIR] * 7 + [BAD], {"max_tokens_per_doc": 4}, 7),
    ([[1], ("a", "b"), ("a", "b " * 200)], {"truncate": False}, 2),
]


@cache
def encoder_of(assets: Path, with_template: bool) -> ChatRerank | RerankTemplate:
    """Qwen3's tokenizer, which takes most of a second, once for each template."""
    tokenizer = Tokenizer(assets / "tokenizers" / "qwen3", max_seq_len=LIMIT)
    if not with_template:
        return RerankTemplate(tokenizer)
    pytest.importorskip("jinja2")
    tokenizer.chat_template.source = "{% for m in messages %}{{ m.content }} {% endfor %}"
    return ChatRerank(tokenizer, ChatFormat())


@pytest.mark.parametrize("with_template", [False, True])
@pytest.mark.parametrize(("inputs", "params", "index"), MISREAD)
def test_errors_name_the_pair(
    inputs: Sequence[Input], params: dict[str, Any], index: int, with_template: bool, assets: Path
) -> None:
    encoder = encoder_of(assets, with_template)
    with pytest.raises(InvalidInput, match=f"^input {index} ") as caught:
        encoder.encode(inputs, Params(**params))
    assert caught.value.index == index
    with pytest.raises(InvalidInput, match=f"^input {index + 64} "):
        encoder.encode(inputs, Params(**params), 64)


def test_many_tiny_pairs_are_not_tokenised_where_they_are(assets: Path) -> None:
    """The template's words stand around each, and are tokenised with each."""
    encoder = encoder_of(assets, False)
    assert isinstance(encoder, RerankTemplate)
    pool = TokenizerPool(encoder._tokenizer, 1, reranking=encoder)
    (item,), (other,) = encoder.encode([("a", "b")], Params()), encoder._tokenizer.encode(["a b"], Params())
    assert encoder.around_pair > item.num_tokens - len(encoder._prefix) - len(encoder._suffix) > other.num_tokens
    assert [pool.is_small([PAIR] * count, pool.estimate(Params())) for count in (1, 10, 20, 600)] == [
        True, True, False, False
    ]  # fmt: skip


def test_a_missing_head_is_named(assets: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save(tmp_path, assets, tied=False)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="has no lm_head.weight, and tie_word_embeddings is not true"):
        with loaded(tmp_path, task_type="reranker"):
            pass


@pytest.mark.parametrize(
    ("place", "task"),
    [
        ("of-rerankers/Qwen3-0.6B", TaskType.DENSE),
        ("Qwen3-Reranker-0.6B", TaskType.RERANK),
        ("models--Qwen--Qwen3-Reranker-0.6B/snapshots/6e9e", TaskType.RERANK),
    ],
)
def test_known_by_its_name_alone(place: str, task: TaskType, tmp_path: Path) -> None:
    folder = tmp_path / place
    folder.mkdir(parents=True)
    (folder / "config.json").write_text('{"model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"]}')
    assert read_model_config(folder, EngineConfig(checkpoint_path=str(folder))).tasks[0] == task
