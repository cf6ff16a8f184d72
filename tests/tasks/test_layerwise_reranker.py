"""bge-reranker-v2-minicpm-layerwise in small, by FlagEmbedding's formulas on the layers of transformers' Granite."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.errors import ConfigError
from tests.backends import BACKENDS
from tests.engine.test_decoder_tokenizers import gemma
from tests.models.test_minicpm import HUB, save
from tests.tasks.checkpoints import loaded
from tests.tasks.test_flag_reranker import LIMIT, PAIRS, PROMPT, flag_ids

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")


def checkpoint(folder: Path, **changes: Any) -> tuple[Any, Any]:
    """A folder -> transformers' model of it and its heads; in a folder of its own, the tokenizer alone."""
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<bos>", "eos_token": "<eos>"}
    for place in (folder, folder / "tokenizer"):
        place.mkdir(exist_ok=True)
        gemma().save(str(place / "tokenizer.json"))
        (place / "tokenizer_config.json").write_text(json.dumps(config))
    theirs, heads = save(folder, vocab_size=450, **changes)
    return theirs, heads


def expected(folder: Path, theirs: Any, head: Any) -> list[float]:
    folder = folder / "tokenizer"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    end = len(tokenizer(f"\n{PROMPT}", add_special_tokens=False)["input_ids"])
    logits = []
    for query, passage in PAIRS:
        ids = flag_ids(folder, query, passage, LIMIT - 2 * end)
        with torch.no_grad():
            logits.append((head @ theirs(torch.tensor([ids]), use_cache=False).last_hidden_state[0, -1]).item())
    return logits


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("asked", "number"), [(None, 5), ([3], 3), (2, 2)])
def test_equals_flag_embeddings_formulas(asked: Any, number: int, backend: str, tmp_path: Path) -> None:
    """A `cutoff_layers` of None is what it is without the key."""
    changes = {} if asked is None else {"cutoff_layers": asked}
    theirs, heads = checkpoint(tmp_path, **changes)
    (tmp_path / "config.json").write_text(json.dumps({**HUB, "vocab_size": 450}))
    logits = np.array(expected(tmp_path, theirs, heads[f"lm_head.{number - HUB['start_layer']}.linear_head.weight"]))
    with loaded(tmp_path, backend, max_seq_len=LIMIT, json_model_override_args=json.dumps(changes)) as model:
        assert model.info.tasks == (TaskType.RERANK,)
        ours = [model.rerank(query, [passage], activation="none")[0].score for query, passage in PAIRS]
        assert np.abs(ours - logits).max() <= 1e-5 * max(1.0, np.abs(logits).max())
        scores = [model.rerank(query, [passage])[0].score for query, passage in PAIRS]
        assert np.abs(scores - 1 / (1 + np.exp(-logits))).max() <= 2e-6
        together = model.rerank("he drove", [passage for _, passage in PAIRS], activation="none")
        alone = [model.rerank("he drove", [passage], activation="none")[0].score for _, passage in PAIRS]
        by_place = [entry.score for entry in sorted(together, key=lambda entry: entry.index)]
        assert np.abs(np.array(by_place) - alone).max() <= (1e-5 if backend == "torch" else 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_type": "raw"}, "head_type 'raw'; only 'simple'"),
        ({"head_multi": False}, "head_multi False; only True"),
        ({"cutoff_layers": [9]}, r"cutoff_layers \[9\]; one number from 2 to 5"),
        ({"cutoff_layers": "all"}, "cutoff_layers is 'all'; a whole number, or a list of such is needed"),
        ({"start_layer": 1, "num_hidden_layers": 5}, r"1 missing: lm_head\.4\.linear_head\.weight"),
    ],
)
def test_what_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    checkpoint(tmp_path)
    with pytest.raises(ConfigError, match=message):
        with loaded(tmp_path, "numpy", max_seq_len=LIMIT, json_model_override_args=json.dumps(change)):
            pass
