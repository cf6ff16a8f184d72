"""JinaBERT in plain torch, written from its paper and from what its authors' code is known to do: the oracle.

Modules are called what the published checkpoints call them. Queries, keys and values are normed in one of its two kinds
(`normed`), which also has the halves of its MLP the other way round.
"""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.models.oracle import add_noise

torch: Any = pytest.importorskip("torch")
nn: Any = torch.nn
F: Any = nn.functional
Module: Any = nn.Module

PLAIN: dict[str, Any] = {
    "model_type": "bert", "architectures": ["JinaBertForMaskedLM"], "position_embedding_type": "alibi",
    "feed_forward_type": "geglu", "emb_pooler": "mean", "attn_implementation": "torch", "vocab_size": 101,
    "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96,
    "max_position_embeddings": 300, "type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0,
    "auto_map": {"AutoModel": "jinaai/jina-bert-implementation--modeling_bert.JinaBertModel"},
}  # fmt: skip


def paper_slopes(num_heads: int) -> list[float]:
    """As the ALiBi paper's footnote and the authors' published function describe them."""

    def geometric(count: int) -> list[float]:
        ratio = 2 ** (-(2 ** -(math.log2(count) - 3)))
        return [ratio**power for power in range(1, count + 1)]

    if math.log2(num_heads).is_integer():
        return geometric(num_heads)
    below = 2 ** math.floor(math.log2(num_heads))
    return geometric(below) + geometric(2 * below)[::2][: num_heads - below]


class Attention(Module):  # type: ignore[misc]  # where torch is not installed
    def __init__(self, config: dict[str, Any], slopes: list[float], normed: bool) -> None:
        super().__init__()
        size, self.heads, self.slopes, eps = (
            config["hidden_size"], config["num_attention_heads"], slopes, config["layer_norm_eps"]
        )  # fmt: skip
        self.self = nn.Module()
        for part in ("query", "key", "value"):
            setattr(self.self, part, nn.Linear(size, size))
        if normed:
            self.self.layer_norm_q, self.self.layer_norm_k = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
        self.normed = normed
        self.output = nn.Module()
        self.output.dense, self.output.LayerNorm = nn.Linear(size, size), nn.LayerNorm(size, eps)

    def forward(self, x: Any) -> Any:
        query, key, value = self.self.query(x), self.self.key(x), self.self.value(x)
        if self.normed:
            query, key = self.self.layer_norm_q(query), self.self.layer_norm_k(key)
        length, size = x.shape
        query, key, value = (part.view(length, self.heads, -1).transpose(0, 1) for part in (query, key, value))
        places = torch.arange(length, dtype=x.dtype)
        distance = (places[:, None] - places[None, :]).abs()
        bias = -torch.tensor(self.slopes, dtype=x.dtype)[:, None, None] * distance
        scores = query @ key.transpose(1, 2) / math.sqrt(size // self.heads) + bias
        context = (scores.softmax(-1) @ value).transpose(0, 1).reshape(length, size)
        return self.output.LayerNorm(self.output.dense(context) + x)


class Layer(Module):  # type: ignore[misc]  # where torch is not installed
    def __init__(self, config: dict[str, Any], slopes: list[float], normed: bool) -> None:
        super().__init__()
        size, wide, eps = config["hidden_size"], config["intermediate_size"], config["layer_norm_eps"]
        self.attention = Attention(config, slopes, normed)
        self.act = F.gelu if config["feed_forward_type"] == "geglu" else F.relu
        self.mlp, self.normed = nn.Module(), normed
        up, down = nn.Linear(size, 2 * wide, bias=False), nn.Linear(wide, size)
        if normed:
            self.layer_norm_1, self.layer_norm_2 = nn.LayerNorm(size, eps), nn.LayerNorm(size, eps)
            self.mlp.up_gated_layer, self.mlp.down_layer = up, down
        else:
            self.mlp.gated_layers, self.mlp.wo, self.mlp.layernorm = up, down, nn.LayerNorm(size, eps)

    def forward(self, x: Any) -> Any:
        attended = self.attention(x)
        if self.normed:
            attended = self.layer_norm_1(x + attended)
            value, gate = self.mlp.up_gated_layer(attended).chunk(2, -1)
            return self.layer_norm_2(attended + self.mlp.down_layer(value * self.act(gate)))
        gate, value = self.mlp.gated_layers(attended).chunk(2, -1)
        return self.mlp.layernorm(self.mlp.wo(self.act(gate) * value) + attended)


class JinaBert(Module):  # type: ignore[misc]  # where torch is not installed
    """Takes and gives what transformers' models do, one sequence at a time."""

    def __init__(self, config: dict[str, Any], normed: bool = False, slopes: list[float] | None = None) -> None:
        super().__init__()
        size, slopes = config["hidden_size"], slopes or paper_slopes(config["num_attention_heads"])
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(config["vocab_size"], size)
        self.embeddings.token_type_embeddings = nn.Embedding(config["type_vocab_size"], size)
        self.embeddings.LayerNorm = nn.LayerNorm(size, config["layer_norm_eps"])
        self.encoder = nn.Module()
        self.encoder.layer = nn.ModuleList(Layer(config, slopes, normed) for _ in range(config["num_hidden_layers"]))

    def forward(self, input_ids: Any, token_type_ids: Any = None) -> Any:
        (ids,) = input_ids
        types = torch.zeros_like(ids) if token_type_ids is None else token_type_ids[0]
        tables = self.embeddings
        x = tables.LayerNorm(tables.word_embeddings(ids) + tables.token_type_embeddings(types))
        for layer in self.encoder.layer:
            x = layer(x)
        return SimpleNamespace(last_hidden_state=x[None])


def save(
    folder: Path, normed: bool = False, prefix: str = "", slopes: list[float] | None = None, **changes: Any
) -> Any:
    """A random checkpoint -> the oracle."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    config = {**PLAIN, **changes}
    model = JinaBert(config, normed, slopes).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    add_noise(model)
    size = config["hidden_size"]
    tensors = {f"{prefix}{name}": values for name, values in model.state_dict().items()}
    # What a masked language model and the first-token pooler have beside the encoder.
    tensors |= {"cls.predictions.bias": torch.ones(3), "pooler.dense.bias": torch.ones(size)}
    safetensors.save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model
