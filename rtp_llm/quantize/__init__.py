"""`rtp-llm quantize`: a checkpoint whose linear layers are in 8 bits, but for those that must stay in fp32.

The format is compressed-tensors' int-quantized: int8 weights, a scale in fp32 for each row, activations quantised when
they are computed. Loaded, it answers with the same bits as its original under `--quantization int8` would with the same
layers in fp32; what the numbers mean is in `rtp_llm/ops/int8.py`.
"""

from rtp_llm.quantize.quantizing import Options, Report, quantize

__all__ = ["Options", "Report", "quantize"]
