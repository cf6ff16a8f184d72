"""GTE v1.5 and multilingual (Zhang et al. 2024), Snowflake's Arctic Embed M v2: RotaryBert with a GeGLU.

Equals transformers' GteModel, and the NewModel of its authors' own code (Alibaba-NLP/new-impl).
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar

from rtp_llm.config_files import activation
from rtp_llm.errors import CheckpointError
from rtp_llm.models.rope import Rope
from rtp_llm.models.rotary_bert import RotaryBert, RotaryBertConfig
from rtp_llm.models.sizes import read_sizes

# Keys of the authors' code by which it computes something else, and the one value that is served.
_ONLY = {"position_embedding_type": "rope", "layer_norm_type": "layer_norm", "logn_attention_scale": False}


class Gte(RotaryBert):
    """Biases on all but the MLP's first matrix; token types are optional."""

    default_theta: ClassVar[float] = 160_000.0
    default_positions: ClassVar[int] = 8192
    prefixes = ("gte.", "new.")
    renames = (
        (r"^encoder\.layer\.", "layers."),
        (r"\.attention\.(qkv|q|k|v|o)_proj\.", r".self_attn.\1_proj."),
        (r"\.attn_ln\.", ".post_attention_layernorm."),
        (r"\.mlp_ln\.", ".post_mlp_layernorm."),
    )

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> RotaryBertConfig:
        """config.json; CheckpointError where a key is missing or asks for what is not supported."""
        sizes = read_sizes(hf)
        for key, served in _ONLY.items():
            if hf.get(key, served) != served:
                raise CheckpointError(f"config.json: {key} {hf[key]!r}; only {served!r} is supported")
        positions = hf.get("max_position_embeddings") or cls.default_positions
        rope = _rope(
            {"rope_theta": cls.default_theta, **hf}, sizes["hidden_size"] // sizes["num_attention_heads"], positions
        )
        return RotaryBertConfig(
            **sizes,
            type_vocab_size=hf.get("type_vocab_size", 1),
            layer_norm_eps=hf.get("layer_norm_eps", 1e-12),
            activation=activation(hf, "hidden_act"),
            max_positions=rope.max_positions,
            rope=rope,
            gated=True,
            mixture=None,
            biases=frozenset(("qkv", "out", "down")),
        )


class New(Gte):
    """The authors' code, with its defaults for what config.json leaves out."""

    default_theta = 10_000.0
    default_positions = 2048


def _rope(hf: Mapping[str, Any], head_dim: int, positions: int) -> Rope:
    """Rotary positions; of the authors' code also their fixed NTK scaling."""
    scaling = hf.get("rope_scaling") or {}
    if scaling.get("type", scaling.get("rope_type")) != "ntk":
        return Rope.from_hf(hf, head_dim, positions)
    factor = scaling.get("factor")
    if scaling.get("mixed_b") is not None or not isinstance(factor, (int, float)) or factor < 1:
        raise CheckpointError(
            f"config.json: rope_scaling {scaling}; of ntk a factor of at least 1 without mixed_b is supported"
        )
    plain = Rope.from_hf({**hf, "rope_scaling": None}, head_dim, positions)
    # NOTE: max_position_embeddings is the stretched length: their checkpoints were trained with the scaling.
    return replace(plain, rope_type="ntk", factor=factor)
