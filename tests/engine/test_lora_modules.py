"""`lora_modules`: each adapter as its folder served alone, chosen by name, together in batches; and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import CheckpointError, ConfigError, InvalidRequest
from tests.checkpoint.test_lora import numbers, pair, start_again, write_adapter
from tests.tasks.checkpoints import VOCAB

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["the weather is lovely today .", "he drove to stadium", "so so so sunny", "a " * 40]
SIZES: dict[str, Any] = {
    "vocab_size": len(VOCAB), "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "intermediate_size": 80, "max_position_embeddings": 64, "pad_token_id": 0,
}  # fmt: skip
DECODER = {**SIZES, "num_key_value_heads": 2, "head_dim": 12}
# Family -> its config, and modules with rows and columns that the first adapter and the second are of.
FAMILIES: dict[str, tuple[dict[str, Any], list[tuple[str, int, int]], list[tuple[str, int, int]]]] = {
    "Bert": (
        SIZES,
        [("encoder.layer.0.attention.self.query", 48, 48), ("encoder.layer.1.intermediate.dense", 80, 48)],
        [("encoder.layer.0.attention.self.value", 48, 48), ("encoder.layer.1.output.dense", 48, 80)],
    ),
    "MPNet": (
        SIZES,
        [("encoder.layer.0.attention.attn.q", 48, 48), ("encoder.layer.0.attention.attn.o", 48, 48)],
        [("encoder.layer.1.attention.attn.v", 48, 48), ("encoder.layer.1.intermediate.dense", 80, 48)],
    ),
    "DistilBert": (
        {"vocab_size": len(VOCAB), "dim": 48, "n_layers": 2, "n_heads": 4, "hidden_dim": 80,
         "max_position_embeddings": 64},
        [("transformer.layer.0.attention.q_lin", 48, 48), ("transformer.layer.1.ffn.lin2", 48, 80)],
        [("transformer.layer.1.attention.out_lin", 48, 48), ("transformer.layer.0.ffn.lin1", 80, 48)],
    ),
    "Qwen2": (
        DECODER,
        [("layers.0.self_attn.q_proj", 48, 48), ("layers.1.mlp.gate_proj", 80, 48)],
        [("layers.1.self_attn.k_proj", 24, 48), ("layers.0.mlp.down_proj", 48, 80)],
    ),
    "Qwen3": (
        DECODER,
        [("layers.0.self_attn.v_proj", 24, 48), ("layers.1.mlp.up_proj", 80, 48)],
        [("layers.1.self_attn.o_proj", 48, 48), ("layers.0.mlp.gate_proj", 80, 48)],
    ),
    "Gemma": (
        DECODER,
        [("layers.0.self_attn.q_proj", 48, 48), ("layers.1.mlp.down_proj", 48, 80)],
        [("layers.1.self_attn.o_proj", 48, 48), ("layers.0.mlp.up_proj", 80, 48)],
    ),
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "native": {},
    "int8": {"quantization": "int8", "result_cache_mb": 1},
    "torch": {"backend": "torch", "device": "cpu"},
}


def save(folder: Path, family: str) -> dict[str, Path]:
    """The base in `base`, and two adapters of it -> their folders, by name."""
    start_again()
    config, *modules = FAMILIES[family]
    torch.manual_seed(0)
    base, vocab = folder / "base", {word: i for i, word in enumerate(VOCAB)}
    getattr(transformers, f"{family}Model")(getattr(transformers, f"{family}Config")(**config)).save_pretrained(base)
    transformers.BertTokenizer(vocab=vocab).save_pretrained(base)
    found = {}
    for name, own in zip(("law", "care"), modules, strict=True):
        tensors = {key: values * np.float32(0.3) for module in own for key, values in pair(*module).items()}
        found[name] = write_adapter(folder / name, tensors, base_model_name_or_path=str(base))
    return found


def option(places: dict[str, Path]) -> tuple[str, ...]:
    return tuple(f"{name}={place}" for name, place in places.items())


@pytest.mark.parametrize("kind", OPTIONS)
@pytest.mark.parametrize("family", FAMILIES)
def test_each_is_as_its_folder_alone(family: str, kind: str, tmp_path: Path) -> None:
    places, options = save(tmp_path, family), OPTIONS[kind]
    with Model(tmp_path / "base", **options) as model:
        plain = model.embed(TEXTS)
    with Model(tmp_path / "base", lora_modules=option(places), **options) as model:
        assert model.info.adapters == model.info.lora_modules == ("law", "care")
        ours = {name: model.embed(TEXTS, adapter=name) for name in (*places, None)}
        for name, vectors in ours.items():
            alone = np.stack([model.embed(text, adapter=name) for text in TEXTS])
            # torch's products have other bits beside other rows.
            np.testing.assert_allclose(vectors, alone, rtol=0, atol=1e-5 if kind == "torch" else 0)
    # A text that chose none has the bits of a model without any, but where adapters kept a product from being fused.
    np.testing.assert_allclose(ours[None], plain, atol=1e-5)
    assert np.abs(ours["law"] - ours["care"]).max() > 1e-3 < np.abs(ours["law"] - plain).max()
    for name, place in places.items():
        with Model(place) as merged:
            bound = 0.05 if kind == "int8" else 1e-5
            assert np.abs(ours[name] - merged.embed(TEXTS)).max() <= bound * np.abs(ours[name]).max()


@pytest.mark.parametrize(
    ("modules", "error", "message"),
    [
        (("law",), ConfigError, "'law' is not NAME=FOLDER"),
        (("=x",), ConfigError, "'=x' is not NAME=FOLDER"),
        (("law=LAW", "law=CARE"), ConfigError, "'law' is there twice"),
        (("law=/nowhere",), CheckpointError, "lora_modules: law: there is no folder '/nowhere'"),
        (("law=BASE",), CheckpointError, "has no adapter_config.json"),
        (("law=NORM",), CheckpointError, "comes in the place of the base's, which is not for each request to choose"),
        (("law=POOLER",), CheckpointError, "pooler.dense.weight is no linear layer or table of the model, which"),
        (("law=OTHER",), CheckpointError, "it is an adapter of another model"),
    ],
)
def test_refused(modules: tuple[str, ...], error: type[Exception], message: str, tmp_path: Path) -> None:
    places = save(tmp_path, "Bert")
    places["norm"] = write_adapter(tmp_path / "norm", {"encoder.layer.0.output.LayerNorm.weight": numbers(48)})
    places["pooler"] = write_adapter(tmp_path / "pooler", pair("pooler.dense", 48, 48))
    places["other"] = write_adapter(tmp_path / "other", pair("encoder.layer.0.attention.self.query", 48, 32))
    words = {name.upper(): str(place) for name, place in {**places, "base": tmp_path / "base"}.items()}
    asked = tuple(f"{name}={words.get(place, place)}" if is_pair else name for name, is_pair, place in
                  (module.partition("=") for module in modules))  # fmt: skip
    with pytest.raises(error, match=message):
        Model(tmp_path / "base", lora_modules=asked)


def test_a_model_in_parts_takes_none(tmp_path: Path) -> None:
    places = save(tmp_path, "Qwen3")
    with pytest.raises(ConfigError, match=r"lora_modules: a model in parts \(tp_size\) takes no adapters"):
        Model(tmp_path / "base", lora_modules=option(places), backend="torch", device="cpu", tp_size=2)


def test_a_model_that_takes_none(tmp_path: Path) -> None:
    places = save(tmp_path, "Bert")
    config = transformers.AlbertConfig(**SIZES, embedding_size=16)
    transformers.AlbertModel(config).save_pretrained(tmp_path / "albert")
    transformers.BertTokenizer(vocab={word: i for i, word in enumerate(VOCAB)}).save_pretrained(tmp_path / "albert")
    stem = "encoder.albert_layer_groups.0.albert_layers.0.attention.query"
    place = write_adapter(tmp_path / "of albert", pair(stem, 48, 48))
    with pytest.raises(ConfigError, match=r"of a albert a request cannot choose adapters.* bert, .*qwen3"):
        Model(tmp_path / "albert", lora_modules=(f"law={place}",))
    with (
        Model(tmp_path / "base", lora_modules=option(places)) as model,
        pytest.raises(InvalidRequest, match="law, care"),
    ):
        model.embed("a", adapter="tax")
