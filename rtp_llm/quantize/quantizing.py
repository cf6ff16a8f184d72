"""From a checkpoint to a quantised one: load it twice, choose what stays in fp32, write, and say what was done."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rtp_llm.checkpoint import open_tensors, resolved
from rtp_llm.config import EngineConfig
from rtp_llm.config_files import stored_quantization
from rtp_llm.engine.encoders import lookup_tokenizers
from rtp_llm.engine.likeness import BARS, Likeness, items_of, pool_mode, texts
from rtp_llm.engine.loading import Reach, load_tokenizer, task_source
from rtp_llm.errors import ConfigError
from rtp_llm.model_config import ModelConfig, read_model_config
from rtp_llm.models import load_model
from rtp_llm.ops.native_library import INT8_IN_PAIRS
from rtp_llm.quantize.sensitivity import Choice, Matrix, Mixture, choose
from rtp_llm.quantize.writing import copy_files, whole_folder, write_config, write_weights
from rtp_llm.runtime import Runtime, load_runtime
from rtp_llm.tasks import load_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may choose.

    bars         cosines to fp32 that the rows of the texts must reach
    lines        texts to measure with; empty: the built-in ones
    on_progress  called with a step's name, what is done of it and of how much
    """

    bars: Likeness = BARS
    lines: Sequence[str] = ()
    on_progress: Callable[[str, int, int], None] = lambda step, done, total: None


@dataclass(frozen=True, slots=True)
class Report:
    """What was measured and written; bytes of the weights' files before and after."""

    choice: Choice
    matrices: Sequence[Matrix]
    num_texts: int
    bytes_before: int
    bytes_after: int


def quantize(config: EngineConfig, target: Path, options: Options) -> Report:
    """Write `target`, which is not there or empty; CheckpointError or ConfigError say what stands in the way.

    On the CPU, also where there is a GPU: it alone computes in these 8 bits.
    """
    _check(config, target)
    with resolved(config) as folder:
        return _from(folder, replace(config, device="cpu"), target, options)


def _from(folder: Path, config: EngineConfig, target: Path, options: Options) -> Report:
    model_config = read_model_config(folder, config)
    if stored_quantization(model_config.hf) != "none":
        raise ConfigError(f"{config.checkpoint_path} is quantised already", param="checkpoint_path")
    if model_config.is_static:
        raise ConfigError(f"{config.checkpoint_path} has no linear layers to quantise", param="checkpoint_path")
    with whole_folder(target):
        return _quantize(config, model_config, target, options)


def _quantize(config: EngineConfig, model_config: ModelConfig, target: Path, options: Options) -> Report:
    exact = load_runtime(replace(config, quantization="none", act_type="fp32"), model_config)
    _check_names(exact, model_config)
    mixture, num_texts = _mixture(config, model_config, exact, options.lines)
    choice = _choose(mixture, options)
    kept = {name for matrix in choice.kept for name in exact.model.matrices[matrix]}
    names = {name for matrix in mixture.matrices for name in exact.model.matrices[matrix]}
    fitting_pairs = exact.ops.instruction_set in INT8_IN_PAIRS  # what was measured is what is written
    folder = _write(model_config, target, names - kept, options, fitting_pairs)
    write_config(folder, sorted(name.removesuffix(".weight") for name in kept))
    return Report(
        choice=choice,
        matrices=mixture.matrices,
        num_texts=num_texts,
        bytes_before=_weight_bytes(model_config.transformer_folder),
        bytes_after=_weight_bytes(target / model_config.transformer_folder.relative_to(model_config.folder)),
    )


def _check(config: EngineConfig, target: Path) -> None:
    if config.backend in ("torch", "triton"):
        raise ConfigError(f"backend {config.backend} does not compute in 8 bits: leave it out", param="backend")
    if config.device not in ("auto", "cpu"):
        raise ConfigError(f"device {config.device} does not compute in 8 bits: leave it out", param="device")
    if target.exists() and not (target.is_dir() and not any(target.iterdir())):
        raise ConfigError(f"{target} exists already; name a folder that is not there or empty", param="out")


def _check_names(exact: Runtime, model_config: ModelConfig) -> None:
    """ConfigError where the model's weights are not those of the files, as with an adapter merged into them."""
    source = open_tensors(model_config.transformer_folder)
    names = {name for sources in exact.model.matrices.values() for name in sources}
    merged = sorted(names - set(source.tensors))
    source.close()
    if exact.model.adapters:
        raise ConfigError(
            f"{source.path} has adapters of which each request chooses: serve it with --quantization int8 instead",
            param="checkpoint_path",
        )
    if merged:
        raise ConfigError(
            f"{source.path} has adapters, so that {merged[0]} is not in it: serve it with --quantization int8 instead",
            param="checkpoint_path",
        )


def _mixture(
    config: EngineConfig, model_config: ModelConfig, exact: Runtime, lines: Sequence[str]
) -> tuple[Mixture, int]:
    model, ops = exact.model, exact.ops
    source = open_tensors(model_config.transformer_folder)
    quantized = load_model(exact.model_type, model_config.hf, source, ops.fork("int8"))
    source.close()
    tokenizer = load_tokenizer(config, model_config, Reach.of(model))
    tasks = load_tasks(task_source(config, model_config, exact, tokenizer, lookup_tokenizers(config, model_config)))
    items = items_of(tokenizer, lines or texts())
    ops.num_threads = exact.num_cores
    return Mixture(model, quantized, ops, items, pool_mode(tasks.values())), len(items)


def _choose(mixture: Mixture, options: Options) -> Choice:
    total = 1 + len(mixture.matrices) + max(1, len(mixture.matrices) - 1).bit_length()
    done = 0

    def on_measured() -> None:
        nonlocal done
        done += 1
        options.on_progress("measuring", done, total)

    return choose(mixture, options.bars, on_measured)


def _write(model_config: ModelConfig, target: Path, quantized: set[str], options: Options, fitting_pairs: bool) -> Path:
    """The checkpoint with its weights quantised -> the folder of its transformer."""
    source = open_tensors(model_config.transformer_folder)
    folder = copy_files(model_config.folder, model_config.transformer_folder, target)
    total = sum(info.num_elements for info in source.tensors.values())
    written = 0

    def on_written(num_bytes: int) -> None:
        nonlocal written
        written += num_bytes
        options.on_progress("writing", written, max(total, written))

    write_weights(source, quantized, folder / "model.safetensors", on_written, fitting_pairs)
    return folder


def _weight_bytes(folder: Path) -> int:
    files = {path.resolve() for pattern in ("*.safetensors", "pytorch_model*.bin") for path in folder.glob(pattern)}
    return sum(path.stat().st_size for path in files)
