"""Texts' vectors of CLIPs, against sentence-transformers and transformers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.checkpoint import read_json
from rtp_llm.core import TaskType
from rtp_llm.errors import CheckpointError, ConfigError
from tests.backends import BACKENDS
from tests.tasks.checkpoints import loaded
from tests.tasks.clip import ENDS, LIMIT, VOCAB, save, save_as_module, save_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
sentence_transformers = pytest.importorskip("sentence_transformers")

TEXTS = [
    "the cat", "", "  The\n CAT\u00a0isn't 42, the cat?! ", "a", "the <|endoftext|> cat", "<|startoftext|>the cat",
    "the cat " * 20, "caf\u0065\u0301 \u00e9 \u4e2d cat",
]  # fmt: skip


def save_plain(folder: Path, **options: Any) -> None:
    save(folder, **options)


def save_again(folder: Path, **options: Any) -> None:
    """As sentence-transformers 6 writes one."""
    plain = folder / "plain"
    plain.mkdir()
    save(plain, **options)
    model = sentence_transformers.SentenceTransformer(str(plain), device="cpu")
    model.save(str(folder), create_model_card=False)
    text = read_json(folder, "sentence_bert_config.json")["modality_config"]["text"]
    assert text["method"] == "get_text_features"


LAYOUTS: dict[str, Callable[..., None]] = {"plain": save_plain, "module": save_as_module, "again": save_again}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_equals_sentence_transformers(layout: str, end: str, backend: str, tmp_path: Path) -> None:
    LAYOUTS[layout](tmp_path, end=end)
    expected = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, batch_size=1)
    BACKENDS[backend]()
    with loaded(tmp_path, backend) as model:
        assert (model.info.model_type, model.info.max_seq_len) == ("clip_text_model", LIMIT)
        ours = model.embed(TEXTS)
        assert ours.shape == (len(TEXTS), 24)
        assert np.abs(ours - expected).max() <= 1e-5
        assert not np.allclose(np.linalg.norm(ours, axis=1), 1, atol=0.01)
        unit = ours / np.linalg.norm(ours, axis=1, keepdims=True)
        assert np.abs(model.embed(TEXTS, normalize=True) - unit).max() <= 1e-6
        if backend != "torch":
            assert np.array_equal(ours[::-1], model.embed(TEXTS[::-1]))
            assert np.array_equal(ours, np.concatenate([model.embed([text]) for text in TEXTS]))


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("kind", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_the_tower_alone_and_ready_ids(kind: str, end: str, tmp_path: Path) -> None:
    """Padded ids too, and such as have no end token: then transformers takes the first token."""
    theirs, last = save(tmp_path, kind, end=end), len(VOCAB) - 1
    ids = [[last - 1, 5, 9, last, last, last], [last - 1, 3, 4, 9], [7, 30, 5, 30, 2], [last], [4, last, 7, 8]]
    with torch.no_grad():
        outputs = [theirs(torch.tensor([row])) for row in ids]
    rows = [output.pooler_output if kind == "CLIPTextModel" else output.text_embeds for output in outputs]
    with loaded(tmp_path, "native") as model:
        ours = model.embed(ids)
        assert np.abs(ours - torch.cat(rows).numpy()).max() <= 1e-5
        again = model.embed(ids[::-1])[::-1]
        assert np.array_equal(ours, again)


def test_a_module_after_it(tmp_path: Path) -> None:
    save_as_module(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    normalize = {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
    (tmp_path / "1_Normalize").mkdir()
    (tmp_path / "modules.json").write_text(json.dumps([*modules, normalize]))
    expected = sentence_transformers.SentenceTransformer(str(tmp_path), device="cpu").encode(TEXTS, batch_size=1)
    with loaded(tmp_path) as model:
        assert np.abs(model.embed(TEXTS) - expected).max() <= 1e-6


@pytest.mark.parametrize("in_files", [False, True])
def test_tokens_are_those_of_transformers(in_files: bool, tmp_path: Path) -> None:
    from rtp_llm.engine.tokenizer_files import has_token_types, load

    save_tokenizer(tmp_path, in_files=in_files)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    theirs, (ours, config) = transformers.AutoTokenizer.from_pretrained(tmp_path), load(tmp_path)
    assert config["tokenizer_class"] == "CLIPTokenizer" and not has_token_types(config)
    for text in [*TEXTS, "<|ENDOFTEXT|>", "I'LL they're 12a\t.b  ", "'s"]:
        assert ours.encode(text).ids == theirs(text)["input_ids"], text


def test_other_tasks_and_poolings_are_refused(tmp_path: Path) -> None:
    save(tmp_path)
    with loaded(tmp_path) as model:
        assert model.info.tasks == (TaskType.DENSE,)
    with loaded(tmp_path, task_type="DENSE_EMBEDDING") as model:
        assert model.info.tasks == (TaskType.DENSE,)
    for task in ("SPARSE_EMBEDDING", "ALL_EMBEDDING", "RERANKER"):
        with (
            pytest.raises(ConfigError, match="task_type: a CLIP gives a vector of a text, not"),
            loaded(tmp_path, task_type=task),
        ):
            pass
    with pytest.raises(ConfigError, match="pooling: mean of a CLIP"), loaded(tmp_path, pooling="mean"):
        pass


def test_files_that_do_not_go_together(tmp_path: Path) -> None:
    save_as_module(tmp_path)
    modules = json.loads((tmp_path / "modules.json").read_text())
    pooling = {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
    (tmp_path / "modules.json").write_text(json.dumps([*modules, pooling]))
    with (
        pytest.raises(CheckpointError, match="the second module is Pooling; a CLIP is served without"),
        loaded(tmp_path),
    ):
        pass
    (tmp_path / "modules.json").write_text(json.dumps(modules))
    hf = read_json(tmp_path, "0_CLIPModel/config.json")
    hf["text_config"]["eos_token_id"] = [3, 4]
    (tmp_path / "0_CLIPModel" / "config.json").write_text(json.dumps(hf))
    with (
        pytest.raises(CheckpointError, match=r"eos_token_id \[3, 4\]; a CLIP reads a text at the one"),
        loaded(tmp_path),
    ):
        pass
    hf["text_config"]["eos_token_id"] = 3
    (tmp_path / "0_CLIPModel" / "config.json").write_text(json.dumps(hf))
    with (
        pytest.raises(CheckpointError, match=r"eos_token_id is 3, but the tokenizer ends a text with"),
        loaded(tmp_path),
    ):
        pass


def test_the_multilingual_student(tmp_path: Path) -> None:
    """clip-ViT-B-32-multilingual-v1: a DistilBERT whose mean goes through a Dense without a bias."""
    models = pytest.importorskip("sentence_transformers.models")

    from tests.tasks.checkpoints import VOCAB as WORDS

    config = transformers.DistilBertConfig(vocab_size=len(WORDS), dim=32, hidden_dim=50, n_layers=2, n_heads=4)
    torch.manual_seed(0)
    transformers.DistilBertModel(config).save_pretrained(tmp_path / "plain")
    tokenizer = transformers.DistilBertTokenizer(vocab={word: i for i, word in enumerate(WORDS)}, do_lower_case=False)
    tokenizer.save_pretrained(tmp_path / "plain")
    chain = [models.Transformer(str(tmp_path / "plain"), max_seq_length=16), models.Pooling(32),
             models.Dense(32, 24, bias=False, activation_function=torch.nn.Identity())]  # fmt: skip
    theirs = sentence_transformers.SentenceTransformer(modules=chain, device="cpu")
    theirs.save(str(tmp_path / "saved"), create_model_card=False)
    texts = ["the weather is lovely", "so sunny", ""]
    with loaded(tmp_path / "saved") as model:
        assert np.abs(model.embed(texts) - theirs.encode(texts)).max() <= 1e-5
