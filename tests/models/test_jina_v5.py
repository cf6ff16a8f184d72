"""Jina Embeddings v5: one of its adapters, on either backbone, against transformers with the weights merged."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.checkpoint import resolved
from rtp_llm.config import EngineConfig
from rtp_llm.errors import CheckpointError
from tests.backends import BACKENDS
from tests.checkpoint.test_lora import pair, write_adapter
from tests.models.oracle import hidden_states, load, make_items, saved, worst
from tests.models.test_qwen import SHAPE, reference

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TASKS = ("retrieval", "text-matching")
LENGTHS = (1, 2, 17, 64, 7, 90)


def save(folder: Path, family: str) -> tuple[Any, dict[str, dict[str, Any]]]:
    """The published layout -> transformers' backbone without an adapter, and each task's tensors."""
    shape = {**SHAPE, "head_dim": 24} if family == "Qwen3" else {**SHAPE, "pad_token_id": 0}
    config = getattr(transformers, f"{family}Config")(**shape)
    model = saved(folder, getattr(transformers, f"{family}Model"), config)
    (folder / "adapters").mkdir()
    rows, columns = model.layers[1].self_attn.q_proj.weight.shape
    parts = {task: pair("layers.1.self_attn.q_proj", rows, columns) for task in TASKS}
    for task in TASKS:
        write_adapter(folder / "adapters" / task, parts[task])
    path = folder / "config.json"
    own = {
        "architectures": ["JinaEmbeddingsV5Model"], "model_type": "jina_embeddings_v5", "task_names": TASKS,
        "auto_map": {"AutoModel": "modeling_jina_embeddings_v5.JinaEmbeddingsV5Model"},
        **({} if family == "Qwen3" else {"is_decoder": False}),
    }  # fmt: skip
    path.write_text(json.dumps({**json.loads(path.read_text()), **own}))
    return model, parts


def asked(folder: Path, task: str) -> EngineConfig:
    return EngineConfig(checkpoint_path=str(folder), json_model_override_args=json.dumps({"lora_task": task}))


@pytest.mark.parametrize("family", ["Qwen3", "EuroBert"])
@pytest.mark.parametrize("task", TASKS)
def test_equals_transformers_with_the_adapter_added(task: str, family: str, tmp_path: Path) -> None:
    theirs, parts = save(tmp_path, family)
    a, b = map(torch.from_numpy, parts[task].values())
    with torch.no_grad():
        theirs.layers[1].self_attn.q_proj.weight.add_(2 * b @ a)
    ops, items = BACKENDS["numpy"](), make_items(LENGTHS)
    with resolved(asked(tmp_path, task)) as folder:
        model = load(folder, ops)
    assert model.causal == (family == "Qwen3")
    assert worst(hidden_states(model, ops, items), reference(theirs, items)) <= 2e-5


def test_one_that_there_is_not(tmp_path: Path) -> None:
    save(tmp_path, "Qwen3")
    message = "lora_task 'retrieval.query' is not one of .*: retrieval, text-matching; leave it out, and each request"
    with pytest.raises(CheckpointError, match=message), resolved(asked(tmp_path, "retrieval.query")):
        pass


def test_no_adapters(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["JinaEmbeddingsV5Model"]}')
    with (
        pytest.raises(CheckpointError, match="there are no adapters in .*adapters; download it again"),
        resolved(asked(tmp_path, "")),
    ):
        pass
