"""Jina Embeddings v3 (Sturua et al. 2024): XLM-RoBERTa with rotary positions, and adapters for five tasks.

Equals transformers' JinaEmbeddingsV3Model, and the XLMRobertaLoRA of its authors' own code
(xlm-roberta-flash-implementation), whose config.json has no model_type and position_embedding_type "rotary". Of that
checkpoint's adapters each sequence chooses one, or none, as there without a task; with the key `lora_task` over
config.json that one is added to the weights, and there are no others.
"""

from collections.abc import Mapping
from typing import Any

from rtp_llm.checkpoint import AdaptedSource, TensorSource, has_adapters
from rtp_llm.config_files import activation
from rtp_llm.errors import CheckpointError
from rtp_llm.models.adapted import adapt
from rtp_llm.models.rope import Rope
from rtp_llm.models.rotary_bert import RotaryBert, RotaryBertConfig
from rtp_llm.models.sizes import read_sizes
from rtp_llm.ops import Ops

_THETA, _POSITIONS = 20_000.0, 8194


class JinaV3(RotaryBert):
    """Biases everywhere, an MLP without a gate."""

    prefixes = ("roberta.",)
    renames = (
        (r"^emb_ln\.", "embeddings.LayerNorm."),
        (r"^encoder\.layers\.", "layers."),
        (r"\.mixer\.Wqkv\.", ".self_attn.qkv_proj."),
        (r"\.mixer\.out_proj\.", ".self_attn.o_proj."),
        (r"\.mlp\.fc1\.", ".mlp.up_proj."),
        (r"\.mlp\.fc2\.", ".mlp.down_proj."),
        (r"\.norm1\.", ".post_attention_layernorm."),
        (r"\.norm2\.", ".post_mlp_layernorm."),
    )

    @classmethod
    def load(cls, hf: Mapping[str, Any], source: TensorSource, ops: Ops) -> RotaryBert:
        """As RotaryBert, the adapter of `lora_task` merged into the weights, or all beside them."""
        tasks, task = hf.get("lora_adaptations") or [], hf.get("lora_task")
        if task is not None and task not in tasks:
            known = ", ".join(tasks) or "none: it has no lora_adaptations"
            raise CheckpointError(f"config.json: lora_task {task!r} is not one of the checkpoint's adapters: {known}")
        if not has_adapters(source):
            if task is not None:
                raise CheckpointError(f"{source.path} has no adapters, but lora_task is {task!r}")
            return super().load(hf, source, ops)
        scaling = hf.get("lora_alpha", 1) / hf.get("lora_rank", 4)
        adapted = AdaptedSource(source, None if task is None else tasks.index(task), scaling)
        model = super().load(hf, adapted, ops)
        if task is None:
            adapt(model, adapted, tasks, ops)
        else:
            model.merged_adapter = task
        return model

    @classmethod
    def read_config(cls, hf: Mapping[str, Any]) -> RotaryBertConfig:
        """config.json; CheckpointError where a key is missing or asks for what is not supported."""
        if hf.get("position_embedding_type", "rotary") not in ("rotary", "absolute"):
            raise CheckpointError(
                f"config.json: position_embedding_type {hf['position_embedding_type']!r}; only 'rotary' is supported"
            )
        if hf.get("is_decoder"):
            raise CheckpointError("config.json: is_decoder true; only false is supported")
        sizes, theta = read_sizes(hf), hf.get("rotary_emb_base") or hf.get("rope_theta") or _THETA
        rope = Rope.from_hf(
            {**hf, "rope_theta": theta},
            sizes["hidden_size"] // sizes["num_attention_heads"],
            hf.get("max_position_embeddings") or _POSITIONS,
        )
        return RotaryBertConfig(
            **sizes,
            type_vocab_size=1 if hf.get("type_vocab_size") is None else hf["type_vocab_size"],
            layer_norm_eps=hf.get("layer_norm_eps", 1e-5),
            activation=activation(hf, "hidden_act"),
            max_positions=rope.max_positions,
            rope=rope,
            gated=False,
            mixture=None,
            biases=frozenset(("qkv", "out", "up", "down")),
        )
