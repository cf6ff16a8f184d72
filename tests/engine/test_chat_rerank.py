"""Rerankers with a chat template of their own against sentence-transformers' CrossEncoder, tokens and scores."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import Params, Prefixes, pack
from rtp_llm.errors import CheckpointError
from rtp_llm.verify import Options, Verdict, verify
from tests.tasks.checkpoints import loaded
from tests.tasks.test_qwen3_reranker import NO, PAIRS, SHAPE, YES, save

torch = pytest.importorskip("torch")
sentence_transformers = pytest.importorskip("sentence_transformers", minversion="5.4")
pytest.importorskip("jinja2")

LIMIT = 96
ROLE = '{{ messages | selectattr("role", "eq", "%s") | map(attribute="content") | first }}'
FLAT = f"<Query>: {ROLE % 'query'}\n<Document>: {ROLE % 'document'}"
PARTS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m['content'][0]['text'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{{ opening or '' }}{% endif %}"
)
TAIL = (
    "{% if messages[0].role == 'system' %}<Instruct>: {{ messages[0].content }}\n{% endif %}" + FLAT + "<|im_end|>\n\n"
)
TEMPLATES = {"flat": FLAT, "parts": PARTS, "tail": TAIL}


def write(folder: Path, template: str, no: int | None = NO, **settings: Any) -> None:
    """The files of a CrossEncoder with LogitScore around a saved Qwen3."""
    transformer = "sentence_transformers.base.modules.transformer.Transformer"
    score = "sentence_transformers.cross_encoder.modules.logit_score.LogitScore"
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": transformer},
        {"idx": 1, "name": "1", "path": "1_LogitScore", "type": score},
    ]
    (folder / "1_LogitScore").mkdir(exist_ok=True)
    ids = {"true_token_id": YES, "false_token_id": no, "module_input_name": "causal_logits"}
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps(ids))
    (folder / "modules.json").write_text(json.dumps(modules))
    method = {"method": "forward", "method_output_name": "logits"}
    modalities = {"text": method, "message": {**method, "format": "structured" if template == PARTS else "flat"}}
    own = {"modality_config": modalities, "module_output_name": "causal_logits", "max_seq_length": LIMIT}
    settings = {"transformer_task": "text-generation", **own, **settings}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings))
    sentence = {"model_type": "CrossEncoder", "activation_fn": "torch.nn.modules.activation.Sigmoid"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(sentence))
    (folder / "chat_template.jinja").write_text(template)


@pytest.fixture(scope="module")
def folder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("chat")
    save(path, assets)
    return path


def their_scores(folder: Path, pairs: Any, **options: Any) -> Any:
    model = sentence_transformers.CrossEncoder(str(folder), device="cpu", local_files_only=True)
    return np.array([model.predict([pair], **options)[0] for pair in pairs])


@pytest.mark.parametrize("name", TEMPLATES)
def test_equals_cross_encoder(name: str, folder: Path) -> None:
    """Some of PAIRS are cut, so that the template's tail is written over their end."""
    options = {"add_generation_prompt": True, "opening": "<think>\n"} if name == "parts" else {}
    write(folder, TEMPLATES[name], processing_kwargs={"chat_template": options})
    theirs = their_scores(folder, PAIRS)
    logits = their_scores(folder, PAIRS, activation_fn=torch.nn.Identity())
    with loaded(folder) as model:
        ours = [model.rerank(query, [document])[0].score for query, document in PAIRS]
        raw = [model.rerank(query, [document], activation="none")[0].score for query, document in PAIRS]
    assert np.abs(ours - theirs).max() <= 1e-5 and np.abs(raw - logits).max() <= 1e-5


def test_a_prompt_is_a_system_message(folder: Path) -> None:
    write(folder, TAIL)
    theirs = their_scores(folder, PAIRS, prompt="Find the bear")
    with loaded(folder) as model:
        ours = [model.rerank(query, [text], instruction="Find the bear")[0].score for query, text in PAIRS]
    assert np.abs(ours - theirs).max() <= 1e-5
    default = json.loads((folder / "config_sentence_transformers.json").read_text())
    default |= {"prompts": {"bear": "Find the bear"}, "default_prompt_name": "bear"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(default))
    with loaded(folder) as model:
        assert [model.rerank(query, [text])[0].score for query, text in PAIRS] == ours


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_documents_of_a_query_share_what_stands_before_them(name: str, folder: Path) -> None:
    write(folder, TEMPLATES[name])
    documents = ["a panda", "", ": a colon", "the bear " * 100, "\u5df4\u9ece", "0", "1 2"]
    with loaded(folder, "native") as model:
        items = model._engine._tokenizer.encode([("panda", text) for text in documents], Params(), rerank=True)
        together = {entry.index: entry.score for entry in model.rerank("panda", documents)}
        alone = [model.rerank("panda", [text])[0].score for text in documents]
    lengths = [len(item.prefix) // 4 for item in items]
    assert min(lengths) >= 3 and max(lengths) <= min(item.num_tokens for item in items)
    assert pack(items, "last", Prefixes.find(items, {})).num_seqs > len(items)
    assert [together[index] for index in range(len(documents))] == alone


def test_a_classification_head(assets: Path, tmp_path: Path) -> None:
    save(tmp_path, assets, head="ForSequenceClassification", num_labels=1, pad_token_id=151643)
    write(tmp_path, FLAT)
    modules = json.loads((tmp_path / "modules.json").read_text())
    (tmp_path / "modules.json").write_text(json.dumps(modules[:1]))
    settings = json.loads((tmp_path / "sentence_bert_config.json").read_text())
    settings |= {"transformer_task": "sequence-classification", "module_output_name": "scores"}
    (tmp_path / "sentence_bert_config.json").write_text(json.dumps(settings))
    theirs = their_scores(tmp_path, PAIRS)
    with loaded(tmp_path) as model:
        assert [task.value for task in model.info.tasks] == ["rerank"]
        ours = [model.rerank(query, [document])[0].score for query, document in PAIRS]
    assert np.abs(ours - theirs).max() <= 1e-5


def test_modality_config_may_ask_for_plain_pairs(folder: Path) -> None:
    write(folder, FLAT, modality_config={"text": {"method": "forward", "method_output_name": "logits"}})
    pairs = [pair for pair in PAIRS if any(pair)]
    theirs = their_scores(folder, pairs)
    with loaded(folder) as model:
        assert np.abs([model.rerank(*pair_of(pair))[0].score for pair in pairs] - theirs).max() <= 1e-5


def test_another_language_model(assets: Path, tmp_path: Path) -> None:
    import transformers

    save(tmp_path, assets)
    shape: dict[str, Any] = {key: value for key, value in SHAPE.items() if key != "head_dim"}
    torch.manual_seed(0)
    transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**shape)).save_pretrained(tmp_path)
    write(tmp_path, FLAT)
    theirs = their_scores(tmp_path, PAIRS)
    with loaded(tmp_path) as model:
        assert model.info.scores_are_probabilities
        assert np.abs([model.rerank(*pair_of(pair))[0].score for pair in PAIRS] - theirs).max() <= 1e-5
    (tmp_path / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(CheckpointError, match="cannot carry a query and a document: it leaves out the document"):
        with loaded(tmp_path):
            pass


def pair_of(pair: tuple[str, str]) -> tuple[str, list[str]]:
    return pair[0], [pair[1]]


def test_options_that_are_no_variables(folder: Path) -> None:
    write(folder, FLAT, processing_kwargs={"chat_template": {"max_length": 7}})
    with pytest.raises(CheckpointError, match="chat_template: max_length is not served"):
        with loaded(folder):
            pass


def test_verify_asks_cross_encoder(folder: Path) -> None:
    """A template of its own, not the model card's: what differs from sentence-transformers is not equal."""
    write(folder, FLAT)
    report = verify(EngineConfig(checkpoint_path=str(folder)), Options(lines=("panda\ta bear", "panda\ta " * 1)))
    assert report.verdict is Verdict.EQUAL and "CrossEncoder, by the chat template" in report.compared_with[0]
