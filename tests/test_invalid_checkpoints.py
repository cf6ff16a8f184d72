"""What is wrong with a checkpoint is one line that names file and tensor or key, in the library and as a server."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.config import EngineConfig
from rtp_llm.engine.loading import load_engine
from rtp_llm.errors import CheckpointError, ConfigError

safetensors = pytest.importorskip("safetensors.numpy")

Change: TypeAlias = Callable[[Path], object]
WORD = "embeddings.word_embeddings.weight"
DOWN = "encoder.layer.1.output.dense.weight"
NAN, INF = float("nan"), float("inf")


def keys(name: str, **values: Any) -> Change:
    """Set keys of a JSON file; `...` takes the key out."""

    def change(folder: Path) -> None:
        path = folder / name
        content = {**(json.loads(path.read_text()) if path.exists() else {}), **values}
        path.write_text(json.dumps({key: value for key, value in content.items() if value is not ...}))

    return change


def tensors(**changed: Any) -> Change:
    """Replace tensors, by name with `__` for a dot; None takes one out."""

    def change(folder: Path) -> None:
        content = safetensors.load_file(folder / "model.safetensors")
        for name, value in changed.items():
            content[name.replace("__", ".")] = value
        kept = {name: value for name, value in content.items() if value is not None}
        safetensors.save_file(kept, folder / "model.safetensors")

    return change


def spoiled(name: str, value: float, count: int) -> Change:
    def change(folder: Path) -> None:
        content = safetensors.load_file(folder / "model.safetensors")
        content[name].reshape(-1)[:count] = value
        safetensors.save_file(content, folder / "model.safetensors")

    return change


def written(name: str, content: bytes) -> Change:
    def change(folder: Path) -> None:
        (folder / name).write_bytes(content)

    return change


def cut(name: str, num_bytes: int) -> Change:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:num_bytes])


def removed(*names: str) -> Change:
    def change(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return change


def a_folder(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return change


def emptied(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir()


def sharded(edit: Callable[[Path, dict[str, str]], Any]) -> Change:
    """Two shards and an index, which `edit` may spoil; it returns the weight_map."""

    def change(folder: Path) -> None:
        content = safetensors.load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        names = sorted(content)
        shards = {name: f"{int(i >= len(names) // 2)}.safetensors" for i, name in enumerate(names)}
        for shard in set(shards.values()):
            part = {name: content[name] for name in names if shards[name] == shard}
            safetensors.save_file(part, folder / shard)
        index = {"weight_map": edit(folder, shards)}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


def with_word_twice(folder: Path, shards: dict[str, str]) -> dict[str, str]:
    content = safetensors.load_file(folder / "1.safetensors")
    safetensors.save_file({**content, WORD: np.ones((2, 2), np.float32)}, folder / "1.safetensors")
    return shards


def without_the_second(folder: Path, shards: dict[str, str]) -> dict[str, str]:
    (folder / "1.safetensors").unlink()
    return shards


def chain(*kinds: str) -> Change:
    """modules.json of these classes; the first two are where the checkpoint has them."""
    paths = ["", "1_Pooling", *(f"{place}_More" for place in range(2, 9))]
    entries = [
        {"idx": place, "path": path, "type": f"sentence_transformers.models.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=False))
    ]
    return written("modules.json", json.dumps(entries).encode())


CASES: dict[str, tuple[Change, str]] = {
    "missing tensor": (tensors(**{WORD.replace(".", "__"): None}), f"/model.safetensors .* 1 missing: {WORD}"),
    "extra tensor": (tensors(more=np.ones(3, np.float32)), "/model.safetensors .* 1 unexpected: more"),
    "wrong shape": (tensors(**{WORD: np.ones((3, 4), np.float32)}), rf"1 of the wrong shape: {WORD} \[3, 4\], needed"),
    "scalar": (tensors(**{WORD: np.ones((), np.float32)}), rf"1 of the wrong shape: {WORD} \[\], needed"),
    "nan": (spoiled(WORD, NAN, 1), rf"/model.safetensors: 1 of the \d+ numbers of tensor '{WORD}' are NaN or infinite"),
    "infinity": (spoiled(DOWN, INF, 7), rf"/model.safetensors: 7 of the 2,048 numbers of tensor '{DOWN}'"),
    "too large for fp32": (tensors(**{DOWN: np.full((32, 64), 1e300)}), f"2,048 of the .* of tensor '{DOWN}'"),
    "8 bits": (tensors(**{DOWN: np.ones((32, 64), np.int8)}), f"model.safetensors: tensor '{DOWN}' is of type int8; q"),
    "whole numbers": (tensors(**{WORD: np.ones((28, 32), np.int64)}), f"tensor '{WORD}' is of type int64; quantised w"),
    "quantised": (
        keys("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        r"/config.json: quantization_config \(gptq\): quantised weights are not read; use the",
    ),
    "problem_type": (keys("config.json", problem_type="nonsense"), "problem_type is 'nonsense'; one of regression"),
    "cross attention": (keys("config.json", is_decoder=True, add_cross_attention=True), "add_cross_attention is true"),
    "one head of BGE-M3": (
        written("colbert_linear.pt", b"x"),
        "colbert_linear.pt is there, but sparse_linear.pt is missing; download it, or say with --task_type what",
    ),
    "pooling of another size": (
        keys("1_Pooling/config.json", word_embedding_dimension=999),
        "/1_Pooling/config.json: word_embedding_dimension is 999, but the model's hidden_size is 32",
    ),
    "no weights": (removed("model.safetensors"), "no model.safetensors, pytorch_model.bin or index of one"),
    "empty weights": (written("model.safetensors", b""), "model.safetensors is empty"),
    "header cut": (cut("model.safetensors", 100), "/model.safetensors: a header of .* was cut short"),
    "data cut": (cut("model.safetensors", -9), "/model.safetensors is cut short: tensor '.*' ends at"),
    "garbage": (written("model.safetensors", b"x" * 99), "/model.safetensors: a header of"),
    "weights are a folder": (a_folder("model.safetensors"), "/model.safetensors is a folder; a file is needed"),
    "damaged pickle": (
        lambda folder: (removed("model.safetensors")(folder), written("pytorch_model.bin", b"junk")(folder)),
        "/pytorch_model.bin is damaged or not a file of torch.save",
    ),
    "shard absent": (sharded(without_the_second), "/1.safetensors is missing, but model.safetensors.index.json names"),
    "tensor in two shards": (sharded(with_word_twice), f"'{WORD}' is in both [01].safetensors and [01].safetensors"),
    "no weight_map": (sharded(lambda *_: []), "index.json: no weight_map"),
    "empty weight_map": (sharded(lambda *_: {}), "index.json does not fit .* missing: embeddings"),
    "shard outside": (sharded(lambda *_: {WORD: "../x"}), r"the path '\.\./x' leads out of the folder"),
    "empty folder": (emptied, "/config.json is missing"),
    "no config": (removed("config.json"), "/config.json is missing"),
    "damaged config": (cut("config.json", 40), "/config.json is not JSON"),
    "config is a folder": (a_folder("config.json"), "/config.json is a folder"),
    "config is a list": (written("config.json", b"[]"), "/config.json: holds a JSON list"),
    "unknown architecture": (keys("config.json", model_type="mamba"), "config.json says model_type 'mamba', which"),
    "unknown class": (keys("config.json", model_type=..., architectures=["FooModel"]), "its architecture is 'FooMo"),
    "activation": (keys("config.json", hidden_act="xielu"), "config.json: hidden_act 'xielu' is not one of gelu"),
    "no pooling": (removed("1_Pooling/config.json"), "/1_Pooling/config.json is missing"),
    "pooling mode": (keys("1_Pooling/config.json", pooling_mode="best"), "1_Pooling/config.json: pooling_mode 'best'"),
    "no tokenizer": (removed("tokenizer.json"), "no tokenizer.json, vocab.txt, or vocab.json with merges.txt"),
    "damaged tokenizer": (cut("tokenizer.json", 99), "/tokenizer.json is not a tokenizer"),
    "tokenizer_config": (written("tokenizer_config.json", b"{"), "/tokenizer_config.json is not JSON"),
    "token without content": (keys("tokenizer_config.json", unk_token={}), "unk_token is {}; a string, or an object"),
    "modules: no list": (written("modules.json", b"{}"), "/modules.json: .* a list of objects is needed"),
    "modules: none": (written("modules.json", b"[]"), "/modules.json: the first module is nothing"),
    "modules: a path": (written("modules.json", b'[{"path": 5}]'), "modules.json: module 0: path is 5; a string"),
    "modules: a transformer of its own": (
        written("modules.json", b'[{"path": "", "type": "my_code.Transformer"}]'),
        "the first module is my_code.Transformer, code that comes with the checkpoint and is not run there",
    ),
    "modules: code of its own after a SPLADE": (
        written("modules.json", b'[{"type": "MLMTransformer"}, {"path": "1", "type": "my_code.SpladePooling"}]'),
        "my_code.SpladePooling is code that comes with the checkpoint",
    ),
    "modules: outside": (
        written("modules.json", b'[{"path": "/etc", "type": "Transformer"}]'),
        "the path '/etc' leads out of the folder",
    ),
    "prompts": (keys("config_sentence_transformers.json", prompts={"a": 5}), "prompts is {'a': 5}; an object of strin"),
    "truncate_dim": (
        keys("config_sentence_transformers.json", truncate_dim=33),
        "config_sentence_transformers.json: truncate_dim is 33, but the model's vectors have 32 dimensions",
    ),
    "prompt name": (keys("config_sentence_transformers.json", default_prompt_name="x"), "'x' is not among its prompts"),
}  # fmt: skip
WRONG_VALUES: list[tuple[str, str, list[Any]]] = [
    ("config.json", "hidden_size", ["32", -1, 0, 1.5, None, True, 10**30]),
    ("config.json", "num_attention_heads", [0, 5]),
    ("config.json", "num_hidden_layers", [10**18, []]),
    ("config.json", "vocab_size", [-1, "28"]),
    ("config.json", "max_position_embeddings", [10**12, {}]),
    ("config.json", "layer_norm_eps", [NAN, -1e-5, None]),
    ("config.json", "hidden_act", [[]]),
    ("config.json", "architectures", ["BertModel", [1]]),
    ("config.json", "num_labels", ["2"]),
    ("config.json", "id2label", [[], {"5": "a"}]),
    ("config.json", "sentence_transformers", [1]),
    ("1_Pooling/config.json", "pooling_mode", [1, [None]]),
    ("1_Pooling/config.json", "include_prompt", ["no"]),
    ("tokenizer_config.json", "do_lower_case", ["yes"]),
    ("tokenizer_config.json", "model_max_length", ["512"]),
    ("tokenizer_config.json", "split_special_tokens", ["yes"]),
    ("tokenizer_config.json", "extra_special_tokens", ["<x>", [1]]),
    ("tokenizer_config.json", "added_tokens_decoder", [[], {"x": {"content": "x"}}, {"5": {}}, {"5": "x"}]),
    ("sentence_bert_config.json", "max_seq_length", ["256", -1]),
    ("sentence_bert_config.json", "do_lower_case", [1]),
    ("sentence_bert_config.json", "model_args", [[1]]),
    ("config_sentence_transformers.json", "default_prompt_name", [[]]),
    ("config_sentence_transformers.json", "truncate_dim", [0, "8", True]),
    ("config_sentence_transformers.json", "max_active_dims", [0, "8", True, {}]),
]
MESSAGES = {"message": {"method": "forward", "method_output_name": "last_hidden_state", "format": "flat"}}
NOT_SERVED: dict[str, tuple[Change, str]] = {
    **{
        kind: (chain("Transformer", "Pooling", kind), f"modules.json: {kind} is not served; Pooling, Dense")
        for kind in ("WordWeights", "CNN", "LSTM", "SparseStaticEmbedding", "SparseAutoEncoder")
    },
    **{
        kind: (chain("Transformer", kind), f"modules.json: the second module is {kind}; only Pooling is served")
        for kind in ("WeightedLayerPooling", "Dense", "Normalize", "LSTM")
    },
    **{
        kind: (
            chain(kind, "Pooling"),
            f"modules.json: the first module is {kind}; Transformer, StaticEmbedding and Router",
        )
        for kind in ("BoW", "WordEmbeddings")
    },
    "CLIPModel": (
        chain("CLIPModel", "Pooling"),
        "modules.json: the first module is CLIPModel, but config.json is no CLIP's",
    ),
    **{kind: (chain(kind, "Pooling"), "config.json: structure names no routes") for kind in ("Router", "Asym")},
    "mask of vectors that nothing makes": (
        chain("Transformer", "Pooling", "MultiVectorMask"),
        "modules.json: there is no Dense, which takes hidden states to the vectors that are compared",
    ),
    "table of another model": (chain("StaticEmbedding", "Pooling"), "neither of embedding.weight, embeddings is there"),
    "expansion of queries that are one vector": (
        keys("sentence_bert_config.json", query_expansion={}),
        "sentence_bert_config.json: query_expansion is served with a vector for each token",
    ),
    "chat template": (
        keys("sentence_bert_config.json", modality_config=MESSAGES),
        "sentence_bert_config.json: modality_config has 'message', which puts every text through",
    ),
    "pooler output": (
        keys(
            "sentence_bert_config.json",
            modality_config={"text": {"method": "forward", "method_output_name": "pooler_output"}},
        ),
        "modality_config: text is .*pooler_output.*; only the method forward and its last_hidden_state",
    ),
    "transformer_task": (
        keys("sentence_bert_config.json", transformer_task="image-to-text"),
        "transformer_task 'image-to-text' is not served; feature-extraction",
    ),
    "adapter without its tensors": (
        written("adapter_config.json", b'{"peft_type": "LORA"}'),
        "/adapter_config.json is there, but adapter_model.safetensors and adapter_model.bin are missing; download them",
    ),
    "adapter without a base": (
        lambda folder: (
            written("adapter_config.json", b'{"peft_type": "LORA"}')(folder),
            removed("config.json", "model.safetensors")(folder),
        ),
        "/adapter_config.json: base_model_name_or_path is None; the hub id or path of a model is needed",
    ),
    "GLiNER": (
        lambda folder: (written("gliner_config.json", b"{}")(folder), removed("config.json")(folder)),
        "/config.json is missing, and gliner_config.json is there: a GLiNER, whose labels come with a request",
    ),
    "GGUF": (
        lambda folder: (written("model.gguf", b"GGUF")(folder), removed("config.json")(folder)),
        "/config.json is missing, and there are GGUF files, which are not read; take the safetensors checkpoint",
    ),
    "layers of their own": (
        keys("config.json", per_layer_config={"1": {"layer_norm_eps": 0.5}}),
        "config.json: per_layer_config gives layers 1 settings of their own",
    ),
    "processing_kwargs": (
        keys("sentence_bert_config.json", processing_kwargs={"text": {"max_length": 9}}),
        "processing_kwargs: text: max_length is not served",
    ),
    "is_causal over config.json": (
        keys("sentence_bert_config.json", config_kwargs={"is_causal": False}),
        "config_kwargs: is_causal is heeded in config.json alone",
    ),
    "processor_kwargs": (
        keys("sentence_bert_config.json", processor_kwargs={"truncation_side": "left", "padding_side": "left"}),
        "processor_kwargs: truncation_side is not served",
    ),
}


@pytest.fixture
def folder(tiny_bert: Path, tmp_path: Path) -> Path:
    """A checkpoint to spoil."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "model"))


def error_of(folder: Path) -> str:
    """The one line of loading the folder."""
    config = EngineConfig(checkpoint_path=str(folder), backend="numpy", warm_up=False)
    with pytest.raises(ConfigError) as raised:
        load_engine(config, "name")
    assert isinstance(raised.value, CheckpointError) and "\n" not in raised.value.message
    return raised.value.message


def assert_in(pattern: str, line: str) -> None:
    assert re.search(pattern, line), line


@pytest.mark.parametrize(("change", "message"), CASES.values(), ids=CASES)
def test_one_line_names_what_is_wrong(change: Change, message: str, folder: Path) -> None:
    change(folder)
    assert_in(message, error_of(folder))


@pytest.mark.parametrize(
    ("name", "key", "value"), [(name, key, value) for name, key, values in WRONG_VALUES for value in values]
)
def test_values_of_another_kind(name: str, key: str, value: Any, folder: Path) -> None:
    keys(name, **{key: value})(folder)
    line = error_of(folder)
    assert f"{Path(name).name}: " in line and key in line


@pytest.mark.parametrize(("change", "message"), NOT_SERVED.values(), ids=NOT_SERVED)
def test_what_would_change_numbers_is_refused(change: Change, message: str, folder: Path) -> None:
    change(folder)
    assert_in(message, error_of(folder))


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("sentence_bert_config.json", "document_expansion"),
        ("1_Pooling/config.json", "gamma"),
        ("config_sentence_transformers.json", "similarity_margin"),
    ],
)
def test_keys_that_nobody_knows_are_logged(name: str, key: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys(name, **{key: {}})(folder)
    with caplog.at_level(logging.WARNING), Model(str(folder), backend="numpy") as model:
        assert model.embed("a").shape == (32,)
    assert f"{key} not known here and not heeded" in caplog.text


@pytest.mark.parametrize("key", ["model_args", "model_kwargs"])
def test_arguments_of_the_model_that_are_not_heeded(key: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Those by which it is only held or computed otherwise need no line."""
    harmless = {
        "dtype": "auto",
        "torch_dtype": None,
        "attn_implementation": "sdpa",
        "trust_remote_code": True,
        "revision": "main",
    }
    keys("sentence_bert_config.json", **{key: {**harmless, "is_decoder": True, "rope_scaling": None}})(folder)
    with caplog.at_level(logging.WARNING), Model(str(folder), backend="numpy") as model:
        assert model.embed("a").shape == (32,)
    assert f"{key}: is_decoder, rope_scaling not heeded" in caplog.text
    caplog.clear()
    keys("sentence_bert_config.json", **{key: harmless})(folder)
    with caplog.at_level(logging.WARNING), Model(str(folder), backend="numpy"):
        assert "not heeded" not in caplog.text


@pytest.mark.parametrize("key", ["model_args", "model_kwargs"])
@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_a_dtype_that_is_not_heeded(name: str, key: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys("sentence_bert_config.json", **{key: {name: "bfloat16"}})(folder)
    with caplog.at_level(logging.WARNING), Model(str(folder), backend="numpy") as model:
        assert model.embed("a").shape == (32,)
    assert f"{key}: {name} 'bfloat16' not heeded; --act_type says in which dtype" in caplog.text


@pytest.mark.parametrize(
    ("card", "known"),
    [
        (
            "---\nbase_model: org/model-v1.5\nlibrary_name: x\n---\n# Model\n",
            ", which is org/model-v1.5 by its model card",
        ),
        ("---\ntags:\n- a\nbase_model:\n- 'org/first'\n- org/second\n---\n", ", which is org/first by its model card"),
        ('---\r\nbase_model: "org/model"\r\n---\r\n', ", which is org/model by its model card"),
        ("---\nbase_model: no id\n---\n", ""),
        ("# base_model\nbase_model: org/model\n", ""),
        ("---\nbase_model:\n", ""),
        ("", ""),
        (None, ""),
    ],
)
@pytest.mark.parametrize("name", ["model_optimized.onnx", "onnx/model_quantized.onnx"])
def test_onnx_alone(name: str, card: str | None, known: str, folder: Path) -> None:
    removed("model.safetensors")(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"onnx")
    (folder / "README.md").unlink(missing_ok=True)
    if card is not None:
        (folder / "README.md").write_bytes(card.encode())
    line = error_of(folder)
    assert line.endswith(f"formats are not read, ONNX among them: serve the checkpoint that they were made from{known}")


def test_the_head_of_setfit_is_not_read(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    written("config_setfit.json", b"{}")(folder)
    with caplog.at_level(logging.WARNING), Model(str(folder), backend="numpy") as model:
        assert model.embed("a").shape == (32,)
    assert "SetFit's head is a pickle, which is never executed: texts get vectors, no labels" in caplog.text
