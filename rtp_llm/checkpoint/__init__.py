"""Checkpoints: find the folder, read its files as untrusted input, give fp32 arrays.

`resolved` turns a path or a hub id into a folder, `open_tensors` lists a folder's weights without reading them, `bind`
fits them to a model's declared parameters, strictly. Nothing in a checkpoint is executed and no name in its files
leads out of its folder; whatever is missing, malformed or unsafe is a CheckpointError that names the file.
"""

from rtp_llm.checkpoint.adapter_folders import AdapterFolders, adapter_summary, open_tensors
from rtp_llm.checkpoint.adapters import AdaptedSource, AdapterSource, LowRank, has_adapters
from rtp_llm.checkpoint.base_model import OWN_CONFIG, resolved
from rtp_llm.checkpoint.folder import find, inside, read_json, read_json_list
from rtp_llm.checkpoint.hub import names_of
from rtp_llm.checkpoint.lora import CONFIG as ADAPTER_CONFIG
from rtp_llm.checkpoint.lora_modules import lora_modules
from rtp_llm.checkpoint.shards import open_file
from rtp_llm.checkpoint.tensors import TensorInfo, TensorSource
from rtp_llm.checkpoint.token_table import read_token_table
from rtp_llm.checkpoint.weights import SCALE, Parameter, Weights, bind, canonical_names, check_finite, check_floats

__all__ = [
    "ADAPTER_CONFIG",
    "OWN_CONFIG",
    "SCALE",
    "AdaptedSource",
    "AdapterFolders",
    "AdapterSource",
    "LowRank",
    "Parameter",
    "TensorInfo",
    "TensorSource",
    "Weights",
    "adapter_summary",
    "bind",
    "canonical_names",
    "check_finite",
    "check_floats",
    "find",
    "has_adapters",
    "inside",
    "lora_modules",
    "names_of",
    "open_file",
    "open_tensors",
    "read_json",
    "read_json_list",
    "read_token_table",
    "resolved",
]
