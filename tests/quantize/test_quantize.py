"""`rtp-llm quantize`: the bits of --quantization int8, the fewest layers in fp32, and what damaged files are told."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from rtp_llm import Model
from rtp_llm.cli import main
from rtp_llm.config import EngineConfig
from rtp_llm.engine.likeness import Likeness
from rtp_llm.errors import CheckpointError, ConfigError, RtpError
from rtp_llm.quantize import Options, Report, quantize
from tests.models.test_qwen import save as save_qwen
from tests.ops.data import usable_or_skip
from tests.runtime.test_choices import pretend
from tests.tasks.checkpoints import PAIRS, TEXTS, save, tokenizer
from tests.tasks.routers import as_published, save_sparse
from tests.verify.test_verify import HEAD

pytest.importorskip("torch")
pytest.importorskip("transformers")

NO_BARS = Likeness(0.0, 0.0)


def run(source: Path, target: Path, bars: Likeness = NO_BARS, **options: Any) -> Report:
    config = EngineConfig(checkpoint_path=str(source), num_threads=1, **options)
    return quantize(config, target, Options(bars=bars))


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save(folder := tmp_path_factory.mktemp("bert"), num_hidden_layers=3)
    return folder


@pytest.fixture(scope="module")
def quantized(bert: Path) -> Path:
    run(bert, target := bert.parent / "bert-int8")
    return target


def test_on_the_cpu_where_there_is_a_gpu(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, tmp_path, cuda=True)
    assert run(bert, tmp_path / "int8").matrices
    with pytest.raises(ConfigError, match="device cuda does not compute in 8 bits: leave it out"):
        run(bert, tmp_path / "other", device="cuda")


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_the_bits_of_quantising_at_load(bert: Path, tmp_path: Path, backend: str) -> None:
    run(bert, quantized := tmp_path / "int8", backend=backend)
    with (
        Model(str(bert), backend=backend, quantization="int8") as at_load,
        Model(str(quantized), backend=backend) as kept,
    ):
        assert np.array_equal(at_load.embed(TEXTS), kept.embed(TEXTS))
        assert kept.info.dtype == "int8"
    with Model(str(quantized), backend=backend, quantization="int8") as again:
        assert np.array_equal(again.embed(TEXTS), kept_vectors(quantized, backend))


def kept_vectors(folder: Path, backend: str) -> Any:
    with Model(str(folder), backend=backend) as model:
        return model.embed(TEXTS)


def test_on_kernels_that_add_in_pairs_what_was_quantised_on_others_is_rounded_again(bert: Path, tmp_path: Path) -> None:
    usable_or_skip("avx2")
    run(bert, tmp_path / "other", backend="numpy")
    run(bert, tmp_path / "same", instruction_set="avx2")
    paths = {"other": tmp_path / "other", "same": tmp_path / "same", "fp32": bert}
    vectors = {}
    for name, path in paths.items():
        with Model(str(path), instruction_set="avx2") as model:
            vectors[name] = model.embed(TEXTS)
    for name, least in (("same", 0.99), ("other", 0.985)):
        lengths = np.linalg.norm(vectors[name], axis=1) * np.linalg.norm(vectors["fp32"], axis=1)
        assert ((vectors[name] * vectors["fp32"]).sum(axis=1) / lengths).min() >= least


def test_qwen_in_bf16_and_in_shards(tmp_path: Path) -> None:
    import torch

    theirs = save_qwen(tmp_path / "fp32", "Qwen3", vocab_size=40)
    theirs.to(torch.bfloat16).save_pretrained(tmp_path / "bf16", max_shard_size="40KB")
    tokenizer_of(tmp_path / "bf16")
    run(tmp_path / "bf16", tmp_path / "int8", task_type="dense_embedding")
    stored = {tensor["dtype"] for tensor in header(tmp_path / "int8").values() if "dtype" in tensor}
    assert stored == {"BF16", "F32", "I8"}
    options: dict[str, Any] = {"task_type": "dense_embedding"}
    with Model(str(tmp_path / "bf16"), quantization="int8", **options) as left:
        with Model(str(tmp_path / "int8"), **options) as right:
            assert np.array_equal(left.embed(TEXTS), right.embed(TEXTS))


def tokenizer_of(folder: Path) -> None:
    from transformers import BertTokenizer

    from tests.tasks.checkpoints import VOCAB

    BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(folder)


def header(folder: Path) -> dict[str, Any]:
    data = (folder / "model.safetensors").read_bytes()
    found: dict[str, Any] = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return found


def test_a_reranker_keeps_its_head_and_its_order(tmp_path: Path) -> None:
    save(tmp_path / "fp32", HEAD, num_labels=1)
    run(tmp_path / "fp32", tmp_path / "int8")
    documents = [document for _, document in PAIRS]
    with Model(str(tmp_path / "fp32")) as exact, Model(str(tmp_path / "int8")) as model:
        left, right = exact.rerank("the weather", documents), model.rerank("the weather", documents)
    assert (
        max(abs(a.score - b.score) for a, b in zip(sorted_by_index(left), sorted_by_index(right), strict=True)) < 0.02
    )


def sorted_by_index(ranked: Any) -> Any:
    return sorted(ranked, key=lambda entry: entry.index)


def test_routes_that_run_no_model_stay_as_they_are(tmp_path: Path) -> None:
    for make in (save_sparse, as_published_sparse):
        source, target = make(tmp_path / make.__name__), tmp_path / f"{make.__name__}-8"
        run(source, target, backend="numpy")
        with Model(str(source), backend="numpy", quantization="int8", quantization_check=False) as at_load:
            with Model(str(target), backend="numpy") as model:
                for name in ("query", "document"):
                    ours, theirs = (one.embed_sparse(TEXTS, prompt_name=name) for one in (model, at_load))
                    for left, right in zip(ours, theirs, strict=True):
                        np.testing.assert_array_equal(left.values, right.values)


def as_published_sparse(folder: Path) -> Path:
    return as_published(save_sparse(folder))


def test_the_fewest_layers_that_reach_the_bars_stay(bert: Path, tmp_path: Path) -> None:
    bars = Likeness(0.0, 1 - (1 - run(bert, tmp_path / "all").choice.chosen.mean) / 3)
    report = run(bert, tmp_path / "out", bars)
    choice, kept = report.choice, len(report.choice.kept)
    assert (
        0 < kept < len(report.matrices) == 12 and choice.chosen.reaches(bars) and not choice.all_quantized.reaches(bars)
    )
    harm = {matrix: 1 - found.mean for matrix, found in choice.alone.items()}
    assert min(harm[matrix] for matrix in choice.kept) >= max(harm[m] for m in report.matrices if m not in choice.kept)
    ignored = json.loads((tmp_path / "out/config.json").read_text())["quantization_config"]["ignore"]
    tensors = header(tmp_path / "out")
    assert ignored and {tensors[f"{name}.weight"]["dtype"] for name in ignored} == {"F32"}


def test_everything_else_is_copied(bert: Path, quantized: Path) -> None:
    names = {path.name for path in bert.iterdir()}
    assert names == {path.name for path in quantized.iterdir()}
    assert (quantized / "model.safetensors").stat().st_size < 0.6 * (bert / "model.safetensors").stat().st_size
    assert tokenizer(quantized).vocab_size == tokenizer(bert).vocab_size


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["BERT", "BERT"], 2, "exists already"),
        (["INT8", "NEW"], 2, "is quantised already"),
        (["NONE", "NEW"], 1, "NONE"),
        (["BERT", "NEW", "--least_cosine", "2"], 2, "least_cosine: 2 is not from 0 to below 1"),
        (["BERT", "NEW", "--backend", "torch"], 2, "torch does not compute in 8 bits"),
    ],
)
def test_what_cannot_be_done(
    bert: Path, quantized: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    arguments: list[str], status: int, message: str,
) -> None:  # fmt: skip
    places = {"BERT": str(bert), "INT8": str(quantized), "NEW": str(tmp_path / "new"), "NONE": str(tmp_path / "NONE")}
    with pytest.raises(SystemExit) as left:
        main(["quantize", *(places.get(argument, argument) for argument in arguments)])
    assert left.value.code == status and message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_the_command_prints_what_it_measured(bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["quantize", str(bert), str(tmp_path / "out"), "--mean_cosine", "0.9999999", "--num_threads", "1"])
    printed = capsys.readouterr().out
    assert printed.count("fp32\n") >= 1 and "of 12 weights stay in fp32" in printed


NAME = "encoder.layer.1.output.dense.weight"
Tensors = dict[str, Any]


def drop_scale(tensors: Tensors) -> None:
    del tensors[f"{NAME}_scale"]


def short_scale(tensors: Tensors) -> None:
    tensors[f"{NAME}_scale"] = tensors[f"{NAME}_scale"][:-1]


def whole_scale(tensors: Tensors) -> None:
    tensors[f"{NAME}_scale"] = tensors[f"{NAME}_scale"].astype(np.int32)


def nan_scale(tensors: Tensors) -> None:
    tensors[f"{NAME}_scale"][3] = np.nan


def table_in_8_bits(tensors: Tensors) -> None:
    table = tensors["embeddings.word_embeddings.weight"]
    tensors["embeddings.word_embeddings.weight"] = table.astype(np.int8)
    tensors["embeddings.word_embeddings.weight_scale"] = np.ones((len(table), 1), np.float32)


def one_of_three(tensors: Tensors) -> None:
    name = "encoder.layer.0.attention.self.key.weight"
    tensors[name] = tensors[name].astype(np.float32)
    del tensors[f"{name}_scale"]


def wrong_shape(tensors: Tensors) -> None:
    tensors[NAME] = tensors[NAME][:, :-1].copy()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (drop_scale, "dense.weight' is of type int8; quantised weights are not read"),
        (short_scale, r"weight_scale fp32 \[31, 1\], needed"),
        (whole_scale, r"weight_scale int32 \[32, 1\], needed"),
        (nan_scale, "1 of the 32 numbers of tensor .*weight_scale' are NaN"),
        (table_in_8_bits, "only linear layers may be"),
        (one_of_three, "all or none must be in 8 bits"),
        (wrong_shape, "1 of the wrong shape"),
    ],
)
def test_damaged_weights(quantized: Path, tmp_path: Path, damage: Callable[[Tensors], None], message: str) -> None:
    link_all(quantized, tmp_path)
    tensors = load_file(quantized / "model.safetensors")
    damage(tensors)
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    refused(tmp_path, CheckpointError, message)


@pytest.mark.parametrize("change", [{"quant_method": "gptq"}, {"format": "pack-quantized"}, {"config_groups": {}}])
def test_other_forms_of_quantisation_are_named(quantized: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    link_all(quantized, tmp_path)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] |= change
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, CheckpointError, "is not read; of compressed-tensors, int-quantized")


@pytest.mark.parametrize("change", [None, {"dynamic": False}, {"num_bits": 4}, {"type": "float"}])
def test_activations_that_are_not_computed_in_8_bits(quantized: Path, tmp_path: Path, change: Any) -> None:
    link_all(quantized, tmp_path)
    config = json.loads((quantized / "config.json").read_text())
    (group,) = config["quantization_config"]["config_groups"].values()
    group["input_activations"] = change and {**group["input_activations"], **change}
    (tmp_path / "config.json").unlink()
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(tmp_path, CheckpointError, "where input_activations are dynamic and in 8 bits too")


def test_torch_does_not_read_it(quantized: Path) -> None:
    refused(quantized, ConfigError, "leave out --backend torch", backend="torch")


def refused(folder: Path, kind: type[RtpError], message: str, backend: str = "numpy") -> None:
    with pytest.raises(kind, match=message):
        Model(str(folder), backend=backend)


def link_all(source: Path, target: Path) -> None:
    for path in source.iterdir():
        if path.name != "model.safetensors":
            (target / path.name).symlink_to(path)


def test_a_table_has_nothing_to_quantise(tmp_path: Path) -> None:
    from tests.tasks.test_static import save as save_static

    config = EngineConfig(checkpoint_path=str(save_static(tmp_path)), backend="numpy")
    with pytest.raises(ConfigError, match="has no linear layers to quantise"):
        quantize(config, tmp_path / "out", Options())
