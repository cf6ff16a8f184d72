"""What config.json says of a decoder: the keys that all families have, and what each family adds to them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rtp_llm.architectures import own_code
from rtp_llm.config_files import activation
from rtp_llm.errors import CheckpointError
from rtp_llm.models.rope import Rope

FULL, SLIDING = "full_attention", "sliding_attention"


@dataclass(frozen=True, kw_only=True)
class DecoderConfig:
    """The keys of config.json that matter, by their own names, and what tells one family from another.

    windows          of each layer: tokens that one sees before itself, itself included (`causal`), or to either side;
                     None: all
    local_rope       of the layers with a window; None: `rope`, as of the others
    attention_scale  of the products of queries and keys
    softcap          beyond which no score goes, by its tanh; None: there is none
    embedding_scale  of the rows of the embedding table
    norm_offset      what the checkpoint's weights of norms lack
    output_norms     whether what attention and MLP give is normed before it is added to what they were given
    """

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    intermediate_size: int
    rms_norm_eps: float
    activation: str
    rope: Rope
    windows: tuple[int | None, ...]
    attention_scale: float
    causal: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    head_norms: bool = False
    local_rope: Rope | None = None
    softcap: float | None = None
    embedding_scale: float = 1.0
    norm_offset: float = 0.0
    output_norms: bool = False

    @property
    def ropes(self) -> tuple[Rope, ...]:
        return (self.rope,) if self.local_rope is None else (self.rope, self.local_rope)

    def rope_number(self, layer: int) -> int:
        """Which of `ropes` turns a layer's queries and keys."""
        return int(self.local_rope is not None and self.windows[layer] is not None)


def read(
    hf: Mapping[str, Any], *, max_positions: int, head_dim: int | None = None, eps: float = 1e-6, **own: Any
) -> DecoderConfig:
    """Read config.json; CheckpointError where a key is missing or asks for what is not supported.

    max_positions  where config.json has no max_position_embeddings
    head_dim       where it has no head_dim; None: a head's part of hidden_size
    eps            where it has no rms_norm_eps
    own            fields that the family reads itself
    """
    hidden, num_heads = integer(hf, "hidden_size"), integer(hf, "num_attention_heads")
    num_kv_heads = integer(hf, "num_key_value_heads", num_heads)
    head_dim = integer(hf, "head_dim", head_dim or hidden // num_heads)
    check_groups(num_heads, num_kv_heads)
    num_layers = integer(hf, "num_hidden_layers")
    fields = {
        "vocab_size": integer(hf, "vocab_size"),
        "hidden_size": hidden,
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_heads,
        "num_key_value_heads": num_kv_heads,
        "head_dim": head_dim,
        "intermediate_size": integer(hf, "intermediate_size"),
        "rms_norm_eps": hf.get("rms_norm_eps", eps),
        "windows": (None,) * num_layers,
        "attention_scale": head_dim**-0.5,
        **own,
    }
    if "activation" not in own:
        fields["activation"] = activation(hf, "hidden_act", "silu")
    if "rope" not in own:
        fields["rope"] = Rope.from_hf(hf, head_dim, integer(hf, "max_position_embeddings", max_positions))
    return DecoderConfig(**fields)


def integer(hf: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive whole number; `default` where it is absent or null, None: it must not be."""
    value = hf.get(key)
    value = default if value is None else value
    if type(value) is not int or value < 1:
        problem = "is missing" if value is None else f"{value!r} is not a positive whole number"
        raise CheckpointError(f"config.json: {key} {problem}")
    return value


def check_groups(num_heads: int, num_kv_heads: int, whose: str = "") -> None:
    """CheckpointError unless as many query heads share each key head; `whose`: which layer's those are."""
    if num_heads % num_kv_heads:
        raise CheckpointError(
            f"config.json: num_attention_heads {num_heads} is not a multiple of {whose}num_key_value_heads "
            f"{num_kv_heads}"
        )


def is_causal(hf: Mapping[str, Any]) -> bool:
    """Whether a token sees those before it only: what config.json says, else that it does.

    CheckpointError where it says nothing and names code of its authors' own, by which it may not: embedders are
    often decoders made to look both ways, with the tensors of those that do not.
    """
    said, code = hf.get("is_causal"), own_code(hf)
    if said is None and code:
        raise CheckpointError(
            f"{code}, code of its authors' own, which is not run here; look whether it lets tokens see those after "
            "them, and say so: --json_model_override_args '{\"is_causal\": false}' where it does, true where not"
        )
    return True if said is None else bool(said)


def layer_types(hf: Mapping[str, Any], otherwise: Sequence[str]) -> Sequence[str]:
    """The kind of each layer's attention; `otherwise` where config.json does not list them."""
    kinds = hf.get("layer_types") or otherwise
    if len(kinds) != len(otherwise) or not {*kinds} <= {FULL, SLIDING}:
        raise CheckpointError(f"config.json: layer_types {kinds}; {len(otherwise)} of {FULL}, {SLIDING} are needed")
    return kinds


def window(size: int, causal: bool) -> int:
    """`sliding_window` of config.json as `Ops.attention` counts it."""
    # NOTE: in transformers a window that looks back holds `size` tokens, one that looks both ways reaches `size` far.
    return size if causal else size + 1
