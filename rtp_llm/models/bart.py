"""BART (Lewis et al. 2020): post-norm encoder and decoder layers; the decoder reads the same text one token later.

Equals transformers' BartModel without decoder_input_ids, as its classifiers have it (bart-large-mnli).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from rtp_llm.checkpoint import Parameter, TensorSource, Weights, bind, canonical_names
from rtp_llm.core import Batch, FloatArray, Int32Array
from rtp_llm.errors import CheckpointError
from rtp_llm.models import OnKeys, OnLayer, matrix_sources
from rtp_llm.models.bert import Bert, BertConfig, EncoderLayer, LayerNames, layer_parameters, layer_parts
from rtp_llm.ops import Norm, Ops, Tensor, Weight, layer_norm

# BERT's key of config.json -> BART's.
_KEYS = {
    "hidden_size": "d_model", "num_hidden_layers": "encoder_layers", "num_attention_heads": "encoder_attention_heads",
    "intermediate_size": "encoder_ffn_dim", "hidden_act": "activation_function",
}  # fmt: skip
_DECODER_KEYS = ("decoder_layers", "decoder_attention_heads", "decoder_ffn_dim")
# Rows of the tables of positions that stand before that of position 0.
_OFFSET = 2
_START = 2
_EPS = 1e-5
_SELF = {"qkv": tuple(f"self_attn.{part}_proj" for part in "qkv"), "out": ("self_attn.out_proj",)}
_MLP = {"up": ("fc1",), "down": ("fc2",)}
_NORMS = {"attention_norm": "self_attn_layer_norm", "mlp_norm": "final_layer_norm"}
_ENCODER = LayerNames("encoder.layers.{}.", {**_SELF, **_MLP}, _NORMS)
_DECODER = LayerNames(
    "decoder.layers.{}.",
    {
        **_SELF,
        "cross_q": ("encoder_attn.q_proj",),
        "cross_kv": ("encoder_attn.k_proj", "encoder_attn.v_proj"),
        "cross_out": ("encoder_attn.out_proj",),
        **_MLP,
    },
    {**_NORMS, "cross_norm": "encoder_attn_layer_norm"},
)
# The table of words has three names, of which a file may have any; each part's own comes first.
_SHARED = "shared.weight"
_WORDS = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")


@dataclass(frozen=True, kw_only=True)
class BartConfig(BertConfig):
    """The keys of config.json that matter; those that BERT has too, by its names and of the encoder.

    word_scale              of the rows of the tables of words
    decoder_start_token_id  what the decoder reads before a text
    """

    decoder_layers: int
    decoder_attention_heads: int
    decoder_ffn_dim: int
    word_scale: float
    decoder_start_token_id: int

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "BartConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        fixed = {"is_decoder": False, "type_vocab_size": 0, "layer_norm_eps": _EPS}
        own = {"max_position_embeddings": 1024, "activation_function": "gelu", **hf, **fixed}
        base = BertConfig.from_hf(own, names or _KEYS)
        missing = next((key for key in _DECODER_KEYS if hf.get(key) is None), None)
        if missing is not None:
            raise CheckpointError(f"config.json: {missing} is missing")
        heads, start = hf["decoder_attention_heads"], hf.get("decoder_start_token_id")
        start = _START if start is None else start
        if base.hidden_size % heads:
            raise CheckpointError(
                f"config.json: d_model {base.hidden_size} is not a multiple of decoder_attention_heads {heads}"
            )
        if start >= base.vocab_size:
            raise CheckpointError(f"config.json: decoder_start_token_id {start} of {base.vocab_size} tokens")
        return cls(
            **asdict(base),
            **{key: hf[key] for key in _DECODER_KEYS},
            word_scale=base.hidden_size**0.5 if hf.get("scale_embedding") else 1.0,
            decoder_start_token_id=start,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderLayer(EncoderLayer):
    """One layer's weights; the `cross_` ones see what the encoder gives."""

    cross_q: Weight
    cross_q_bias: Tensor
    cross_kv: Weight
    cross_kv_bias: Tensor
    cross_out: Weight
    cross_out_bias: Tensor
    cross_norm: Norm


class Bart(Bert):
    """Encoder and decoder, up to the decoder's last hidden states. `layers` are those of both, the encoder's first."""

    config: BartConfig
    takes_adapters = False
    gpu_dtype = "bf16"  # transformers clamps what overflows fp16 in its encoder
    prefix = "model."
    names = _ENCODER
    ignored = (
        r"^classification_head\.", r"^qa_outputs\.", r"^lm_head\.", r"^final_logits_bias$", r"^(en|de)coder\.version$",
        *(rf"^{name}$" for name in (_SHARED, *_WORDS)),
    )  # fmt: skip

    def __init__(self, config: BartConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(config, weights, ops)
        if config.word_scale != 1.0:
            self.word = self._scaled(weights["word"], ops)
        is_shared = weights.sources("word") == weights.sources("decoder_word")
        is_shared = is_shared or np.array_equal(weights["word"], weights["decoder_word"])
        self.decoder_word = self.word if is_shared else self._scaled(weights["decoder_word"], ops)
        self.decoder_position = ops.table(weights["decoder_position"])
        self.decoder_norm = layer_norm(ops, weights, "decoder_norm", _EPS)
        self.num_encoded, matrices = len(self.layers), tuple(_DECODER.linears)
        for i in range(self.num_encoded, self.num_encoded + config.decoder_layers):
            parts = layer_parts(weights, f"layers.{i}.", _EPS, ops, matrices, tuple(_DECODER.norms))
            self.layers.append(DecoderLayer(**parts))
        self.matrices = matrix_sources(weights, len(self.layers), matrices, ".weight")

    def _scaled(self, words: FloatArray, ops: Ops) -> Tensor:
        return ops.table(words * np.float32(self.config.word_scale))

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> BartConfig:
        """What config.json says; CheckpointError as `BartConfig.from_hf`."""
        return BartConfig.from_hf(hf)

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> "Bart":
        """Strictly from the checkpoint's tensors; the tables of words by whichever names are there."""
        config = cls.read_config(hf)
        found, needed = canonical_names(source, (cls.prefix,), ()), cls.parameters(config)
        for ours, own in (("word", _WORDS[0]), ("decoder_word", _WORDS[1])):
            name = next((name for name in (own, _SHARED, *_WORDS) if name in found), _SHARED)
            needed[ours] = replace(needed[ours], sources=(name,))
        return cls(config, bind(source, needed, prefixes=(cls.prefix,), ignore=cls.ignored), ops)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of the encoder, and those of the decoder, whose layers are numbered on."""
        assert isinstance(config, BartConfig)
        needed, hidden = super().parameters(config), config.hidden_size
        words, places = (config.vocab_size, hidden), (config.max_position_embeddings + _OFFSET, hidden)
        for ours, part in (("", "encoder"), ("decoder_", "decoder")):
            needed[f"{ours}word"] = Parameter((_SHARED,), words)
            needed[f"{ours}position"] = Parameter((f"{part}.embed_positions.weight",), places)
            for kind in ("weight", "bias"):
                norm = "decoder_norm" if ours else "embedding_norm"
                needed[f"{norm}.{kind}"] = Parameter((f"{part}.layernorm_embedding.{kind}",), (hidden,))
        square, wide = (hidden, hidden), config.decoder_ffn_dim
        shapes = {"qkv": (3 * hidden, hidden), "cross_kv": (2 * hidden, hidden), "up": (wide, hidden)}
        shapes |= {"out": square, "cross_q": square, "cross_out": square, "down": (hidden, wide)}
        for i in range(config.decoder_layers):
            ours, theirs = f"layers.{config.num_hidden_layers + i}.", _DECODER.prefix.format(i)
            needed |= layer_parameters(ours, theirs, _DECODER, shapes)
        return needed

    def prepare(self, batch: Batch) -> Batch:
        """With the rows of positions, and what the decoder reads, the text one token later, in the place of types.

        Source: transformers, shift_tokens_right.
        """
        shifted = np.roll(batch.input_ids, 1)
        shifted[batch.cu_seqlens[:-1]] = self.config.decoder_start_token_id
        return replace(batch, position_ids=batch.position_ids + np.int32(_OFFSET), token_type_ids=shifted)

    def __call__(
        self, ops: Ops, batch: Batch, on_layer: OnLayer | None = None, on_keys: OnKeys | None = None
    ) -> Tensor:
        """Packed batch -> hidden_states [T, hidden_size], or of the wanted rows; `on_keys` is not called.

        `on_layer` gets what goes into the encoder's layers, then what goes into the decoder's.
        """
        encoded, hidden_states = self._embed(ops, batch), None
        for number, layer in enumerate(self.layers):
            if number == self.num_encoded:
                lookups = [(self.decoder_word, batch.token_type_ids), (self.decoder_position, batch.position_ids)]
                hidden_states = ops.embed(lookups, self.decoder_norm)
            if on_layer is not None:
                on_layer(number, encoded if hidden_states is None else hidden_states)
            if hidden_states is None:
                encoded = self._run_layer(ops, layer, encoded, batch, None)
            else:
                wanted = batch.wanted if number == len(self.layers) - 1 else None
                hidden_states = self._decode(ops, layer, hidden_states, encoded, batch, wanted)
        return hidden_states

    def _decode(
        self, ops: Ops, layer: Any, hidden_states: Tensor, encoded: Tensor, batch: Batch, wanted: Int32Array | None
    ) -> Tensor:
        """A layer of the decoder: [T, hidden_size] of it and of the encoder -> [T, hidden_size], or the wanted rows."""
        num_heads = self.config.decoder_attention_heads
        size = self.config.hidden_size // num_heads
        heads: dict[str, Any] = {"num_heads": num_heads, "num_kv_heads": num_heads, "head_dim": size}
        heads["scale"] = size**-0.5
        context = ops.attention(ops.linear(hidden_states, layer.qkv, layer.qkv_bias), batch, **heads, causal=True)
        context = ops.linear(context, layer.out, layer.out_bias, residual=hidden_states)
        hidden_states = ops.norm(context, layer.attention_norm)
        # Both read as many tokens: each has the decoder's query and the encoder's key and value.
        queries = ops.linear(hidden_states, layer.cross_q, layer.cross_q_bias)
        keys_values = ops.linear(encoded, layer.cross_kv, layer.cross_kv_bias)
        context = ops.attention(ops.concat([queries, keys_values]), batch, **heads, rows=wanted)
        hidden_states = hidden_states if wanted is None else ops.rows(hidden_states, wanted)
        context = ops.linear(context, layer.cross_out, layer.cross_out_bias, residual=hidden_states)
        attended = ops.norm(context, layer.cross_norm)
        wide = ops.linear(attended, layer.up, layer.up_bias, activation=self.config.activation)
        return ops.norm(ops.linear(wide, layer.down, layer.down_bias, residual=attended), layer.mlp_norm)
