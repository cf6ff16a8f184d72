"""Random late-interaction checkpoints in each layout in which they are published."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import WORDS
from tests.models.oracle import add_noise
from tests.tasks.families import COMMON, FAMILIES, SHAPES

SIZE = 24
VOCAB = ["[UNK]", "[PAD]", "[CLS]", "[SEP]", "[MASK]", "[unused0]", "[unused1]", *WORDS, "(", ")", ","]
SKIPPED = ["!", ".", ":", ";"]
TEXTS = [
    "the weather is lovely today .",
    "",
    "! ? . : , ( )",
    "he drove to stadium ; a , b ( c )",
    "a b c " * 40,
    "UNKNOWN words outside! outside!",
    "query passage",
    "so " * 11,
    ".",
]
FOREIGN = "pylate.models.Dense.Dense"
# Beside the families that have heads too.
OWN_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    **FAMILIES,
    "lfm2": ("Lfm2", {"num_key_value_heads": 2, "conv_L_cache": 3, "layer_types": ["conv", "full_attention"]}),
}


def save_encoder(
    folder: Path, family: str, shape: str, tokens: Sequence[str] = (), limit: int = 40, tokenizer: Any = None
) -> Any:
    """An encoder and a tokenizer, of few words unless it is given, that has `tokens` too -> transformers' model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    stem, own = OWN_FAMILIES[family]
    names = ["input_ids", "attention_mask", *(["token_type_ids"] if family == "bert" else [])]
    vocab = {word: i for i, word in enumerate(VOCAB)}
    tokenizer = tokenizer or transformers.BertTokenizer(vocab=vocab, model_max_length=limit, model_input_names=names)
    tokenizer.add_tokens([*tokens])
    config = getattr(transformers, f"{stem}Config")(
        **{**COMMON, **SHAPES[shape]["encoder"], **own, "vocab_size": len(tokenizer)}
    )
    model = getattr(transformers, f"{stem}Model")(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def save(
    folder: Path,
    family: str = "bert",
    shape: str = "tiny",
    *,
    lengths: dict[str, Any] | None = None,
    mask: dict[str, Any] | None = None,
    projections: int = 1,
    **options: Any,
) -> Path:
    """A MultiVectorEncoder's own: `lengths` are the Transformer's settings, `mask` those of MultiVectorMask."""
    torch = pytest.importorskip("torch")
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Dense, Normalize, Transformer
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask

    model = save_encoder(folder / "plain", family, shape)
    transformer = Transformer(str(folder / "plain"), **(lengths or {}))
    sizes = [model.config.hidden_size, *range(SIZE + 8 * (projections - 1), SIZE - 1, -8)]
    torch.manual_seed(1)
    dense = [
        Dense(
            before, after, bias=place > 0, activation_function=torch.nn.Identity(), module_input_name="token_embeddings"
        )
        for place, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True))
    ]
    modules = [transformer, *dense, MultiVectorMask(**(mask or {})), Normalize(module_input_name="token_embeddings")]
    sentence_transformers.MultiVectorEncoder(modules=modules, device="cpu", **options).save(
        str(folder / "saved"), create_model_card=False
    )
    return folder / "saved"


def save_pylate(
    folder: Path,
    family: str = "bert",
    model_type: str | None = "ColBERT",
    tokenizer: Any = None,
    tokens: Sequence[str] = ("[Q] ", "[D] "),
    **settings: Any,
) -> Path:
    """PyLate's: a Transformer and a Dense, all else in config_sentence_transformers.json."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    model = save_encoder(folder, family, "tiny", tokens, tokenizer=tokenizer)
    hidden = model.config.hidden_size
    torch.manual_seed(1)
    (folder / "1_Dense").mkdir()
    save_file({"linear.weight": torch.randn(SIZE, hidden)}, folder / "1_Dense" / "model.safetensors")
    identity = "torch.nn.modules.linear.Identity"
    dense = {"in_features": hidden, "out_features": SIZE, "bias": False, "activation_function": identity}
    write(folder / "1_Dense" / "config.json", dense)
    types = ["sentence_transformers.models.Transformer", FOREIGN]
    paths = ["", "1_Dense"]
    write(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": paths[i], "type": kind} for i, kind in enumerate(types)],
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 19, "do_lower_case": False})
    base = {"query_prefix": "[Q] ", "document_prefix": "[D] ", "query_length": 16, "document_length": 20}
    own = {} if model_type is None else {"model_type": model_type}
    write(
        folder / "config_sentence_transformers.json",
        {"prompts": {}, "similarity_fn_name": "MaxSim", **base, **own, **settings},
    )
    return folder


def save_authors(folder: Path, metadata: dict[str, Any] | None = None, tokenizer: Any = None) -> Path:
    """The layout of ColBERT's authors; without `metadata` there is no artifact.metadata."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    model = save_encoder(folder, "bert", "tiny", tokenizer=tokenizer)
    torch.manual_seed(1)
    tensors = {f"bert.{name}": tensor.contiguous() for name, tensor in model.state_dict().items()}
    tensors["linear.weight"] = torch.randn(SIZE, model.config.hidden_size)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    write(folder / "config.json", {**config, "architectures": ["HF_ColBERT"]})
    if metadata is not None:
        write(folder / "artifact.metadata", metadata)
    return folder


def save_jina_v2(folder: Path) -> Any:
    """jina-colbert-v2's: the names of its authors' flash code, rotary positions, no model_type -> their encoder."""
    from safetensors.torch import save_file

    from tests.models.test_jina_v3 import authors_names

    torch = pytest.importorskip("torch")
    model = save_encoder(folder, "jina_embeddings_v3", "tiny", ("[QueryMarker]", "[DocumentMarker]"))
    torch.manual_seed(1)
    tensors = {**authors_names(model), "linear.weight": torch.randn(SIZE, model.config.hidden_size)}
    save_file({name: values.contiguous() for name, values in tensors.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    own = {"architectures": ["HF_ColBERT"], "position_embedding_type": "rotary", "rotary_emb_base": 20000.0}
    kept = {key: value for key, value in config.items() if key not in ("model_type", "rope_parameters")}
    write(folder / "config.json", {**kept, **own})
    write(folder / "artifact.metadata", {"query_token_id": "[QueryMarker]", "doc_token_id": "[DocumentMarker]"})
    return model


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value))
