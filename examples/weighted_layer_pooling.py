"""The weighted mean of several layers, then the mean over tokens, as sentence-transformers' WeightedLayerPooling.

rtp-llm serve CHECKPOINT --custom_module examples/weighted_layer_pooling.py:WeightedLayerPooling
curl http://localhost:8088/v1/embeddings -d '{"input": ["a text", "another"]}'
"""

from typing import Any

import numpy as np

from rtp_llm.custom import CustomRequest, CustomSource


class WeightedLayerPooling:
    """The layers from `layer_start` on, by the weights in the checkpoint's layer_weights.npy; without it, equally."""

    layer_start = 4

    def __init__(self, source: CustomSource) -> None:
        self.hidden_layers = range(self.layer_start, source.num_layers + 1)
        self.dimension = source.hidden_size
        file = source.folder / "layer_weights.npy"
        self.weights = np.load(file) if file.exists() else np.ones(len(self.hidden_layers), np.float32)
        if self.weights.shape != (len(self.hidden_layers),):
            raise ValueError(f"{file} has {self.weights.shape}, {len(self.hidden_layers)} weights are needed")

    def __call__(self, request: CustomRequest) -> list[Any]:
        weights = self.weights / self.weights.sum()
        # [layers] and [layers, tokens, H] -> [tokens, H] -> [H]
        return [np.tensordot(weights, layers, axes=1).mean(axis=0) for layers in request.hidden_states]
