"""NVIDIA's Llama that looks both ways, in small: an embedder and a reranker by the formulas of its authors' code."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import FloatArray
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.engine.test_decoder_tokenizers import CASES
from tests.models.oracle import add_noise
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

LIMIT = 60
SHAPE: dict[str, Any] = {
    "vocab_size": 440, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": LIMIT, "initializer_range": 0.1, "pad_token_id": 2,
}  # fmt: skip
PAIRS = [
    ("he drove", "the weather is lovely today"),
    ("he {drove}", "to the {0} stadium"),
    ("", ""),
    ("he drove to the stadium", "so sunny outside " * 60),
]
TEMPERATURE = 0.3


@pytest.fixture(scope="module", params=["embedder", "reranker"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, str]:
    """A folder -> transformers' model of it, to which the authors' code adds the pooling."""
    folder = tmp_path_factory.mktemp("models") / request.param
    torch.manual_seed(0)
    head = "Model" if request.param == "embedder" else "ForSequenceClassification"
    settings = {**SHAPE, "is_causal": False, "num_labels": 1}
    theirs = getattr(transformers, f"Llama{head}")(transformers.LlamaConfig(**settings)).eval()
    add_noise(theirs)
    theirs.save_pretrained(folder)
    _, make, config, _ = CASES["e5-mistral"]
    make().save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "pad_token": "</s>"}))
    describe(folder, head)
    return folder, theirs, head


def describe(folder: Path, head: str, **changes: Any) -> None:
    """config.json as NVIDIA's checkpoints have it: nothing but the model's type says that it looks both ways."""
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key != "is_causal"}
    own: dict[str, Any] = {
        "model_type": "llama_bidirec",
        "architectures": [f"LlamaBidirectional{head}"],
        "pooling": "avg",
    }
    own["temperature"] = TEMPERATURE if head != "Model" else 1.0
    path.write_text(json.dumps({**config, **own, **changes}))


def pooled(theirs: Any, folder: Path, texts: list[str], pooling: str = "avg") -> FloatArray:
    """The authors' pooling of transformers' hidden states, text by text."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = []
    for text in texts:
        ids = tokenizer(text, truncation=True, max_length=LIMIT, return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            states = getattr(theirs, "model", theirs)(ids, use_cache=False).last_hidden_state[0].numpy()
        rows.append({"avg": states.mean(0), "cls": states[0], "last": states[-1]}[pooling])
    return np.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["avg", "cls", "last"])
def test_equals_the_authors_formulas(pooling: str, backend: str, checkpoint: tuple[Path, Any, str]) -> None:
    folder, theirs, head = checkpoint
    describe(folder, head, pooling=pooling)
    with loaded(folder, backend) as model:
        if head == "Model":
            texts = [document for _, document in PAIRS]
            expected = pooled(theirs, folder, texts, pooling)
            assert np.abs(model.embed(texts, normalize=False) - expected).max() <= 1e-5
            return
        texts = [f"question:{query} \n \n passage:{document}" for query, document in PAIRS]
        weight = theirs.score.weight.detach().numpy()
        expected = (pooled(theirs, folder, texts, pooling) @ weight.T)[:, 0] / TEMPERATURE
        scores = [model.rerank(query, [document], activation="none")[0].score for query, document in PAIRS]
        assert np.abs(np.array(scores) - expected).max() <= 1e-4 * np.abs(expected).max()


def test_a_pooling_that_is_not_served_is_an_error(checkpoint: tuple[Path, Any, str]) -> None:
    folder, _, head = checkpoint
    describe(folder, head, pooling="weighted_avg")
    with pytest.raises(CheckpointError, match="pooling 'weighted_avg' is not one of avg, cls, last"), loaded(folder):
        pass
