"""Classification heads against transformers' *ForSequenceClassification and its pipeline."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import TaskType, pack
from rtp_llm.errors import CheckpointError, ConfigError
from rtp_llm.model_config import read_model_config
from rtp_llm.tasks import TaskSource
from rtp_llm.tasks.head import load_head
from tests.backends import BACKENDS
from tests.models.oracle import make_items
from tests.tasks import families
from tests.tasks.checkpoints import LIMIT, PAIRS, SHAPES, TEXTS, loaded, save, tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors = pytest.importorskip("safetensors.torch")

MIXED: list[Any] = [value for both in zip(TEXTS, PAIRS, strict=True) for value in both]


THREE = '{"id2label": null, "num_labels": 3}'


def logits(model: Any, folder: Path, inputs: list[Any]) -> Any:
    """What transformers gives for each input alone."""
    tokenize = tokenizer(folder)
    rows = []
    for value in inputs:
        # A batch of one: given as an argument of its own, an empty second text would count as none.
        encoded = tokenize([value], truncation="longest_first", max_length=LIMIT, return_tensors="pt")
        with torch.no_grad():
            rows.append(model(**encoded).logits[0].numpy())
    return np.stack(rows)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_labels", [1, 2, 7])
def test_bert_equals_transformers(num_labels: int, shape: str, backend: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, "BertForSequenceClassification", num_labels=num_labels, **SHAPES[shape])
    with loaded(tmp_path, backend) as model:
        ours = model.classify(MIXED, activation="none")
        assert len(model.info.labels) == num_labels
    assert ours.shape == (len(MIXED), num_labels) and ours.dtype == np.float32
    assert np.abs(ours - logits(theirs, tmp_path, MIXED)).max() <= 1e-5


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_in_any_order_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=3, **SHAPES["odd"])
    with loaded(tmp_path, backend) as model:
        together = model.classify(MIXED)
        assert np.array_equal(together, model.classify(MIXED[::-1])[::-1])
        assert np.array_equal(together, np.concatenate([model.classify([value]) for value in MIXED]))


PROBLEMS: list[tuple[int, str | None]] = [
    (1, None), (3, None), (3, "single_label_classification"), (3, "multi_label_classification"), (1, "regression"),
    (2, "regression"),
]  # fmt: skip


@pytest.mark.parametrize(("num_labels", "problem_type"), PROBLEMS)
def test_scores_are_the_pipelines(num_labels: int, problem_type: str | None, tmp_path: Path) -> None:
    names = {i: f"name {i}" for i in range(num_labels)}
    theirs = save(tmp_path, "BertForSequenceClassification", id2label=names, problem_type=problem_type)
    pipeline = transformers.pipeline("text-classification", theirs, tokenizer=tokenizer(tmp_path), device="cpu")
    with loaded(tmp_path, task_type="classifier") as model:
        ours, labels = model.classify(TEXTS[:3]), model.info.labels
    for row, expected in zip(ours, pipeline(TEXTS[:3], top_k=None), strict=True):
        assert dict(zip(labels, row.tolist(), strict=True)) == pytest.approx(
            {entry["label"]: entry["score"] for entry in expected}, abs=1e-6
        )


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_activation_of_the_request_wins(activation: str, tmp_path: Path) -> None:
    theirs = save(tmp_path, "BertForSequenceClassification", num_labels=4)
    raw = torch.from_numpy(logits(theirs, tmp_path, TEXTS))
    expected = raw.sigmoid() if activation == "sigmoid" else raw.softmax(dim=-1)
    with loaded(tmp_path) as model:
        assert np.abs(model.classify(TEXTS, activation=activation) - expected.numpy()).max() <= 1e-6


class Layout(NamedTuple):
    """Names of the layers, the row of the sequence that is read (None: their mean), what config.json says."""

    hidden: str | None
    last: str
    place: int | None = 0
    activation: Any = torch.tanh
    norm: str | None = None
    has_bias: bool = True
    causal: bool = False
    hf: dict[str, Any] = {}


LAYOUTS = {
    "bert": Layout("bert.pooler.dense", "classifier"),
    "roberta": Layout("classifier.dense", "classifier.out_proj", hf={"model_type": "roberta"}),
    "electra": Layout(
        "classifier.dense",
        "classifier.out_proj",
        activation=torch.nn.functional.gelu,
        hf={"model_type": "electra"},
    ),
    "electra, by its architecture": Layout(
        "classifier.dense",
        "classifier.out_proj",
        activation=torch.nn.functional.gelu,
        hf={"architectures": ["ElectraForSequenceClassification"]},
    ),
    # A key of ModernBERT's, which EuroBERT does not read, beside the name that its authors' code has for the pooling.
    "eurobert, as its authors configure it": Layout(
        "dense",
        "classifier",
        place=None,
        activation=torch.nn.functional.gelu,
        hf={"model_type": "eurobert", "clf_pooling": "mean", "classifier_activation": "silu"},
    ),
    "deberta": Layout(
        "deberta.pooler.dense", "classifier", activation=torch.nn.functional.gelu, hf={"model_type": "deberta-v2"}
    ),
    "deberta, as configured": Layout(
        "pooler.dense",
        "classifier",
        activation=torch.tanh,
        hf={"model_type": "deberta-v2", "pooler_hidden_act": "tanh"},
    ),
    "distilbert": Layout("pre_classifier", "classifier", activation=torch.relu),
    "modernbert": Layout("head.dense", "classifier", activation=torch.nn.functional.gelu, norm="head.norm"),
    "modernbert, as configured": Layout(
        "head.dense",
        "classifier",
        place=None,
        activation=torch.nn.functional.silu,
        norm="head.norm",
        has_bias=False,
        hf={"classifier_pooling": "mean", "classifier_activation": "silu", "norm_eps": 0.1},
    ),
    "qwen": Layout(None, "score", -1, causal=True),
    "qwen, both ways": Layout(None, "score", -1, has_bias=False),
    "plain on an encoder": Layout(None, "classifier"),
    "plain on a decoder": Layout(None, "classifier", -1, causal=True),
}


def a_source(folder: Path, ops: Any, hf: dict[str, Any], *, causal: bool = False) -> TaskSource:
    """Of a checkpoint with three labels and 60 columns."""
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": "a", "1": "b", "2": "c"}, **hf}))
    config = read_model_config(folder, EngineConfig(checkpoint_path=str(folder)))
    vocabulary: Any = None
    return TaskSource(
        model_config=config, pooling="auto", hidden_size=60, causal=causal, ops=ops, vocabulary=vocabulary
    )


def save_layers(folder: Path, layout: Layout) -> dict[str | None, Any]:
    """Random layers by name, in a file with a tensor of an encoder."""
    torch.manual_seed(5)
    layers: dict[str | None, Any] = {layout.last: torch.nn.Linear(60, 3, bias=layout.has_bias)}
    if layout.hidden:
        layers[layout.hidden] = torch.nn.Linear(60, 60, bias=layout.has_bias)
    if layout.norm:
        eps = layout.hf.get("norm_eps", 1e-5)
        layers[layout.norm] = torch.nn.LayerNorm(60, eps=eps, bias=layout.has_bias)
    tensors = {f"{name}.{key}": value for name, layer in layers.items() for key, value in layer.state_dict().items()}
    safetensors.save_file({**tensors, "bert.embeddings.unrelated": torch.zeros(2)}, folder / "model.safetensors")
    return layers


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", LAYOUTS)
def test_layouts_of_the_head(name: str, backend: str, tmp_path: Path) -> None:
    layout = LAYOUTS[name]
    layers = save_layers(tmp_path, layout)
    ops, batch, states = BACKENDS[backend](), pack(make_items((3, 1, 17))), torch.randn(21, 60)
    head = load_head(a_source(tmp_path, ops, layout.hf, causal=layout.causal))
    ours = ops.to_numpy(head(ops, ops.vector(states.numpy()), ops.upload(batch)))
    parts = states.split([3, 1, 17])
    rows = torch.stack([part.mean(dim=0) if layout.place is None else part[layout.place] for part in parts])
    hidden = layout.activation(layers[layout.hidden](rows)) if layout.hidden else rows
    normed = layers[layout.norm](hidden) if layout.norm else hidden
    assert np.abs(ours - layers[layout.last](normed).detach().numpy()).max() <= 1e-5
    assert head.reads == {0: "first", -1: "last", None: "all"}[layout.place]


@pytest.mark.parametrize("key", ["classifier_pooling", "classifier_activation"])
def test_a_head_that_asks_for_what_is_not_served(key: str, tmp_path: Path) -> None:
    save_layers(tmp_path, LAYOUTS["modernbert"])
    with pytest.raises(CheckpointError, match=f"{key} 'best' is not one of"):
        load_head(a_source(tmp_path, BACKENDS["numpy"](), {key: "best"}))


def test_two_poolings_of_a_eurobert(tmp_path: Path) -> None:
    save_layers(tmp_path, LAYOUTS["eurobert, as its authors configure it"])
    both = {"model_type": "eurobert", "classifier_pooling": "late", "clf_pooling": "mean"}
    with pytest.raises(CheckpointError, match="classifier_pooling is 'late', but clf_pooling is 'mean'; leave the one"):
        load_head(a_source(tmp_path, BACKENDS["numpy"](), both))


def test_a_pooler_with_another_activation_than_is_served(tmp_path: Path) -> None:
    save_layers(tmp_path, LAYOUTS["deberta"])
    with pytest.raises(CheckpointError, match="pooler_hidden_act 'best' is not one of"):
        load_head(a_source(tmp_path, BACKENDS["numpy"](), {"model_type": "deberta-v2", "pooler_hidden_act": "best"}))


@pytest.mark.parametrize("family", ["albert", "deberta", "deberta-v1", "electra"])
def test_architectures_tell_the_head_where_there_is_no_model_type(family: str, tmp_path: Path) -> None:
    families.save(tmp_path, family, "odd", "ForSequenceClassification", num_labels=3)
    inputs, path = families.all_lengths(), tmp_path / "config.json"
    with loaded(tmp_path) as model:
        expected = model.classify(inputs, activation="none")
    config = json.loads(path.read_text())
    del config["model_type"]
    path.write_text(json.dumps(config))
    with loaded(tmp_path) as model:
        assert np.array_equal(model.classify(inputs, activation="none"), expected)


@pytest.mark.parametrize(
    ("num_labels", "tasks"),
    [(1, (TaskType.RERANK, TaskType.CLASSIFY)), (2, (TaskType.CLASSIFY,)), (6, (TaskType.CLASSIFY,))],
)
def test_detected_by_the_number_of_labels(num_labels: int, tasks: tuple[TaskType, ...], tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=num_labels)
    with loaded(tmp_path) as model:
        assert model.info.tasks == tasks


@pytest.mark.parametrize("spelling", ["SEQ_CLASSIFICATION", "classifier"])
def test_the_flag_wins_over_one_label(spelling: str, tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=1)
    with loaded(tmp_path, task_type=spelling) as model:
        assert model.info.tasks == (TaskType.CLASSIFY,)


@pytest.mark.parametrize(
    ("head", "flag", "message"),
    [
        ("Token", "SEQ_CLASSIFICATION", "whose head is of every token; serve it with --task_type TOKEN_CLASSIFICATION"),
        ("Token", "RERANKER", "whose head is of every token"),
        ("Sequence", "TOKEN_CLASSIFICATION", "whose head is of a whole text; serve it with --task_type SEQ_CLASS"),
    ],
)
def test_a_head_of_another_kind_is_refused(head: str, flag: str, message: str, tmp_path: Path) -> None:
    save(tmp_path, f"BertFor{head}Classification", num_labels=1)
    with pytest.raises(ConfigError, match=message), loaded(tmp_path, task_type=flag):
        pass


def test_an_encoder_without_a_head_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with pytest.raises(CheckpointError, match=r"no classification head .*pooler\.dense with classifier"):
        with loaded(tmp_path, task_type="classifier"):
            pass


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({"0": "a"}, f"has 3 rows, but config.json names 1 .* say --json_model_override_args '{THREE}'"),
        ({"0": "a", "2": "b", "3": "c"}, "must name the outputs"),
    ],
)
def test_labels_that_do_not_fit(id2label: dict[str, str], message: str, tmp_path: Path) -> None:
    save(tmp_path, "BertForSequenceClassification", num_labels=3)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "id2label": id2label}))
    with pytest.raises(CheckpointError, match=message):
        with loaded(tmp_path, task_type="classifier"):
            pass
    with loaded(tmp_path, task_type="classifier", json_model_override_args=THREE) as model:
        assert len(model.info.labels) == 3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pooling", ["bos", "mean", "late", "first"])
def test_classifier_pooling_of_eurobert(pooling: str, backend: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    save(tmp_path)
    shape = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
    config = transformers.EuroBertConfig(
        **shape, vocab_size=30, pad_token_id=0, num_labels=3, classifier_pooling=pooling, initializer_range=0.1
    )
    theirs = transformers.EuroBertForSequenceClassification(config).eval()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path)
    if pooling == "first":
        with pytest.raises(CheckpointError, match="classifier_pooling 'first' is not one of late, mean, bos"):
            with loaded(tmp_path, backend):
                pass
        return
    inputs: list[Any] = [[8, 9, 7], [5], [8, 7, 7, 10], [*range(1, 29)]]
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in inputs])
    with loaded(tmp_path, backend) as model:
        assert np.abs(model.classify(inputs, activation="none") - expected).max() <= 1e-5


DECODERS: dict[str, dict[str, Any]] = {
    **{family: {} for family in ("Qwen2", "Qwen3", "Llama", "Mistral", "Gemma3Text")},
    "Qwen2, both ways": {"is_causal": False},
    "Gemma3Text, both ways": {"use_bidirectional_attention": True, "sliding_window": 4},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("family", DECODERS)
def test_a_decoder_reads_the_last_token_that_is_not_padding(family: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path)
    pad, shape = 7, {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 6}
    stem = family.partition(",")[0]
    config = getattr(transformers, f"{stem}Config")(
        **shape, num_key_value_heads=2, head_dim=8, vocab_size=30, pad_token_id=pad, num_labels=3, **DECODERS[family]
    )
    theirs = getattr(transformers, f"{stem}ForSequenceClassification")(config).eval()
    (tmp_path / "model.safetensors").unlink()
    theirs.save_pretrained(tmp_path)
    inputs: list[Any] = [[8, 9, pad], [pad, pad], [pad], [8, pad, pad, 10], [8, pad, 9, pad, pad, pad], [11, 12]]
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in inputs])
    with loaded(tmp_path, backend) as model:
        ours = model.classify(inputs, activation="none")
    assert np.abs(ours - expected).max() <= 1e-5


def test_a_gemma_has_a_padding_token_where_config_json_names_none(tmp_path: Path) -> None:
    theirs = families.save(tmp_path, "gemma2", "odd", "ForSequenceClassification", num_labels=3)
    hf = json.loads((tmp_path / "config.json").read_text())
    del hf["pad_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(hf))
    theirs = type(theirs).from_pretrained(tmp_path, attn_implementation="eager").eval()
    inputs = [[8, 9, 0, 0], [0], [8, 0, 10]]
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in inputs])
    with loaded(tmp_path) as model:
        assert np.abs(model.classify(inputs, activation="none") - expected).max() <= 1e-5


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_pools_as_configured(pooling: str, tmp_path: Path) -> None:
    options = {"classifier_pooling": pooling, "classifier_bias": True, "norm_bias": True, "num_labels": 3}
    theirs = families.save(
        tmp_path, "modernbert", "odd", "ForSequenceClassification", classifier_activation="silu", **options
    )
    inputs = families.all_lengths()
    with torch.no_grad():
        expected = np.concatenate([theirs(torch.tensor([ids])).logits.numpy() for ids in inputs])
    with loaded(tmp_path) as model:
        assert np.abs(model.classify(inputs, activation="none") - expected).max() <= 1e-5
