"""Cross-encoders against sentence-transformers' CrossEncoder and FlagEmbedding's way of cutting pairs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError, ConfigError, InvalidRequest
from tests.backends import BACKENDS
from tests.tasks import families
from tests.tasks.checkpoints import LIMIT, PAIRS, SHAPES, VOCAB, loaded, save, tokenizer

torch = pytest.importorskip("torch")
st = pytest.importorskip("sentence_transformers")

HEAD = "BertForSequenceClassification"


def scores(model: Any, pairs: list[tuple[str, str]], **params: Any) -> Any:
    return np.array([model.rerank(query, [document], **params)[0].score for query, document in pairs])


def cross_encoder(folder: Path, **options: Any) -> Any:
    return st.CrossEncoder(str(folder), device="cpu", **options)


def edit_config(folder: Path, **keys: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_equals_cross_encoder(shape: str, backend: str, tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1, **SHAPES[shape])
    theirs = cross_encoder(tmp_path)
    with loaded(tmp_path, backend) as model:
        assert np.abs(scores(model, PAIRS) - theirs.predict(PAIRS)).max() <= 1e-5
        raw = theirs.predict(PAIRS, activation_fn=torch.nn.Identity())
        assert np.abs(scores(model, PAIRS, activation="none") - raw).max() <= 1e-5


def test_a_chat_template_without_modules_json(tmp_path: Path) -> None:
    """CrossEncoder takes it wherever there is one."""
    pytest.importorskip("jinja2")
    families.save(tmp_path, "llama", "odd", "ForSequenceClassification", num_labels=1)
    path, template = tmp_path / "tokenizer_config.json", "{% for m in messages %}b {{ m['content'] }} {% endfor %}"
    path.write_text(json.dumps({**json.loads(path.read_text()), "chat_template": template}))
    expected = cross_encoder(tmp_path).predict(PAIRS)
    with loaded(tmp_path) as model:
        assert np.abs(scores(model, PAIRS) - expected).max() <= 1e-5


def test_ranks_like_cross_encoder(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    documents = [document for _, document in PAIRS]
    theirs = cross_encoder(tmp_path).rank("the weather", documents, top_k=4)
    with loaded(tmp_path) as model:
        ours = model.rerank("the weather", documents, top_k=4)
        assert model.rerank("the weather", []) == []
    assert [entry.index for entry in ours] == [entry["corpus_id"] for entry in theirs]
    assert [entry.score for entry in ours] == pytest.approx([entry["score"] for entry in theirs], abs=1e-5)
    assert [entry.document for entry in ours] == [documents[entry.index] for entry in ours]


NOTES: dict[str, dict[str, Any]] = {
    "version 4": {"sentence_transformers": {"activation_fn": "torch.nn.modules.linear.Identity"}},
    "version 4, sigmoid": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Sigmoid"}},
    "legacy": {"sbert_ce_default_activation_function": "torch.nn.modules.linear.Identity"},
    "tanh": {"sentence_transformers": {"activation_fn": "torch.nn.modules.activation.Tanh"}},
    "none of version 4": {
        "sentence_transformers": {"activation_fn": None},
        "sbert_ce_default_activation_function": "torch.nn.modules.activation.Tanh",
    },
}


@pytest.mark.parametrize("note", NOTES)
def test_activation_that_config_json_notes(note: str, tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    edit_config(tmp_path, **NOTES[note])
    expected = cross_encoder(tmp_path).predict(PAIRS)
    with loaded(tmp_path) as model:
        assert np.abs(scores(model, PAIRS) - expected).max() <= 1e-5


@pytest.mark.parametrize("activation", [torch.nn.Identity(), torch.nn.Sigmoid()])
def test_a_saved_cross_encoder(activation: Any, tmp_path: Path) -> None:
    save(tmp_path / "plain", HEAD, num_labels=1)
    theirs = cross_encoder(tmp_path / "plain", activation_fn=activation, max_length=40)
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    with loaded(tmp_path / "saved") as model:
        assert model.info.tasks[0] is TaskType.RERANK and model.info.max_seq_len == 40
        assert np.abs(scores(model, PAIRS) - theirs.predict(PAIRS)).max() <= 1e-5


def test_an_activation_beside_another_model_type(tmp_path: Path) -> None:
    """CrossEncoder reads no note of what was saved as something else."""
    save(tmp_path / "plain", HEAD, num_labels=1)
    cross_encoder(tmp_path / "plain", activation_fn=torch.nn.Tanh()).save(
        str(tmp_path / "saved"), create_model_card=False
    )
    path = tmp_path / "saved" / "config_sentence_transformers.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "model_type": "SentenceTransformer"}))
    expected = cross_encoder(tmp_path / "saved").predict(PAIRS)
    with loaded(tmp_path / "saved") as model:
        assert np.abs(scores(model, PAIRS) - expected).max() <= 1e-5


def flag_ids(folder: Path, query: str, document: str, limit: int) -> list[int]:
    """FlagEmbedding, inference/reranker/encoder_only/base.py: the query to 3/4, then only the document is cut."""
    tokenize = tokenizer(folder)
    first = tokenize(query, add_special_tokens=False, truncation=True, max_length=limit * 3 // 4)["input_ids"]
    second = tokenize(document, add_special_tokens=False)["input_ids"][: limit - 3 - len(first)]
    cls, sep = VOCAB.index("[CLS]"), VOCAB.index("[SEP]")
    return [cls, *first, sep, *second, sep]


def test_truncation_of_flag_embedding(tmp_path: Path) -> None:
    theirs = save(tmp_path, HEAD, num_labels=1)
    expected = []
    for query, document in PAIRS:
        ids = flag_ids(tmp_path, query, document, LIMIT)
        types = [0] * (ids.index(VOCAB.index("[SEP]")) + 1)
        types += [1] * (len(ids) - len(types))
        with torch.no_grad():
            logits = theirs(torch.tensor([ids]), token_type_ids=torch.tensor([types])).logits
        expected.append(float(logits[0, 0]))
    with loaded(tmp_path) as model:
        ours = scores(model, PAIRS, truncation="only_second", activation="none")
        assert np.abs(ours - np.array(expected)).max() <= 1e-5
        longest_first = scores(model, PAIRS, activation="none")
    differ = np.abs(ours - longest_first) > 1e-6
    assert differ.tolist() == [len(q.split()) > LIMIT * 3 // 4 for q, _ in PAIRS]


def test_truncate_false_refuses_what_would_be_cut(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    with loaded(tmp_path) as model:
        assert len(model.rerank("he", ["drove"], truncate=False, truncation="only_second")) == 1
        with pytest.raises(InvalidRequest, match="has at least 93 tokens with the other text of its pair and"):
            model.rerank("query " * 90, [""], truncate=False)


@pytest.mark.parametrize("backend", ["numpy", "native"])
def test_packed_equals_alone_bit_for_bit(backend: str, tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1, **SHAPES["odd"])
    documents = [document for _, document in PAIRS]
    with loaded(tmp_path, backend) as model:
        together = {entry.index: entry.score for entry in model.rerank("so sunny", documents)}
        alone = [model.rerank("so sunny", [document])[0].score for document in documents]
    assert [together[index] for index in range(len(documents))] == alone


def test_softmax_of_one_score_is_refused(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    message = "softmax of a single score is always 1"
    with loaded(tmp_path) as model, pytest.raises(InvalidRequest, match=message) as caught:
        model.rerank("a", ["b"], activation="softmax")
    assert caught.value.param == "activation"


def test_more_than_one_label_is_refused(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=3)
    with pytest.raises(ConfigError, match="a reranker has one label, .* has 3"):
        with loaded(tmp_path, task_type="reranker"):
            pass


def test_an_activation_that_is_no_torch_class(tmp_path: Path) -> None:
    save(tmp_path, HEAD, num_labels=1)
    edit_config(tmp_path, sentence_transformers={"activation_fn": "os.system"})
    with pytest.raises(CheckpointError, match="'os.system' is not a torch.nn class"):
        with loaded(tmp_path):
            pass
