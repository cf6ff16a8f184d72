"""ALBERT (Lan et al. 2020): BERT whose layers share weights, above narrow tables that a linear layer widens.

Equals transformers' AlbertModel, but for groups of more than one layer.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from rtp_llm.checkpoint import Parameter, Weights
from rtp_llm.core import Batch
from rtp_llm.errors import CheckpointError
from rtp_llm.models.bert import IGNORED, Bert, BertConfig, LayerNames
from rtp_llm.ops import Ops, Tensor


@dataclass(frozen=True, kw_only=True)
class AlbertConfig(BertConfig):
    """The keys of config.json that matter; each of `num_hidden_groups` layers stands for a run of layers."""

    num_hidden_groups: int

    @property
    def groups(self) -> list[int]:
        """Of each layer the group that it has its weights from."""
        return [int(i / (self.num_hidden_layers / self.num_hidden_groups)) for i in range(self.num_hidden_layers)]

    @classmethod
    def from_hf(cls, hf: Mapping[str, Any], names: Mapping[str, str] | None = None) -> "AlbertConfig":
        """Read config.json; CheckpointError where a key is missing or asks for what is not supported."""
        if hf.get("inner_group_num") not in (None, 1):
            raise CheckpointError(f"config.json: inner_group_num {hf['inner_group_num']!r}; only 1 is supported")
        fixed = {"is_decoder": False, "hidden_act": hf.get("hidden_act") or "gelu_new"}
        base = BertConfig.from_hf({**hf, **fixed}, names)
        groups = hf.get("num_hidden_groups") or 1
        if groups > base.num_hidden_layers:
            raise CheckpointError(f"config.json: num_hidden_groups {groups} of {base.num_hidden_layers} layers")
        return cls(**{**asdict(base), "embedding_size": hf.get("embedding_size") or 128}, num_hidden_groups=groups)


class Albert(Bert):
    """The encoder up to its last hidden states."""

    takes_adapters = False  # its layers are one
    prefix = "albert."
    names = LayerNames(
        "encoder.albert_layer_groups.{}.albert_layers.0.",
        {
            "qkv": ("attention.query", "attention.key", "attention.value"),
            "out": ("attention.dense",),
            "up": ("ffn",),
            "down": ("ffn_output",),
        },
        {"attention_norm": "attention.LayerNorm", "mlp_norm": "full_layer_layer_norm"},
    )
    ignored = (*IGNORED, r"^predictions\.", r"^sop_classifier\.")

    def __init__(self, config: AlbertConfig, weights: Weights, ops: Ops) -> None:
        super().__init__(replace(config, num_hidden_layers=config.num_hidden_groups), weights, ops)
        self.config = config
        self.projection = ops.matrix(weights["projection.weight"]), ops.vector(weights["projection.bias"])
        own = self.matrices
        self.layers = [self.layers[group] for group in config.groups]
        self.matrices = {
            (i, name): names
            for i, group in enumerate(config.groups)
            for (layer, name), names in own.items()
            if layer == group
        }

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> AlbertConfig:
        """What config.json says; CheckpointError as `AlbertConfig.from_hf`."""
        return AlbertConfig.from_hf(hf)

    @classmethod
    def parameters(cls, config: BertConfig) -> dict[str, Parameter]:
        """Those of BERT, a layer for each group, and what widens the tables."""
        assert isinstance(config, AlbertConfig)
        needed = super().parameters(replace(config, num_hidden_layers=config.num_hidden_groups))
        shape = (config.hidden_size, config.embedding_size)
        for kind, size in (("weight", shape), ("bias", shape[:1])):
            needed[f"projection.{kind}"] = Parameter((f"encoder.embedding_hidden_mapping_in.{kind}",), size)
        return needed

    def _embed(self, ops: Ops, batch: Batch) -> Tensor:
        return ops.linear(super()._embed(ops, batch), *self.projection)
