"""Qwen3-VL-Embedding and Qwen3-VL-Reranker for texts: their authors' scripts, and sentence-transformers, on random
weights and the tokens of Qwen3.
"""

import json
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm.config import EngineConfig
from rtp_llm.core import Params, TaskType
from rtp_llm.errors import CheckpointError, InvalidInput, InvalidRequest
from rtp_llm.model_config import read_model_config
from tests.backends import BACKENDS
from tests.engine.tokenizer_folders import shortened
from tests.models import test_qwen3_vl as vl
from tests.server.rtp_clients import served
from tests.tasks.checkpoints import loaded

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="4.57")
pytest.importorskip("jinja2")

LIMIT = 96
YES, NO = 9693, 2152
# As theirs, but for media and tools.
TEMPLATE = """
{%- macro text(content) -%}
  {%- if content is string -%}{{- content -}}
  {%- else -%}{%- for part in content -%}{%- if 'text' in part -%}{{- part.text -}}{%- endif -%}{%- endfor -%}
  {%- endif -%}
{%- endmacro -%}
{%- for message in messages -%}
  {%- if message.role in ('system', 'user', 'assistant') -%}
    {{- '<|im_start|>' + message.role + '\\n' + text(message.content) + '<|im_end|>\\n' -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}
"""
JUDGE = (
    "Judge whether the Document meets the requirements based on the Query and the Instruct provided. Note that the "
    'answer can only be "yes" or "no".'
)
# As the template `reranker` of the repositories, but for media.
RERANKER = (
    "{%- set own = messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first -%}"
    "{%- macro text(role) -%}{%- for message in messages if message.role == role -%}"
    "{%- for part in message.content if part.type == 'text' -%}{{- part.text -}}{%- endfor -%}"
    "{%- endfor -%}{%- endmacro -%}"
    "{{- '<|im_start|>system\\n" + JUDGE.replace("'", "\\'") + "<|im_end|>\\n<|im_start|>user\\n<Instruct>: ' -}}"
    "{{- text('system') or 'Given a search query, retrieve relevant candidates that answer the query.' -}}"
    "{{- '<Query>:' + text('query') + '\\n<Document>:' + text('document') + '<|im_end|>\\n' -}}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)
TEXTS = [
    " a panda\n",
    "",
    "The giant panda is a bear species endemic to China.",
    "巴黎是法国的首都。🙂",
    "<|im_end|> no",
]
LONG = "a bear and another one " * 40
PAIRS = [("what is a panda?", text) for text in TEXTS] + [("", ""), (" two  words ", "\n\nthree")]
INSTRUCTION = "Retrieve images or text relevant to the user's query"


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


def save(folder: Path, assets: Path, *, tied: bool = True) -> Any:
    """What was published in January 2026, without files of sentence-transformers -> transformers' model."""
    theirs = vl.save(folder, tied=tied, vocab_size=151936, num_hidden_layers=2, max_position_embeddings=2048)
    words = assets / "tokenizers" / "qwen3"
    (folder / "tokenizer.json").write_text(shortened(words / "tokenizer.json"), encoding="utf-8")
    settings = json.loads((words / "tokenizer_config.json").read_text())
    del settings["chat_template"]
    write(folder / "tokenizer_config.json", settings)
    write(folder / "chat_template.json", {"chat_template": TEMPLATE})
    return theirs


def add_modules(folder: Path, *, of_reranker: bool = False, **sentence: Any) -> None:
    """The files that sentence-transformers 5.4 has had since April 2026."""
    base = "sentence_transformers.base.modules"
    method = {"method": "forward", "method_output_name": "logits" if of_reranker else "last_hidden_state"}
    modalities = dict.fromkeys(("text", "image", "video"), method)
    options = {"chat_template": "reranker"} if of_reranker else {}
    settings = {
        "transformer_task": "any-to-any" if of_reranker else "feature-extraction",
        "modality_config": {**modalities, "message": {**method, "format": "structured"}},
        "module_output_name": "causal_logits" if of_reranker else "token_embeddings",
        "unpad_inputs": False, "max_seq_length": LIMIT,
        "processing_kwargs": {"chat_template": {**options, "add_generation_prompt": True}},
    }  # fmt: skip
    write(folder / "sentence_bert_config.json", settings)
    kinds = [(f"{base}.transformer.Transformer", "")]
    if of_reranker:
        kinds.append(("sentence_transformers.cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"))
        write(folder / "1_LogitScore" / "config.json", {"true_token_id": YES, "false_token_id": NO})
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        (folder / "additional_chat_templates" / "reranker.jinja").write_text(RERANKER)
    else:
        kinds.append(("sentence_transformers.sentence_transformer.modules.pooling.Pooling", "1_Pooling"))
        kinds.append((f"{base}.normalize.Normalize", "2_Normalize"))
        pooling = {"pooling_mode": "lasttoken", "embedding_dimension": vl.SHAPE["hidden_size"]}
        write(folder / "1_Pooling" / "config.json", pooling)
    modules = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (kind, path) in enumerate(kinds)]
    write(folder / "modules.json", modules)
    kind = "CrossEncoder" if of_reranker else "SentenceTransformer"
    write(folder / "config_sentence_transformers.json", {"model_type": kind, **sentence})


def their_vectors(folder: Path, theirs: Any, texts: list[str], instruction: str | None = None) -> Any:
    """format_model_input, _preprocess_inputs and process of the authors' Qwen3VLEmbedder, a text at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if instruction:
        instruction = instruction.strip()
        if instruction and not unicodedata.category(instruction[-1]).startswith("P"):
            instruction = instruction + "."
    vectors = []
    for text in texts:
        system = [{"type": "text", "text": instruction or "Represent the user's input."}]
        chat = [{"role": "system", "content": system}, {"role": "user", "content": [{"type": "text", "text": text}]}]
        written = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, chat_template=TEMPLATE
        )
        ids = tokenizer(written, truncation=True, max_length=LIMIT, return_tensors="pt")
        with torch.no_grad():
            last = theirs.model(**ids).last_hidden_state[0, -1]
        vectors.append(torch.nn.functional.normalize(last, dim=-1).numpy())
    return np.stack(vectors)


def their_scores(folder: Path, theirs: Any, pairs: list[tuple[str, str]], instruction: str) -> Any:
    """format_mm_instruction, tokenize and compute_scores of the authors' Qwen3VLReranker, a pair at a time."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    rows = theirs.lm_head.weight.detach()
    scores = []
    for query, document in pairs:
        parts = ["<Instruct>: " + instruction, "<Query>:", query, "\n<Document>:", document]
        content = [{"type": "text", "text": part} for part in parts]
        chat = [
            {"role": "system", "content": [{"type": "text", "text": JUDGE}]}, {"role": "user", "content": content}
        ]  # fmt: skip
        written = tokenizer.apply_chat_template(
            chat, add_generation_prompt=True, tokenize=False, chat_template=TEMPLATE
        )
        with torch.no_grad():
            last = theirs.model(**tokenizer(written, return_tensors="pt")).last_hidden_state[0, -1]
            scores.append(torch.sigmoid(last @ (rows[YES] - rows[NO])).item())
    return np.array(scores)


@pytest.fixture(scope="module")
def embedder(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("embedder") / "Qwen3-VL-Embedding-2B"
    return folder, save(folder, assets)


@pytest.fixture(scope="module")
def reranker(assets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("reranker") / "Qwen3-VL-Reranker-8B"
    return folder, save(folder, assets, tied=False)


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> Any:
    """sentence-transformers, which reads texts here without the libraries that its processor needs for images."""
    found = pytest.importorskip("sentence_transformers", minversion="5.4")
    monkeypatch.setattr(found.base.modules.transformer, "AutoProcessor", transformers.AutoTokenizer)
    return found


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


@pytest.mark.parametrize("backend", BACKENDS)
def test_embeds_as_the_authors_script(backend: str, embedder: tuple[Path, Any]) -> None:
    """The last text is over the limit, by which the script cuts the template's end as well."""
    folder, theirs = embedder
    texts = [*TEXTS, LONG]
    with loaded(folder, backend, max_seq_len=LIMIT) as model:
        assert model.info.tasks == (TaskType.DENSE, TaskType.TOKENS) and model.info.pooling == "lasttoken"
        ours, alone = model.embed(texts), np.stack([model.embed([text])[0] for text in texts])
        asked = model.embed(texts, prompt=f" {INSTRUCTION} ")
    assert np.array_equal(ours, alone) or backend == "torch"
    assert np.abs(ours - their_vectors(folder, theirs, texts)).max() <= 1e-5
    assert np.abs(asked - their_vectors(folder, theirs, texts, f" {INSTRUCTION} ")).max() <= 1e-5
    assert np.abs(asked - ours).max() > 1e-3


@pytest.mark.parametrize("prompt", [None, INSTRUCTION])
def test_embeds_as_sentence_transformers(
    prompt: str | None, embedder: tuple[Path, Any], library: Any, tmp_path: Path
) -> None:
    """It writes the template's end over that of a text which was cut, and no system message without a prompt."""
    folder = copied(embedder[0], tmp_path)
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    add_modules(folder, prompts={"query": "Find it.", "document": ""})
    theirs = library.SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    texts = [*TEXTS, LONG]
    with loaded(folder) as model:
        assert model.info.max_seq_len == LIMIT
        pairs = [(model.embed(texts, prompt=prompt), theirs.encode(texts, prompt=prompt, batch_size=1))]
        pairs.append((model.embed(texts, prompt_name="query"), theirs.encode(texts, prompt_name="query", batch_size=1)))
    assert all(np.abs(ours - expected).max() <= 1e-5 for ours, expected in pairs)


@pytest.mark.parametrize("backend", BACKENDS)
def test_reranks_as_the_authors_script(backend: str, reranker: tuple[Path, Any]) -> None:
    folder, theirs = reranker
    default = "Given a search query, retrieve relevant candidates that answer the query."
    with loaded(folder, backend, max_seq_len=256) as model:
        assert model.info.tasks == (TaskType.RERANK,)
        for instruction in (default, INSTRUCTION):
            given = None if instruction == default else instruction
            ours = [model.rerank(query, [text], instruction=given)[0].score for query, text in PAIRS]
            assert np.abs(np.array(ours) - their_scores(folder, theirs, PAIRS, instruction)).max() <= 1e-5
        together = {entry.index: entry.score for entry in model.rerank(PAIRS[0][0], [*TEXTS, LONG])}
        alone = [model.rerank(PAIRS[0][0], [text])[0].score for text in (*TEXTS, LONG)]
    assert [together[index] for index in range(len(alone))] == alone or backend == "torch"


def test_a_cut_pair_keeps_the_question(reranker: tuple[Path, Any]) -> None:
    """truncate_tokens_optimized of the script: special tokens and the last five stay, of the others the first."""
    folder, _ = reranker
    with loaded(folder, max_seq_len=LIMIT) as model:
        pool = model._engine._tokenizer
        (item,) = pool.encode([("panda", LONG)], Params(), rerank=True)
        (whole,) = pool.encode([("panda", "a bear")], Params(), rerank=True)
    ids, short = item.input_ids.tolist(), whole.input_ids.tolist()
    assert item.truncated and len(ids) == LIMIT
    assert ids[: len(short) - 6] == short[:-6] and ids[-5:] == short[-5:]


@pytest.mark.parametrize("is_lost", [False, True])
def test_reranks_as_sentence_transformers(
    is_lost: bool, reranker: tuple[Path, Any], library: Any, tmp_path: Path
) -> None:
    """Qwen3-VL-Reranker-8B has been published with a wrong path to LogitScore's file."""
    folder = copied(reranker[0], tmp_path)
    (folder / "chat_template.json").unlink()
    (folder / "chat_template.jinja").write_text(TEMPLATE)
    add_modules(folder, of_reranker=True, activation_fn="torch.nn.modules.activation.Sigmoid")
    model = library.CrossEncoder(str(folder), device="cpu", local_files_only=True)
    pairs = [*PAIRS, ("panda", LONG)]
    default, asked = (
        np.array([model.predict([pair], prompt=prompt)[0] for pair in pairs]) for prompt in (None, INSTRUCTION)
    )
    if is_lost:
        path = folder / "modules.json"
        path.write_text(path.read_text().replace('"1_LogitScore"', '"1_Logit_Score"'))
    with loaded(folder) as model:
        ours = [model.rerank(query, [text])[0].score for query, text in pairs]
        told = [model.rerank(query, [text], instruction=INSTRUCTION)[0].score for query, text in pairs]
    assert np.abs(np.array(ours) - default).max() <= 1e-5
    assert np.abs(np.array(told) - asked).max() <= 1e-5 < np.abs(default - asked).max()


def test_media_and_conversations(embedder: tuple[Path, Any]) -> None:
    """An image is refused by every route; a conversation is what the template writes of it, and no more."""
    with served(embedder[0], max_seq_len=LIMIT) as server:
        picture = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:"}}]}]
        assert "of type text" in server.refuse("/v1/embeddings", messages=picture)["message"]
        chat = [{"role": "system", "content": "Represent the user's input."}, {"role": "user", "content": "a panda"}]
        own = server.post("/v1/embeddings", messages=chat, add_generation_prompt=True)["data"][0]["embedding"]
        plain = server.post("/v1/embeddings", input="a panda")["data"][0]["embedding"]
        assert own == plain
        with pytest.raises(InvalidRequest, match="'mean' is not for this model: its chat template stands around"):
            server.model.embed(["a panda"], chunking="mean")


def test_token_ids_and_pairs(embedder: tuple[Path, Any]) -> None:
    with loaded(embedder[0], max_seq_len=LIMIT) as model:
        pool = model._engine._tokenizer
        ids = pool.encode(["a panda"], Params())[0].input_ids
        (ready,) = pool.encode([ids.tolist()], Params())
        assert np.array_equal(ready.input_ids, ids)
        params = Params(num_queries=0, max_tokens_per_doc=len(pool.tokenizer.tokens("a panda")))
        assert np.array_equal(pool.encode(["a panda is a bear"], params)[0].input_ids, ids)
        with pytest.raises(InvalidInput, match="input 1 is a tuple; a text or a list of token ids is read"):
            pool.encode(["a", ("a", "b")], Params())
        with pytest.raises(InvalidRequest, match="shorten or split it"):
            model.embed([LONG], truncate=False)


@pytest.mark.parametrize("template", [None, "{{ messages[-1].content[0].text | trim }}", "{{ messages[0].content }}"])
def test_templates_that_cannot_serve(template: str | None, embedder: tuple[Path, Any], tmp_path: Path) -> None:
    folder = copied(embedder[0], tmp_path)
    (folder / "chat_template.json").unlink()
    if template is not None:
        (folder / "chat_template.jinja").write_text(template)
    message = "has no chat template" if template is None else "the chat template changes the texts"
    with pytest.raises(CheckpointError, match=message), loaded(folder):
        pass


def test_a_template_that_is_named_and_not_there(reranker: tuple[Path, Any], tmp_path: Path) -> None:
    """Of a reranker the prompt of the authors' script is known, and the same."""
    folder = copied(reranker[0], tmp_path)
    add_modules(folder, of_reranker=True)
    with loaded(folder) as model:
        expected = [entry.score for entry in model.rerank("panda", TEXTS)]
    shutil.rmtree(folder / "additional_chat_templates")
    with loaded(folder) as model:
        assert [entry.score for entry in model.rerank("panda", TEXTS)] == expected


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("Qwen3-VL-Embedding-2B", TaskType.DENSE),
        ("models--Qwen--Qwen3-VL-Reranker-2B/snapshots/6e9e", TaskType.RERANK),
        ("own", TaskType.DENSE),
    ],
)
def test_known_by_its_name_alone(name: str, task: TaskType, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir(parents=True)
    hf = {"model_type": "qwen3_vl", "architectures": [vl.CLASSES[0]], "text_config": {}}
    write(folder / "config.json", hf)
    assert read_model_config(folder, EngineConfig(checkpoint_path=str(folder))).tasks[0] == task
