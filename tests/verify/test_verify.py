"""Verification of tiny random checkpoints of every task, good ones and spoilt ones, and of the real MiniLM."""

import json
import shutil
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError
from rtp_llm.verify import Options, Report, Verdict, verify
from rtp_llm.verify import published as published_module
from rtp_llm.verify import references as references_module
from rtp_llm.verify.comparison import _Bounds
from rtp_llm.verify.table import as_object, as_text
from tests.checkpoint.test_lora import bert_adapter
from tests.engine.test_tokenizer import BERTS, ROBERTAS, byte_level
from tests.models.test_bart import save as save_bart
from tests.models.test_deberta import save as save_deberta
from tests.models.test_dpr import save as save_dpr
from tests.tasks.checkpoints import save, save_m3
from tests.tasks.late import save as save_late
from tests.tasks.routers import save_dense, save_sparse
from tests.tasks.test_score_chain import save as save_chain
from tests.tasks.test_splade import make as make_splade
from tests.tasks.test_static import save as save_static
from tests.test_families import save as save_family

pytest.importorskip("torch")
safetensors = pytest.importorskip("safetensors.torch")
pytest.importorskip("sentence_transformers")

HEAD = "BertForSequenceClassification"
LINES = ["the weather is lovely today .", "", "he drove to stadium", "a " * 90, "so\tsunny"]
PAIR_LINES = ["the weather\tis lovely", "he drove\t", "a\t" + "b c " * 60]


def run(folder: Path, options: Options | None = None, **flags: Any) -> Report:
    options = options or Options(lines=LINES)
    return verify(EngineConfig(checkpoint_path=str(folder), backend="numpy", **flags), options)


def spoil(folder: Path, tensor: str, target: Path) -> Path:
    """A copy of the checkpoint with one number of one tensor changed."""
    shutil.copytree(folder, target)
    tensors = safetensors.load_file(target / "model.safetensors")
    tensors[tensor].view(-1)[3] += 1.5
    safetensors.save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return target


def check_equal(report: Report, tasks: set[str]) -> None:
    assert report.verdict is Verdict.EQUAL, as_text(report)
    assert {row.task.value for row in report.rows} == tasks
    assert {row.verdict for row in report.rows} == {Verdict.EQUAL}
    assert all(check.verdict is Verdict.EQUAL for check in report.checks)
    assert not report.not_compared


def test_an_adapter_needs_peft(tiny_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it transformers would compute with the base alone, and say nothing."""
    bert_adapter(tmp_path / "adapter", tiny_bert)
    monkeypatch.setattr(references_module, "find_spec", lambda name: None if name == "peft" else find_spec(name))
    report = run(tmp_path / "adapter")
    assert report.verdict is not Verdict.EQUAL and not report.rows
    assert "peft is not installed: pip install peft" in as_text(report)


def test_a_chain_of_modules_that_scores(tmp_path: Path) -> None:
    """transformers knows nothing of it, and so not its classifier."""
    report = run(save_chain(tmp_path), Options(lines=PAIR_LINES))
    assert {row.task for row in report.rows} == {TaskType.RERANK}
    assert {row.verdict for row in report.rows} == {Verdict.EQUAL} and len(report.not_compared) == 1


def test_dense(tiny_bert: Path) -> None:
    check_equal(run(tiny_bert), {"dense"})


@pytest.mark.parametrize("pooling", ["auto", "cls", "lasttoken"])
def test_dense_without_modules(pooling: str, tmp_path: Path) -> None:
    save(tmp_path)
    check_equal(run(tmp_path, pooling=pooling), {"dense"})


def test_default_samples_and_prompts(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "prompts"
    shutil.copytree(tiny_bert, folder)
    path = folder / "config_sentence_transformers.json"
    prompts = {"query": "query : ", "passage": ""}
    path.write_text(json.dumps({**json.loads(path.read_text()), "prompts": prompts, "default_prompt_name": "query"}))
    report = run(folder, Options(), max_seq_len=40)
    check_equal(report, {"dense"})
    assert [row.sample.prompt_name for row in report.rows].count("query") == 3
    assert max(row.num_tokens for row in report.rows) == 40
    assert "[query] The weather" in as_text(report)


def test_late_interaction(tmp_path: Path) -> None:
    expansion = {"strategy": "fixed", "attend": False, "length": 16}
    folder = save_late(tmp_path, lengths={"query_expansion": expansion}, mask={"skiplist_words": ["."]})
    report = run(folder, Options())
    check_equal(report, {"colbert"})
    assert [row.sample.prompt_name for row in report.rows].count("query") == 3


def test_static(tmp_path: Path) -> None:
    check_equal(run(save_static(tmp_path)), {"dense"})


def test_splade(tmp_path: Path) -> None:
    check_equal(run(make_splade(tmp_path)), {"sparse"})


def test_routes(tmp_path: Path) -> None:
    check_equal(run(save_sparse(tmp_path / "sparse")), {"sparse"})
    check_equal(run(save_dense(tmp_path / "dense", default_route="document")), {"dense"})


@pytest.mark.parametrize("task", ["bge_m3", "sparse_embedding", "colbert_embedding", "dense_embedding"])
def test_bge_m3(task: str, tmp_path: Path) -> None:
    save_m3(tmp_path)
    kinds = {"dense", "sparse", "colbert"} if task == "bge_m3" else {task.partition("_")[0]}
    check_equal(run(tmp_path, task_type=task), kinds)


def test_all_embedding(tmp_path: Path) -> None:
    save(tmp_path)
    check_equal(run(tmp_path, task_type="all_embedding"), {"tokens"})


def test_reranker_which_is_a_classifier_too(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    report = run(tmp_path, Options(lines=PAIR_LINES))
    check_equal(report, {"rerank", "classify"})
    assert all(row.scores for row in report.rows if row.task is TaskType.RERANK)
    run(tmp_path, Options(), task_type="reranker")


@pytest.mark.parametrize("problem_type", [None, "multi_label_classification", "regression"])
def test_classifier(problem_type: str | None, tmp_path: Path) -> None:
    save(tmp_path, HEAD, id2label={0: "b", 1: "a", 2: "c"}, problem_type=problem_type)
    check_equal(run(tmp_path), {"classify"})


@pytest.mark.parametrize("num_labels", [1, 3])
def test_the_first_deberta_has_one_separator(num_labels: int, tmp_path: Path) -> None:
    save_deberta(tmp_path, "v1", HEAD.replace("Bert", ""), vocab_size=400, num_labels=num_labels)
    byte_level(tmp_path, BERTS)
    check_equal(run(tmp_path, Options(lines=PAIR_LINES)), {"classify", *(["rerank"] if num_labels == 1 else [])})


def test_bart(tmp_path: Path) -> None:
    save_bart(tmp_path, "odd", HEAD.replace("Bert", ""), vocab_size=400, num_labels=3)
    byte_level(tmp_path, ROBERTAS)
    check_equal(run(tmp_path, Options(lines=[*LINES, *PAIR_LINES])), {"classify"})


@pytest.mark.parametrize("kind", ["Question", "Context"])
def test_dpr(kind: str, tmp_path: Path) -> None:
    save_dpr(tmp_path, kind)
    check_equal(run(tmp_path), {"dense"})


def test_token_classifier(tmp_path: Path) -> None:
    save(tmp_path, "BertForTokenClassification", id2label={0: "O", 1: "B-PER", 2: "I-PER"})
    check_equal(run(tmp_path), {"token_classify"})
    check_equal(run(tmp_path, Options()), {"token_classify"})


@pytest.mark.parametrize("kind", ["original", "conversion", "logit score"])
def test_qwen3_reranker(kind: str, assets: Path, tmp_path: Path) -> None:
    from tests.tasks.test_qwen3_reranker import LIMIT
    from tests.tasks.test_qwen3_reranker import save as save_qwen3

    head: dict[str, Any] = {"head": "ForSequenceClassification", "num_labels": 1} if kind == "conversion" else {}
    save_qwen3(tmp_path, assets, pad_token_id=151643, **head)
    if kind == "logit score":
        types = ("base.modules.transformer.Transformer", "cross_encoder.modules.logit_score.LogitScore")
        modules = [{"idx": i, "path": f"{i}" * i, "type": f"sentence_transformers.{t}"} for i, t in enumerate(types)]
        (tmp_path / "modules.json").write_text(json.dumps(modules))
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "config.json").write_text('{"true_token_id": 9693, "false_token_id": null}')
        (tmp_path / "config_sentence_transformers.json").write_text('{"activation_fn": "torch.nn.Identity"}')
    report = run(
        tmp_path, Options(lines=["panda\thi", "x\t" + "大熊猫 " * 60]), task_type="reranker", max_seq_len=LIMIT
    )
    check_equal(report, {"rerank"})
    assert "model card" in report.compared_with[0]


def test_bfloat16_weights(tmp_path: Path) -> None:
    save(tmp_path).bfloat16().save_pretrained(tmp_path)
    check_equal(run(tmp_path), {"dense"})


@pytest.mark.parametrize("transformer", ["", "0_Transformer"])
def test_flags_over_the_files_count_for_both(transformer: str, tiny_bert: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny_bert, tmp_path / "model")
    folder = tmp_path / "model" / transformer
    if transformer:
        folder.mkdir()
        for name in ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"):
            (tmp_path / "model" / name).rename(folder / name)
        path = tmp_path / "model" / "modules.json"
        modules = json.loads(path.read_text())
        modules[0]["path"] = transformer
        path.write_text(json.dumps(modules))
    words = tmp_path / "words"
    words.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).rename(words / name)
    plain = run(tiny_bert)
    report = run(tmp_path / "model", json_model_override_args='{"layer_norm_eps": 0.5}', tokenizer_path=str(words))
    check_equal(report, {"dense"})
    assert [row.num_tokens for row in report.rows] == [row.num_tokens for row in plain.rows]
    spared = run(tmp_path / "model", Options(lines=LINES, reference=str(tiny_bert)), tokenizer_path=str(words))
    check_equal(spared, {"dense"})


def test_qwen_2_embedding_reads_both_ways(assets: Path, tmp_path: Path) -> None:
    from tests.models.test_qwen import save as save_qwen

    save_qwen(tmp_path, vocab_size=151936)
    words = str(assets / "tokenizers" / "qwen2")
    lines = ["what is a panda?", "今天天气很好。🙂"]
    for model_type in ("qwen2", "qwen_2_embedding"):
        report = run(tmp_path, Options(lines=lines), model_type=model_type, tokenizer_path=words, max_seq_len=50)
        check_equal(report, {"dense"})


@pytest.mark.parametrize("family", ["gte-qwen2", "qwen3-embedding"])
def test_families_with_their_real_tokenizers(family: str, assets: Path, tmp_path: Path) -> None:
    save_family(tmp_path, assets / "tokenizers", family)
    check_equal(run(tmp_path / "saved", Options()), {"dense"})


def test_a_spoilt_copy_differs_and_the_worst_text_is_named(tiny_bert: Path, tmp_path: Path) -> None:
    spoilt = spoil(tiny_bert, "encoder.layer.1.output.dense.weight", tmp_path / "spoilt")
    report = run(spoilt, Options(lines=LINES, reference=str(tiny_bert)))
    assert report.verdict is Verdict.DIFFERS and report.verdict.status == 1
    assert report.worst is not None
    assert report.worst.max_abs == max(row.max_abs for row in report.rows)
    last = as_text(report).splitlines()[-1]
    assert last.startswith(f"DIFFERS: 5 of 5 answers, most dense of {report.worst.sample.input!r}, ")
    check_equal(run(spoilt), {"dense"})


@pytest.mark.parametrize(("head", "lines"), [({"num_labels": 1}, PAIR_LINES), ({"num_labels": 3}, LINES)])
def test_a_spoilt_head_differs(head: dict[str, int], lines: list[str], tmp_path: Path) -> None:
    save(tmp_path / "good", HEAD, **head)
    spoilt = spoil(tmp_path / "good", "bert.pooler.dense.bias", tmp_path / "spoilt")
    report = run(spoilt, Options(lines=lines, reference=str(tmp_path / "good")))
    assert report.verdict is Verdict.DIFFERS


def test_other_tokens_differ(tiny_bert: Path, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    shutil.copytree(tiny_bert, folder)
    text = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(text.replace('"the":', '"thf":'))
    report = run(folder, Options(lines=LINES, reference=str(tiny_bert)))
    assert report.worst is not None and report.worst.sample.input == LINES[0]
    assert "tokens differ from place 1" in as_text(report)


def test_weights_that_are_not_numbers_cannot_be_loaded(tiny_bert: Path, tmp_path: Path) -> None:
    folder = spoil(tiny_bert, "encoder.layer.1.output.dense.weight", tmp_path / "nan")
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors["encoder.layer.0.output.dense.weight"][0, 0] = np.nan
    safetensors.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match="encoder.layer.0.output.dense.weight' are NaN"):
        run(folder)


@pytest.mark.parametrize("library", ["transformers", "sentence_transformers"])
def test_what_is_not_installed_is_not_compared(library: str, tiny_bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(references_module, "find_spec", lambda name: None if name == library else find_spec(name))
    report = run(tiny_bert)
    assert report.verdict is Verdict.NOT_COMPARED and report.verdict.status == 3 and not report.rows
    text = as_text(report)
    assert f"{library.replace('_', '-')} is not installed: pip install 'rtp-llm[verify]'" in text
    assert text.splitlines()[-1].startswith("NOT COMPARED: the checks hold")


def test_a_reference_that_does_not_load(tiny_bert: Path, tmp_path: Path) -> None:
    save(tmp_path / "plain")
    (tmp_path / "plain" / "model.safetensors").write_bytes(b"torn")
    report = run(tiny_bert, Options(lines=LINES, reference=str(tmp_path / "plain")))
    assert report.verdict is Verdict.NOT_COMPARED
    assert "SentenceTransformer cannot load it: " in report.not_compared[0]


def test_flag_embedding_falls_back_to_its_formulas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_m3(tmp_path)
    broken = replace(references_module._m3_plan((TaskType.SPARSE,)), module="rtp_llm.verify.absent")
    formulas = replace(broken, module="rtp_llm.verify.bge_m3", class_name="FormulaReference", otherwise=None)
    monkeypatch.setattr(references_module, "_m3_plan", lambda tasks: replace(broken, otherwise=formulas))
    assert run(tmp_path, task_type="sparse_embedding").verdict is Verdict.EQUAL


PUBLISHED: list[dict[str, Any]] = [
    {"task": "dense", "kind": "leading", "inputs": ["the weather"]},
    {"task": "dense", "kind": "similarity", "left": ["so"], "right": ["sunny", "so"]},
    {"task": "sparse", "kind": "weights", "inputs": ["the weather"]},
    {"task": "colbert", "kind": "similarity", "left": ["so"], "right": ["sunny"]},
    {"task": "rerank", "kind": "logit", "inputs": [["the", "weather"], ["so", "sunny"]]},
]


@pytest.mark.parametrize("entry", PUBLISHED, ids=lambda entry: f"{entry['task']} {entry['kind']}")
@pytest.mark.parametrize("error", [0.0, 0.5])
def test_published_values(entry: dict[str, Any], error: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "known-model"
    if entry["task"] == "rerank":
        save(folder, HEAD, num_labels=1)
    else:
        save_m3(folder)
    from rtp_llm import Model

    with Model(str(folder), backend="numpy") as model:
        if entry["kind"] == "leading":
            expected: Any = (model.embed(entry["inputs"])[:, :3] + error).tolist()
        elif entry["kind"] == "similarity":
            expected = (model.similarity(entry["left"], entry["right"], kind=entry["task"]) + error).tolist()
        elif entry["kind"] == "weights":
            (vector,) = model.embed_sparse(entry["inputs"])
            expected = [dict(zip(map(str, vector.indices.tolist()), (vector.values + error).tolist(), strict=True))]
        else:
            expected = [model.rerank(q, [d], activation="none")[0].score + error for q, d in entry["inputs"]]
    value = {**entry, "expected": expected, "bound": 1e-3, "source": "https://example.com/card"}
    table = [{"names": ["Known-Model"], "config": {"hidden_size": 32}, "values": [value]}]
    monkeypatch.setattr(published_module, "_table", lambda: table)
    report = run(folder, Options(lines=PAIR_LINES))
    assert [check.verdict for check in report.published] == [Verdict.DIFFERS if error else Verdict.EQUAL]
    assert "https://example.com/card" in as_text(report)
    assert report.verdict is report.published[0].verdict


def test_the_shipped_table_names_a_source_and_a_served_task_for_each_value() -> None:
    published_module._table.cache_clear()
    for model in published_module._table():
        for value in model["values"]:
            assert TaskType(value["task"]) and value["source"].startswith("https://") and value["bound"] > 0
            assert len(value["expected"]) == len(value.get("inputs", value.get("left")))


def test_minilm(minilm: Path) -> None:
    report = verify(EngineConfig(checkpoint_path=str(minilm)), Options())
    check_equal(report, {"dense"})
    assert len(report.rows) == 12 and len(report.published) == 2
    assert as_object(report)["verdict"] == "equal"


@pytest.mark.parametrize(
    ("dtype", "allowed", "least_cosine"),
    [("fp32", 1e-5, -1.0), ("fp16", 0.005, 0.9999), ("bf16", 0.02, 0.999), ("int8_weights", 0.05, 0.99)],
)
def test_bounds_go_by_what_it_computes_in(dtype: str, allowed: float, least_cosine: float) -> None:
    bounds = _Bounds.of(1e-5, dtype)
    assert (bounds.bound, bounds.least_cosine) == (allowed, least_cosine)
    assert _Bounds.of(0.1, dtype).bound == 0.1
