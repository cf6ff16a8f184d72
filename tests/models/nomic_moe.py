"""nomic-embed-text-v2-moe in plain torch, from its paper and its authors' published configuration: the oracle.

Modules are called what the published checkpoint calls them. Every second layer has experts in the place of its MLP; the
probabilities of a token's experts are not scaled to a sum of 1, and one bias is added to what they make together.
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

# config.json of nomic-embed-text-v2-moe, in small.
HUB: dict[str, Any] = {
    "_name_or_path": "nomic-ai/nomic-xlm-2048", "activation_function": "gelu", "add_pooling_layer": False,
    "architectures": ["NomicBertModel"], "attn_pdrop": 0.0,
    "auto_map": {"AutoModel": "nomic-ai/nomic-bert-2048--modeling_hf_nomic_bert.NomicBertModel"},
    "bos_token_id": None, "causal": False, "dense_seq_output": True, "embd_pdrop": 0.1, "eos_token_id": None,
    "expert_choice_router": False, "ffn_div": 1, "fused_bias_fc": True, "fused_dropout_add_ln": True,
    "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "max_trained_positions": 2048, "mlp_fc1_bias": True,
    "mlp_fc2_bias": True, "model_type": "nomic_bert", "moe_every_n_layers": 2, "moe_impl": "megablocks",
    "moe_normalize_expert_weights": False, "moe_resid_pdrop": 0.0, "moe_top_k": 2, "n_embd": 64, "n_head": 4,
    "n_inner": 96, "n_layer": 4, "n_positions": 2048, "num_experts": 8, "num_shared_experts": 0, "pad_token_id": 1,
    "pad_vocab_size_multiple": 64, "parallel_block": False, "parallel_block_tied_norm": False, "prenorm": False,
    "qkv_proj_bias": True, "reorder_and_upcast_attn": False, "resid_pdrop": 0.0, "rotary_emb_base": 10000,
    "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
    "rotary_scaling_factor": None, "router_aux_loss_coef": 0.1, "scale_attn_by_inverse_layer_idx": False,
    "scale_attn_weights": True, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True, "torch_dtype": "float32",
    "transformers_version": "4.44.2", "type_vocab_size": 1, "use_cache": True, "use_flash_attn": True,
    "use_rms_norm": None, "use_xentropy": True, "vocab_size": 128,
}  # fmt: skip


class Attention(Module):  # type: ignore[misc]  # where torch is not installed
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, self.heads, self.base = config["n_embd"], config["n_head"], config["rotary_emb_base"]
        self.Wqkv = nn.Linear(size, 3 * size, bias=config["qkv_proj_bias"])
        self.out_proj = nn.Linear(size, size, bias=config["qkv_proj_bias"])

    def forward(self, x: Any) -> Any:
        length, size = x.shape
        query, key, value = self.Wqkv(x).view(length, 3, self.heads, -1).permute(1, 2, 0, 3)
        query, key = self.turned(query), self.turned(key)
        scores = query @ key.transpose(1, 2) / math.sqrt(size // self.heads)
        return self.out_proj((scores.softmax(-1) @ value).transpose(0, 1).reshape(length, size))

    def turned(self, heads: Any) -> Any:
        """Number i of a head with number i + half of it, as a complex number, by its angle."""
        length, half = heads.shape[1], heads.shape[2] // 2
        frequencies = self.base ** (-torch.arange(half, dtype=torch.float32) / half)
        angles = torch.arange(length, dtype=torch.float32)[:, None] * frequencies
        numbers = torch.complex(heads[..., :half], heads[..., half:])
        numbers = numbers * torch.complex(angles.cos(), angles.sin()).to(numbers.dtype)
        return torch.cat([numbers.real, numbers.imag], dim=-1)


class Dense(Module):  # type: ignore[misc]  # where torch is not installed
    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config["n_embd"], config["n_inner"], bias=config["mlp_fc1_bias"])
        self.fc2 = nn.Linear(config["n_inner"], config["n_embd"], bias=config["mlp_fc2_bias"])

    def forward(self, x: Any) -> Any:
        return self.fc2(F.gelu(self.fc1(x)))


class Mixture(Module):  # type: ignore[misc]  # where torch is not installed
    """Every token by every expert, and 0 times what those make of it that are not its own."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size, wide, self.count, self.top = (
            config["n_embd"], config["n_inner"], config["num_experts"], config["moe_top_k"]
        )  # fmt: skip
        self.router = nn.Module()
        self.router.layer = nn.Linear(size, self.count, bias=False)
        self.experts = nn.Module()
        self.experts.mlp = nn.Module()
        self.experts.mlp.w1 = nn.Parameter(torch.zeros(self.count * wide, size))
        self.experts.mlp.w2 = nn.Parameter(torch.zeros(self.count * wide, size))
        self.experts.bias = nn.Parameter(torch.zeros(size))

    def forward(self, x: Any) -> Any:
        probabilities = self.router.layer(x).softmax(-1)
        least = probabilities.sort(descending=True).values[:, self.top - 1, None]
        weights = probabilities.masked_fill(probabilities < least, 0.0)
        total = torch.zeros_like(x)
        first, second = (part.chunk(self.count) for part in (self.experts.mlp.w1, self.experts.mlp.w2))
        for number in range(self.count):
            total = total + weights[:, number, None] * (F.gelu(x @ first[number].T) @ second[number])
        return total + self.experts.bias


class Layer(Module):  # type: ignore[misc]  # where torch is not installed
    def __init__(self, config: dict[str, Any], number: int) -> None:
        super().__init__()
        self.attn = Attention(config)
        every = config["moe_every_n_layers"]
        self.mlp = Mixture(config) if every and number % every == 1 else Dense(config)
        self.norm1, self.norm2 = (nn.LayerNorm(config["n_embd"], config["layer_norm_epsilon"]) for _ in range(2))

    def forward(self, x: Any) -> Any:
        x = self.norm1(self.attn(x) + x)
        return self.norm2(self.mlp(x) + x)


class NomicMoe(Module):  # type: ignore[misc]  # where torch is not installed
    """Takes and gives what transformers' models do, one sequence at a time."""

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        size = config["n_embd"]
        self.embeddings = nn.Module()
        self.embeddings.word_embeddings = nn.Embedding(config["vocab_size"], size)
        self.embeddings.token_type_embeddings = nn.Embedding(config["type_vocab_size"], size)
        self.emb_ln = nn.LayerNorm(size, config["layer_norm_epsilon"])
        self.encoder = nn.Module()
        self.encoder.layers = nn.ModuleList(Layer(config, number) for number in range(config["n_layer"]))

    def forward(self, input_ids: Any, output_hidden_states: bool = False) -> Any:
        (ids,) = input_ids
        tables = self.embeddings
        x = self.emb_ln(tables.word_embeddings(ids) + tables.token_type_embeddings(torch.zeros_like(ids)))
        states = [x]
        for layer in self.encoder.layers:
            states.append(layer(states[-1]))
        return SimpleNamespace(last_hidden_state=states[-1][None], hidden_states=[x[None] for x in states])


def save(folder: Path, dtype: str = "float32", **changes: Any) -> Any:
    """A random checkpoint, its numbers of this dtype -> the oracle."""
    safetensors = pytest.importorskip("safetensors.torch")
    torch.manual_seed(0)
    config = {**HUB, **changes}
    model = NomicMoe(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0, 0.1)
    add_noise(model)
    stored = {name: values.to(getattr(torch, dtype)) for name, values in model.state_dict().items()}
    model.load_state_dict(stored)
    safetensors.save_file(stored, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return model
