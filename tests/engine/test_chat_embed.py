"""Embedders with a chat template: those whose template leaves a text as it is, against sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import CheckpointError
from tests.conftest import WORDS
from tests.models.test_embedding_gemma2 import SHAPE

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5.19")
pytest.importorskip("jinja2")

# As EmbeddingGemma 2's, but for what it does with media.
TEMPLATE = (
    "{%- for role in ('system', 'user') -%}{%- for msg in messages if msg['role'] == role -%}"
    "{%- if msg['content'] is string -%}{{ msg['content'] }}{%- else -%}"
    "{%- for item in msg['content'] -%}{%- if item['type'] == 'text' -%}{{ item['text'] }}{%- endif -%}{%- endfor -%}"
    "{%- endif -%}{%- endfor -%}{%- endfor -%}"
)
MODALITY = {"method": "forward", "method_output_name": "last_hidden_state"}
PROMPTS = {"query": "a query : ", "document": ""}
TEXTS = ["the weather is lovely today", "", "he drove to stadium " * 3, "so sunny outside"]


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def save(folder: Path, template: str = TEMPLATE, *, processor: bool = True, form: str = "structured") -> Any:
    """The published layout: a model among its towers, mean pooling, Normalize -> transformers' model for texts."""
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    torch.manual_seed(0)
    text = transformers.EmbeddingGemma2TextConfig(**{**SHAPE, "vocab_size": len(vocab)})
    config = transformers.EmbeddingGemma2Config(text_config=text, vision_config=None, audio_config=None)
    model = transformers.EmbeddingGemma2Model(config).eval()
    model.save_pretrained(folder)
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(vocab)}).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(template)
    if processor:
        write(folder / "processor_config.json", {"processor_class": "EmbeddingGemma2Processor"})
    message = {"message": {**MODALITY, "format": form}}
    modalities = {**dict.fromkeys(("text", "image", "audio"), MODALITY), **message}
    write(
        folder / "sentence_bert_config.json", {"modality_config": modalities, "module_output_name": "token_embeddings"}
    )
    kinds = ("base.modules.transformer.Transformer", "sentence_transformer.modules.pooling.Pooling",
             "base.modules.normalize.Normalize")  # fmt: skip
    paths = ("", "1_Pooling", "2_Normalize")
    modules = [
        {"idx": place, "name": str(place), "path": path, "type": f"sentence_transformers.{kind}"}
        for place, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    write(folder / "modules.json", modules)
    write(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean", "embedding_dimension": SHAPE["embedding_dim"]})
    write(folder / "config_sentence_transformers.json", {"prompts": PROMPTS})
    return model.language_model


@pytest.mark.parametrize("backend", ["numpy", "native"])
@pytest.mark.parametrize("form", ["structured", "flat"])
def test_a_template_that_leaves_texts_as_they_are(form: str, backend: str, tmp_path: Path) -> None:
    """sentence-transformers needs the towers' libraries for such a checkpoint: its steps, on transformers' model."""
    theirs = save(tmp_path, form=form)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    with Model(str(tmp_path), backend=backend) as model:
        assert model.info.model_type == "embedding_gemma2_text" and model.info.dimension == SHAPE["embedding_dim"]
        for name, prompt in PROMPTS.items():
            ours = model.embed(TEXTS, prompt_name=name)
            for text, vector in zip(TEXTS, ours, strict=True):
                parts = [[{"type": "text", "text": part}] for part in (prompt, text)]
                chat = [{"role": role, "content": part} for role, part in zip(("system", "user"), parts, strict=True)]
                rendered = tokenizer.apply_chat_template(chat if prompt else chat[1:], tokenize=False)
                with torch.no_grad():
                    states = theirs(**tokenizer(rendered, return_tensors="pt")).last_hidden_state[0]
                expected = torch.nn.functional.normalize(states.mean(dim=0), dim=0).numpy()
                assert np.abs(vector - expected).max() <= 1e-5


@pytest.mark.parametrize(
    ("template", "processor"),
    [
        ("<user>{{ messages[-1]['content'][0]['text'] }}", True),
        ("{% for msg in messages %}{{ msg['content'][0]['text'] | trim }}{% endfor %}", True),
        ("{{ messages[-1]['content'][0]['text'] }}", True),
        ("{{ nothing.at.all }}", True),
        (TEMPLATE, False),
    ],
)
def test_templates_that_do_something(template: str, processor: bool, tmp_path: Path) -> None:
    """The third leaves out the prompt; of a tokenizer alone the text would get no special tokens."""
    save(tmp_path, template, processor=processor)
    with pytest.raises(CheckpointError, match="modality_config has 'message', which puts every text through the token"):
        Model(str(tmp_path), backend="numpy")
