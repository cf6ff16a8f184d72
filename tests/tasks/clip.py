"""Tiny random CLIPs, as transformers and sentence-transformers lay them out."""

import json
import string
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.checkpoint import read_json
from tests.models.oracle import add_noise

LIMIT, BOS, EOS = 20, "<|startoftext|>", "<|endoftext|>"
MERGES = [("t", "h"), ("th", "e</w>"), ("c", "a"), ("ca", "t</w>")]
LETTERS = string.ascii_lowercase + string.digits + "!?.,'<|>"
# As in the real vocabulary, the ends come last.
VOCAB = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), *map("".join, MERGES), BOS, EOS]
VISION = {"hidden_size": 16, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 4, "patch_size": 2}  # fmt: skip
# What a text's end is to be, in config.json: that of its tokenizer, or 2, which said nothing.
ENDS = {"eos": VOCAB.index(EOS), "legacy": 2}


def save_tokenizer(folder: Path, *, in_files: bool = False) -> Any:
    """CLIP's; `in_files`: as vocab.json and merges.txt alone, as older checkpoints have it."""
    transformers = pytest.importorskip("transformers")
    vocab = {word: place for place, word in enumerate(VOCAB)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocab, merges=MERGES, model_max_length=LIMIT)
    tokenizer.save_pretrained(folder)
    if in_files:
        (folder / "tokenizer.json").unlink()
        (folder / "vocab.json").write_text(json.dumps(vocab))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *map(" ".join, MERGES), ""]))
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
        ends = {role: {"content": EOS, **flags} for role in ("eos_token", "unk_token")}
        named = {"bos_token": {"content": BOS, **flags}, **ends, "pad_token": EOS}
        (folder / "special_tokens_map.json").write_text(json.dumps(named))
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": LIMIT})
        )
    return tokenizer


def save(folder: Path, kind: str = "CLIPModel", *, end: str = "eos", in_files: bool = False, **changes: Any) -> Any:
    """A checkpoint in transformers' layout -> its model."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    text = {"vocab_size": len(VOCAB), "hidden_size": 60, "intermediate_size": 77, "num_hidden_layers": 2,
            "num_attention_heads": 5, "max_position_embeddings": LIMIT, "eos_token_id": ENDS[end],
            "projection_dim": 24, **changes}  # fmt: skip
    torch.manual_seed(0)
    if kind == "CLIPModel":
        config = transformers.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=24)
        # NOTE: of images nothing is computed; sentence-transformers wants a processor of theirs all the same.
        images = {"image_processor_type": "CLIPImageProcessor", "processor_class": "CLIPProcessor"}
        (folder / "preprocessor_config.json").write_text(json.dumps(images))
    else:
        config = transformers.CLIPTextConfig(**text)
    model = getattr(transformers, kind)(config).eval()
    add_noise(model)
    model.save_pretrained(folder)
    save_tokenizer(folder, in_files=in_files)
    return model


def save_as_module(folder: Path, **options: Any) -> None:
    """sentence-transformers' layout of clip-ViT-B-32."""
    inner = folder / "0_CLIPModel"
    inner.mkdir(parents=True)
    save(inner, in_files=True, **options)
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    assert read_json(inner, "config.json")["model_type"] == "clip"
