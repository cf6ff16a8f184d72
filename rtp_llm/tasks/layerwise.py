"""A language model with a reranker's head for each of its later layers, of which one is read.

Equals FlagEmbedding's LayerWiseLLMReranker with one cutoff layer: the last token's hidden state, after the final norm,
times that layer's head.
"""

from rtp_llm.checkpoint import Parameter, bind, open_tensors
from rtp_llm.errors import CheckpointError
from rtp_llm.tasks import TaskSource
from rtp_llm.tasks.head import Head, Linear

# Of the checkpoint that is published.
_ONLY = {"head_type": "simple", "head_multi": True}


def load_layerwise(source: TaskSource) -> Head:
    """The head of the model's last layer; CheckpointError where there is none."""
    config = source.model_config
    for key, served in _ONLY.items():
        if config.hf.get(key, served) != served:
            raise CheckpointError(f"config.json: {key} {config.hf[key]!r}; only {served!r} is supported")
    tensors = open_tensors(config.transformer_folder)
    name = f"lm_head.{source.num_layers - config.hf['start_layer']}.linear_head.weight"
    weights = bind(tensors, {"head": Parameter((name,), (1, source.hidden_size))}, ignore=("",))
    head = Head("lasttoken", None, Linear(source.ops.matrix(weights["head"]), None), num_labels=1)
    tensors.close()
    return head
