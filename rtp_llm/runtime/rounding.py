"""What --act_type, --weight_dtype and --quantization mean for the layers of a model on a CPU."""

import logging
from typing import NamedTuple, cast

from rtp_llm.config import EngineConfig
from rtp_llm.ops import Quantization
from rtp_llm.ops.native_library import FEWER_PARTS
from rtp_llm.ops.weight_only import BITS, PARTS

logger = logging.getLogger(__name__)

_ASKED: dict[str, Quantization] = {"fp16": "fp16_products", "bf16": "bf16_products"}


class Rounding(NamedTuple):
    """How linear layers keep their numbers and multiply them.

    parts  bf16 parts of each number that are multiplied where layers are kept in 8 or 4 bits: in attention, and by
           weights that are widened; otherwise the quantization says it
    """

    quantization: Quantization
    parts: int = 3


def rounding(config: EngineConfig, instruction_set: str, is_stored: bool = False) -> Rounding:
    """Of a CPU; `is_stored`: the checkpoint has its layers in 8 bits.

    What such a checkpoint keeps in fp32 beside them is meant to stay so.
    """
    kept: Quantization = "bf16" if config.weight_dtype == "bf16" else "none"
    products = _products(config.act_type, instruction_set)
    if is_stored or config.quantization != "none":
        parts = PARTS.get(products, 3)
        is_widened = not is_stored and config.quantization in BITS
        if is_stored and config.quantization not in ("none", "int8"):
            logger.warning(
                "quantization %s: the checkpoint has its layers in 8 bits, and so they stay", config.quantization
            )
        if parts < 3:
            what = "attention and products with widened weights" if is_widened else "attention; layers stay in 8 bits"
            logger.info("act_type %s: it is of %s", config.act_type, what)
        return Rounding(kept if is_stored else cast(Quantization, config.quantization), parts)
    if products == "bf16_products":
        logger.info(
            "act_type bf16: numbers that are multiplied are rounded, weights and tables; sums and all else are fp32"
        )
    elif products == "fp16_products" and kept == "bf16":
        logger.info("act_type fp16: beside weight_dtype bf16 linear layers multiply in fp32, which is more exact")
        return Rounding(kept)
    elif products == "fp16_products":
        logger.info("act_type fp16: AMX tiles multiply in 15 bits (fp16 has 11); sums and all else are fp32")
    return Rounding(kept if products == "none" else products)


def _products(act_type: str, instruction_set: str) -> Quantization:
    """Those that an act_type asks for, "none" where there are none: fp32's."""
    asked = _ASKED.get(act_type, "none")
    if asked == "none":
        return asked
    if asked in FEWER_PARTS.get(instruction_set, ()):
        return asked
    what = "numpy computes" if instruction_set == "numpy" else f"the {instruction_set} kernels compute"
    logger.info("act_type %s: %s in fp32, which is at least as exact", act_type, what)
    return "none"
