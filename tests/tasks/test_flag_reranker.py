"""bge-reranker-v2-gemma in small: a Gemma asked with FlagEmbedding's prompt, against transformers by its formulas."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import Params, TaskType
from rtp_llm.engine.flag_rerank import FlagRerank
from rtp_llm.engine.tokenizer import Tokenizer
from rtp_llm.errors import CheckpointError, InvalidInput, InvalidRequest
from rtp_llm.model_config import read_model_config
from tests.backends import BACKENDS
from tests.engine.test_decoder_tokenizers import gemma
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

PROMPT = (
    "Given a query A and a passage B, determine whether the passage contains an answer to the query by providing a "
    "prediction of either 'Yes' or 'No'."
)
LIMIT = 420  # the prompt takes some 130 tokens of this tokenizer, twice
SHAPE: dict[str, Any] = {
    "vocab_size": 450, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 1,
    "head_dim": 16, "intermediate_size": 48, "max_position_embeddings": 2048, "initializer_range": 0.1,
    "pad_token_id": 0,
}  # fmt: skip
PAIRS = [
    ("he drove", "the weather is lovely today"),
    ("", ""),
    ("he drove to the stadium", "so sunny outside " * 60),
    ("a very long query " * 40, "the weather is lovely"),
    ("he drove", "naïve 🙂 café\n今天"),
]


@pytest.mark.parametrize(
    ("inputs", "params", "message"),
    [
        ([[1, 2], ("a", "b"), ("a", "b \ud800")], {}, "^input 2 is not valid Unicode"),
        ([("a", "b"), ("a \ud800", "b")], {}, "^input 1 is not valid Unicode"),
        ([("a", "b")], {"instruction": "\ud800"}, "^instruction is not valid Unicode"),
        ([("a", "b")], {"instruction": "x" * 16 * LIMIT + "x"}, "^instruction has .* characters, the limit is"),
    ],
)
def test_errors_name_what_is_wrong(
    inputs: list[Any], params: dict[str, Any], message: str, checkpoint: tuple[Path, Any]
) -> None:
    tokenizer = Tokenizer(checkpoint[0], max_seq_len=LIMIT)
    with pytest.raises(InvalidRequest, match=message):
        FlagRerank(tokenizer).encode(inputs, Params(**params))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A folder with the reranker's name -> and transformers' model of it."""
    folder = tmp_path_factory.mktemp("models") / "bge-reranker-v2-gemma"
    torch.manual_seed(0)
    theirs = transformers.GemmaForCausalLM(transformers.GemmaConfig(**SHAPE)).eval()
    add_noise(theirs)
    theirs.save_pretrained(folder)
    tokenizer = gemma()
    tokenizer.add_tokens(["Yes"])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder, theirs


def flag_ids(folder: Path, query: str, passage: str, max_length: int, prompt: str = PROMPT) -> list[int]:
    """FlagEmbedding's tokenising and joining, step by step."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)

    def ids(text: str, **options: Any) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False, **options)["input_ids"])

    first = ids(f"A: {query}", truncation=True, max_length=max_length * 3 // 4)
    second, line, question = ids(f"B: {passage}", truncation=True, max_length=max_length), ids("\n"), ids(prompt)
    first, second = [tokenizer.bos_token_id, *first], [*line, *second]
    over = len(first) + len(second) - (max_length + len(line) + len(question))
    return first + (second[:-over] if over > 0 else second) + line + question


def expected(folder: Path, theirs: Any, prompt: str = PROMPT) -> list[float]:
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    end = len(tokenizer(f"\n{prompt}", add_special_tokens=False)["input_ids"])
    logits = []
    for query, passage in PAIRS:
        ids = flag_ids(folder, query, passage, LIMIT - 2 * end, prompt)
        assert len(ids) <= LIMIT
        with torch.no_grad():
            logits.append(theirs(torch.tensor([ids])).logits[0, -1, yes].item())
    return logits


@pytest.mark.parametrize("backend", BACKENDS)
def test_equals_flag_embeddings_formulas(backend: str, checkpoint: tuple[Path, Any]) -> None:
    folder, theirs = checkpoint
    logits = np.array(expected(folder, theirs))
    with loaded(folder, backend, max_seq_len=LIMIT) as model:
        assert model.info.tasks == (TaskType.RERANK,)
        ours = [model.rerank(query, [passage], activation="none")[0].score for query, passage in PAIRS]
        assert np.abs(ours - logits).max() <= 1e-5
        scores = [model.rerank(query, [passage])[0].score for query, passage in PAIRS]
        assert np.abs(scores - 1 / (1 + np.exp(-logits))).max() <= 1e-6
        together = model.rerank("he drove", [passage for _, passage in PAIRS], activation="none")
        alone = [model.rerank("he drove", [passage], activation="none")[0].score for _, passage in PAIRS]
        by_place = [entry.score for entry in sorted(together, key=lambda entry: entry.index)]
        assert np.abs(np.array(by_place) - alone).max() <= (1e-5 if backend == "torch" else 0)


def test_a_question_of_ones_own(checkpoint: tuple[Path, Any]) -> None:
    folder, theirs = checkpoint
    with loaded(folder, "native", max_seq_len=LIMIT) as model:
        ours = [model.rerank(q, [d], activation="none", instruction="Is B true of A?")[0].score for q, d in PAIRS[:2]]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    yes = tokenizer("Yes", add_special_tokens=False)["input_ids"][0]
    for score, (query, passage) in zip(ours, PAIRS, strict=False):
        ids = flag_ids(folder, query, passage, 300, "Is B true of A?")
        with torch.no_grad():
            assert abs(theirs(torch.tensor([ids])).logits[0, -1, yes].item() - score) <= 1e-5


def test_what_cannot_be_asked(checkpoint: tuple[Path, Any]) -> None:
    with loaded(checkpoint[0], "native", max_seq_len=LIMIT) as model:
        with pytest.raises(InvalidInput, match="is longer than the limit allows"):
            model.rerank("he drove", ["so sunny " * 200], truncate=False)
        with pytest.raises(InvalidInput, match=" has a query of [0-9]+ tokens, the limit is"):
            model.rerank("he drove " * 200, ["so sunny"], truncate=False)
        with pytest.raises(InvalidRequest, match="a limit of 9 tokens leaves no room"):
            model._run([("a", "b")], (TaskType.RERANK,), Params(max_tokens=9), progress=False)
        with pytest.raises(InvalidInput, match="a reranker reads pairs"):
            model._run(["a"], (TaskType.RERANK,), Params(), progress=False)


def test_a_capped_logit_is_refused(checkpoint: tuple[Path, Any]) -> None:
    override = '{"final_logit_softcapping": 30.0}'
    with pytest.raises(CheckpointError, match=r"final_logit_softcapping 30\.0; the logit of a reranker"):
        with loaded(checkpoint[0], "native", json_model_override_args=override):
            pass


def test_a_name_tells(checkpoint: tuple[Path, Any]) -> None:
    folder = checkpoint[0]
    config = read_model_config(folder, EngineConfig(checkpoint_path=str(folder)))
    assert config.is_flag_reranker and config.is_language_reranker
    plain = read_model_config(folder, EngineConfig(checkpoint_path=str(folder), task_type="DENSE_EMBEDDING"))
    assert not plain.is_flag_reranker
