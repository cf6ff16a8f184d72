"""The whole of a verification: ours, then theirs, then what lies between."""

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

from rtp_llm.checkpoint import resolved
from rtp_llm.config import EngineConfig
from rtp_llm.config_files import stored_quantization
from rtp_llm.core import ModelInfo, TaskType
from rtp_llm.engine.loading import load_engine
from rtp_llm.model_config import ModelConfig, read_model_config
from rtp_llm.verify.difference import Difference, difference
from rtp_llm.verify.ours import Ours, answer_all
from rtp_llm.verify.outcome import Answer, Check, Report, Row, Sample, Verdict
from rtp_llm.verify.overlay import overlaid
from rtp_llm.verify.published import check_published, find_published
from rtp_llm.verify.references import Original, Plan, Reference, make_plans
from rtp_llm.verify.samples import default_samples, own_samples, with_adapters


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What a caller may choose.

    reference    the checkpoint that the authors' code reads, where that is another; empty: the same
    lines        texts instead of the default ones
    bound        largest difference, relative where numbers are above 1
    on_progress  called with the answers that are done, ours and theirs, and with how many there will be
    """

    reference: str = ""
    lines: Sequence[str] = ()
    bound: float = 1e-5
    on_progress: Callable[[int, int], None] = lambda done, total: None


class _Progress:
    """Counts answers: one of ours and one of theirs for each sample."""

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self.on_progress = on_progress
        self.done = 0
        self.total = 0

    def tick(self) -> None:
        """One more is done."""
        self.done += 1
        self.on_progress(self.done, self.total)


# What answers in fewer bits may differ by, and the least cosine of vectors: of 8 bits, and of an --act_type.
_QUANTIZED = (0.05, 0.99)
_LOOSER = {"bf16": (0.02, 0.999), "fp16": (0.005, 0.9999)}


@dataclass(frozen=True, slots=True)
class _Bounds:
    """What a difference may be: the caller's bound; of a model in less than fp32 its own, and a cosine."""

    bound: float
    least_cosine: float

    @classmethod
    def of(cls, bound: float, dtype: str) -> "_Bounds":
        own, least_cosine = _LOOSER.get(dtype, (0.0, -1.0) if dtype == "fp32" else _QUANTIZED)
        return cls(max(bound, own), least_cosine)

    def allowed(self, difference: Difference) -> float:
        return self.bound * difference.scale


@dataclass(frozen=True, slots=True)
class _Work:
    """One plan's samples with our answers."""

    plan: Plan
    samples: list[Sample]
    ours: Ours


def verify(config: EngineConfig, options: Options) -> Report:
    """Compare a checkpoint; ConfigError, CheckpointError or EngineFailure where ours cannot be loaded."""
    with ExitStack() as stack:
        model_config = read_model_config(stack.enter_context(resolved(config)), config)
        original = _original_config(config, model_config, options, stack)
        return _verify(config, model_config, original, options)


def _verify(config: EngineConfig, model_config: ModelConfig, original: ModelConfig, options: Options) -> Report:
    progress = _Progress(options.on_progress)
    info, works, published = _ask_ours(config, model_config, original, options, progress)
    # The engine's weights are gone before the first reference is loaded.
    gc.collect()
    rows: list[Row] = []
    compared_with: list[str] = []
    not_compared = _without_reference(info, works)
    with overlaid(original, config) as folder:
        source = Original(
            folder=folder,
            model_config=original,
            config=config,
            max_seq_len=info.max_seq_len,
            trust_remote_code=config.trust_remote_code,
        )
        bounds = _Bounds.of(options.bound, info.dtype)
        for work in works:
            found, said = _compare(work, source, bounds, progress)
            rows += found
            (compared_with if found else not_compared).append(said)
    return Report(
        model=_described(info),
        tasks=info.tasks,
        rows=tuple(rows),
        checks=tuple(check for work in works for check in work.ours.checks),
        published=tuple(published),
        compared_with=tuple(compared_with),
        not_compared=tuple(not_compared),
    )


def _original_config(
    config: EngineConfig, model_config: ModelConfig, options: Options, stack: ExitStack
) -> ModelConfig:
    """What the authors' code reads: the same checkpoint, or another that serves the same tasks."""
    if not options.reference:
        return model_config
    named = replace(config, checkpoint_path=options.reference)
    return replace(read_model_config(stack.enter_context(resolved(named)), named), tasks=model_config.tasks)


def _prompts(model_config: ModelConfig) -> list[str]:
    """Names under which texts are read in another way than under none."""
    if model_config.late is not None:
        return ["query"]
    routes = model_config.router.names if model_config.router else ()
    named = [name for name, text in model_config.prompts.items() if text]
    return list(dict.fromkeys([*(name for name in routes if name is not None), *named]))


def _ask_ours(
    config: EngineConfig, model_config: ModelConfig, original: ModelConfig, options: Options, progress: _Progress
) -> tuple[ModelInfo, list[_Work], list[Check]]:
    """Our answers to everything, from an engine that is closed when this returns."""
    engine = load_engine(config, config.checkpoint_name)
    try:
        info = engine.info()
        prompts, has_sides = _prompts(model_config), model_config.late is not None or model_config.router is not None
        asked = []
        for plan in make_plans(original, info.tasks):
            task = plan.tasks[0]
            named = prompts if task is TaskType.DENSE or has_sides else []
            default = default_samples(task, info.max_seq_len, named)
            samples = own_samples(task, options.lines) if options.lines else default
            asked.append((plan, with_adapters(samples, info)))
        progress.total = 2 * sum(len(samples) for _, samples in asked)
        works = [
            _Work(plan, samples, answer_all(engine, plan.tasks, samples, progress.tick)) for plan, samples in asked
        ]
        # Published numbers are of the checkpoint as its authors made it.
        values = find_published(config, model_config) if info.dtype == "fp32" else []
        return info, works, check_published(engine, values)
    finally:
        engine.close()


def _without_reference(info: ModelInfo, works: Sequence[_Work]) -> list[str]:
    planned = {task for work in works for task in work.plan.tasks}
    # What vectors were made of.
    if planned & {TaskType.DENSE, TaskType.COLBERT}:
        planned.add(TaskType.TOKENS)
    return [f"{task.value}: no other implementation is known" for task in info.tasks if task not in planned]


def _described(info: ModelInfo) -> str:
    tasks = "+".join(task.value for task in info.tasks)
    return (
        f"{info.name}: {info.model_type}, {tasks}, {info.backend} ops ({info.instruction_set}), "
        f"inputs up to {info.max_seq_len} tokens"
    )


def _compare(work: _Work, source: Original, bounds: "_Bounds", progress: _Progress) -> tuple[list[Row], str]:
    """The rows of one plan, and what they were compared with; or none, and why."""
    plan: Plan | None = work.plan
    reasons = []
    names = "+".join(task.value for task in work.plan.tasks)
    if stored_quantization(source.model_config.hf) != "none":
        return [], f"{names}: the checkpoint is quantised; --reference names the one that it was made from"
    while plan is not None:
        if plan.missing is not None:
            reasons.append(f"{plan.missing} is not installed: pip install {plan.to_install}")
        else:
            try:
                with _quiet():
                    reference = plan.load(source)
                    return _rows(work, reference, bounds, progress), f"{names}: {plan.description}"
            except Exception as error:  # the border: somebody else's code may fail in any way
                reasons.append(f"{plan.title} cannot load it: {_first_line(error)}")
        plan = plan.otherwise
    return [], f"{names}: {'; '.join(reasons)}"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the libraries' warnings and bars, which would stand between the lines of a table."""
    from transformers.utils import logging as module

    logging: Any = module
    verbosity = logging.get_verbosity()
    had_bar = logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bar:
            logging.enable_progress_bar()


def _rows(work: _Work, reference: Reference, bounds: "_Bounds", progress: _Progress) -> list[Row]:
    """In the samples' order; asked the shortest first, since a dynamic rope remembers the longest that it has seen."""
    pairs = list(enumerate(zip(work.samples, work.ours.answers, strict=True)))
    rows: dict[int, list[Row]] = {}
    for place, (sample, ours) in sorted(pairs, key=lambda entry: len(entry[1][1].input_ids)):
        theirs = Answer() if ours.failure else _theirs(reference, sample)
        rows[place] = [_row(task, sample, ours, theirs, bounds) for task in work.plan.tasks]
        progress.tick()
    return [row for place in sorted(rows) for row in rows[place]]


def _theirs(reference: Reference, sample: Sample) -> Answer:
    try:
        return reference.answer(sample)
    except Exception as error:  # the border: somebody else's code may fail in any way
        return Answer(failure=f"theirs failed: {_first_line(error)}")


def _row(task: TaskType, sample: Sample, ours: Answer, theirs: Answer, bounds: "_Bounds") -> Row:
    num_tokens = len(ours.input_ids)
    failure = ours.failure or theirs.failure
    row = Row(task=task, sample=sample, num_tokens=num_tokens, verdict=Verdict.NOT_COMPARED, note=failure)
    if failure:
        return row
    if list(ours.input_ids) != list(theirs.input_ids):
        return replace(row, verdict=Verdict.DIFFERS, max_abs=float("inf"), note=_tokens_note(ours, theirs))
    left, right = ours.values[task], theirs.values[task]
    try:
        worst = sum((difference(left[name], right[name]) for name in right), start=Difference(0.0, 1.0, 1.0))
    except ValueError as error:
        return replace(row, verdict=Verdict.DIFFERS, max_abs=float("inf"), note=str(error))
    is_score = task is TaskType.RERANK
    allowed = bounds.allowed(worst)
    is_equal = worst.max_abs <= allowed and (is_score or worst.cosine >= bounds.least_cosine)
    return replace(
        row,
        verdict=Verdict.EQUAL if is_equal else Verdict.DIFFERS,
        cosine=None if is_score else worst.cosine,
        max_abs=worst.max_abs,
        bound=allowed,
        scores=(float(left["score"][0]), float(right["score"][0])) if is_score else None,
    )


def _tokens_note(ours: Answer, theirs: Answer) -> str:
    left, right = list(ours.input_ids), list(theirs.input_ids)
    shorter = min(len(left), len(right))
    place = next((i for i in range(shorter) if left[i] != right[i]), shorter)
    here, there = left[place : place + 3], right[place : place + 3]
    return f"tokens differ from place {place}: {here} here, {there} there; {len(left)} and {len(right)} in all"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]:.200}" if lines else type(error).__name__
