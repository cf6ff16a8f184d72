"""NomicBERT (Nussbaum et al. 2024), of nomic-embed-text v1 and v1.5: RotaryBert with a SwiGLU and no biases.

Equals transformers' NomicBertModel; config.json may have its keys, those of the authors' code, or both. What that code
has besides is read by its own keys and names: a GELU without a gate, biases, and experts (Nussbaum and Duderstadt 2025,
nomic-embed-text-v2-moe).
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.config_files import activation
from rtp_llm.errors import CheckpointError
from rtp_llm.models.rope import Rope
from rtp_llm.models.rotary_bert import MixtureConfig, RotaryBert, RotaryBertConfig

# transformers' key -> that of the authors' code, which GPT-2's configuration has named.
_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "intermediate_size": "n_inner",
    "layer_norm_eps": "layer_norm_epsilon",
}
# The first three have a gate.
_ACTIVATIONS = {"swiglu": "silu", "geglu": "gelu", "glu": "sigmoid", "gelu": "gelu"}
_BIASES = {"qkv_proj_bias": ("qkv", "out"), "mlp_fc1_bias": ("up",), "mlp_fc2_bias": ("down",)}
# Keys of the authors' code by which it computes something else, and the one value that is served.
_ONLY = {
    "prenorm": False, "use_rms_norm": False, "causal": False, "is_causal": False, "parallel_block": False,
    "norm_mlp": False, "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "rotary_emb_fraction": 1,
    "rotary_emb_interleaved": False, "rotary_emb_scale_base": None,
}  # fmt: skip
# Of a checkpoint with experts. `moe_impl` says how they are computed, not what.
_ONLY_OF_EXPERTS = {
    "activation_function": "gelu", "expert_choice_router": False, "moe_normalize_expert_weights": False,
    "num_shared_experts": 0, "ffn_div": 1,
}  # fmt: skip


class NomicBert(RotaryBert):
    """Token types, rotary positions, the matrices of the MLP in a tensor each."""

    prefixes = ("nomic_bert.", "bert.")
    renames = (
        (r"^encoder\.layers\.", "layers."),
        (r"^emb_ln\.", "embeddings.LayerNorm."),
        (r"\.attn\.Wqkv\.", ".self_attn.qkv_proj."),
        (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
        (r"\.mlp\.fc11?\.", ".mlp.up_proj."),
        (r"\.mlp\.fc12\.", ".mlp.gate_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        (r"\.norm1\.", ".post_attention_layernorm."),
        (r"\.norm2\.", ".post_mlp_layernorm."),
    )

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> RotaryBertConfig:
        """config.json in either spelling; CheckpointError where both are there and differ."""
        _check_only(hf, _ONLY)
        values = {key: _value(hf, key) for key in _KEYS} | {"vocab_size": hf.get("vocab_size")}
        eps = values.pop("layer_norm_eps")
        missing = next((key for key, value in values.items() if value is None), None)
        if missing is not None:
            also = f", and so is {_KEYS[missing]}" if missing in _KEYS else ""
            raise CheckpointError(f"config.json: {missing} is missing{also}")
        hidden, num_heads = values["hidden_size"], values["num_attention_heads"]
        if hidden % num_heads or hf.get("head_dim") not in (None, hidden // num_heads):
            raise CheckpointError(
                f"config.json: hidden_size {hidden} is not num_attention_heads {num_heads} times a whole head_dim"
            )
        rope = _rope(hf, hidden // num_heads)
        return RotaryBertConfig(
            **values,
            type_vocab_size=hf.get("type_vocab_size", 2),
            layer_norm_eps=1e-12 if eps is None else eps,
            activation=_activation(hf),
            max_positions=max(rope.max_positions, hf.get("n_positions") or 0),
            rope=rope,
            gated=hf.get("activation_function") != "gelu",
            biases=frozenset(name for key, names in _BIASES.items() if hf.get(key) for name in names),
            mixture=_mixture(hf, values["num_hidden_layers"]),
        )


def _check_only(hf: Mapping[str, Any], served: Mapping[str, Any]) -> None:
    """CheckpointError for a key with another value than the one that is served."""
    for key, value in served.items():
        if hf.get(key) not in (None, value):
            raise CheckpointError(f"config.json: {key} {hf[key]!r}; only {value!r} is supported")


def _mixture(hf: Mapping[str, Any], num_layers: int) -> MixtureConfig | None:
    """Which layers have experts: of every so many the second, which by the authors' rule are none where it is each."""
    every = hf.get("moe_every_n_layers") or 0
    layers = frozenset(range(1, num_layers, every)) if every > 1 else frozenset[int]()
    if not layers:
        return None
    num_experts, top_k = hf.get("num_experts") or 0, hf.get("moe_top_k") or 0
    if not 1 <= top_k <= num_experts:
        raise CheckpointError(
            f"config.json: moe_every_n_layers is {every}, but num_experts {num_experts} and moe_top_k {top_k}; "
            "a token needs one expert or more of those that there are"
        )
    _check_only({**hf, "activation_function": hf.get("activation_function") or "swiglu"}, _ONLY_OF_EXPERTS)
    return MixtureConfig(layers=layers, num_experts=num_experts, top_k=top_k)


def _value(hf: Mapping[str, Any], key: str) -> Any:
    """What config.json says under either name."""
    ours, other = hf.get(key), hf.get(_KEYS[key])
    if ours is not None and other is not None and ours != other:
        raise CheckpointError(f"config.json: {key} is {ours!r}, but {_KEYS[key]} is {other!r}")
    return other if ours is None else ours


def _activation(hf: Mapping[str, Any]) -> str:
    """Of the MLP: by `activation_function`, which names a gate and its activation together, else of the gate.

    CheckpointError where transformers' `hidden_act` beside it is another.
    """
    named = hf.get("activation_function")
    if named is None:
        return activation(hf, "hidden_act", "silu")
    if named not in _ACTIVATIONS:
        raise CheckpointError(f"config.json: activation_function {named!r} is not one of {', '.join(_ACTIVATIONS)}")
    if hf.get("hidden_act") is not None and activation(hf, "hidden_act") != _ACTIVATIONS[named]:
        raise CheckpointError(
            f"config.json: activation_function is {named!r}, but hidden_act is {hf['hidden_act']!r}; remove one"
        )
    return _ACTIVATIONS[named]


def _rope(hf: Mapping[str, Any], head_dim: int) -> Rope:
    """Rotary positions; `rotary_scaling_factor` is transformers' dynamic NTK."""
    positions = hf.get("max_trained_positions") or hf.get("max_position_embeddings") or 2048
    factor, theta = hf.get("rotary_scaling_factor"), hf.get("rotary_emb_base") or hf.get("rope_theta") or 1000.0
    own: dict[str, Any] = {"rope_theta": theta, **(hf.get("rope_parameters") or {})}
    if hf.get("rotary_emb_base") not in (None, own["rope_theta"]):
        raise CheckpointError(
            f"config.json: rotary_emb_base is {hf['rotary_emb_base']}, but rope_parameters have {own['rope_theta']}"
        )
    if factor is not None:
        own |= {"rope_type": "dynamic", "factor": factor}
    elif own.get("rope_type", "default") == "default":
        positions = max(positions, hf.get("n_positions") or 0)
    return Rope.from_hf({**hf, "rope_theta": theta, "rope_parameters": own}, head_dim, positions)
