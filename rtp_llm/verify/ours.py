"""Our own answers, and what they must fulfil whatever anybody else computes."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np

from rtp_llm.core import Params, Request, Response, SparseVector, TaskType
from rtp_llm.engine.engine import Engine
from rtp_llm.errors import InvalidRequest, RtpError
from rtp_llm.verify.outcome import Answer, Check, Sample, Value, Verdict, places

# What a default answer is called, and what the same without the checkpoint's activation is.
_NAMES = {
    TaskType.RERANK: ("score", "logit"),
    TaskType.CLASSIFY: ("scores", "logits"),
    TaskType.TOKEN_CLASSIFY: ("scores", "logits"),
}


@dataclass(frozen=True, slots=True)
class Ours:
    """An answer for each sample, in order, and the checks."""

    answers: tuple[Answer, ...]
    checks: tuple[Check, ...]


def answer_all(
    engine: Engine, tasks: tuple[TaskType, ...], samples: Sequence[Sample], on_answer: Callable[[], None]
) -> Ours:
    """Each sample alone; then, of those that could be answered, all together and in reverse."""
    alone = []
    for sample in samples:
        alone.append(_alone(engine, tasks, sample))
        on_answer()
    broken = [answer.failure for answer in alone if answer.failure and not answer.failure.startswith(_REFUSED)]
    good = [place for place, answer in enumerate(alone) if not answer.failure]
    kept = [samples[place] for place in good]
    names = "+".join(task.value for task in tasks)
    checks = [
        Check(
            f"{names}: every answer is finite",
            Verdict.DIFFERS if broken else Verdict.EQUAL,
            broken[0] if broken else f"{len(good)} inputs",
        )
    ]
    if kept:
        together = _answers(engine, tasks, kept)
        backwards = _answers(engine, tasks, kept[::-1])[::-1]
        checks.append(_same_bits(names, [alone[place] for place in good], together, backwards))
    return Ours(tuple(alone), tuple(checks))


_REFUSED = "refused: "


def _alone(engine: Engine, tasks: tuple[TaskType, ...], sample: Sample) -> Answer:
    try:
        return _answers(engine, tasks, [sample])[0]
    except InvalidRequest as error:
        return Answer(failure=_REFUSED + error.message)
    except RtpError as error:
        return Answer(failure=error.message)


def _answers(engine: Engine, tasks: tuple[TaskType, ...], samples: Sequence[Sample]) -> list[Answer]:
    """The samples in one request for each prompt and adapter, and one more where scores have an activation."""
    asked = [(Params(prompt_name=sample.prompt_name, adapter=sample.adapter), sample.input) for sample in samples]
    return [
        answer
        for params, group in groupby(asked, key=lambda entry: entry[0])
        for answer in _request(engine, tasks, [value for _, value in group], params)
    ]


def _request(engine: Engine, tasks: tuple[TaskType, ...], inputs: list[Any], plain: Params) -> list[Answer]:
    def run(params: Params) -> Response:
        return engine.run_sync(Request(inputs=inputs, tasks=tasks, params=params))

    response = run(plain)
    raw = run(replace(plain, activation="none")) if tasks[0] in _NAMES else None
    values = [{task: _named(task, response, raw, place) for task in tasks} for place in range(len(inputs))]
    if tasks == (TaskType.TOKEN_CLASSIFY,):
        found = run(replace(plain, aggregation_strategy="simple")).outputs[tasks[0]]
        for own, entities in zip(values, found, strict=True):
            own[tasks[0]]["places"] = places((entity.start, entity.end) for entity in entities)
    return [Answer(own, ids.tolist()) for own, ids in zip(values, response.input_ids, strict=True)]


def _named(task: TaskType, response: Response, raw: Response | None, place: int) -> dict[str, Value]:
    if raw is None:
        return {task.value: _value(response.outputs[task][place])}
    default, without = _NAMES[task]
    return {default: _value(response.outputs[task][place]), without: _value(raw.outputs[task][place])}


def _value(output: Any) -> Value:
    if isinstance(output, SparseVector):
        return dict(zip(output.indices.tolist(), output.values.tolist(), strict=True))
    return np.atleast_1d(np.asarray(output, np.float32))


def _same_bits(names: str, alone: list[Answer], *others: list[Answer]) -> Check:
    wrong = {
        place for other in others for place, answer in enumerate(other) if not _is_same_answer(alone[place], answer)
    }
    return Check(
        f"{names}: alone = in a batch = in reverse order, bit for bit",
        Verdict.DIFFERS if wrong else Verdict.EQUAL,
        f"{len(wrong)} of {len(alone)} inputs differ" if wrong else f"{len(alone)} inputs",
    )


def _is_same_answer(left: Answer, right: Answer) -> bool:
    return left.input_ids == right.input_ids and all(
        _is_same(a, b) for a, b in zip(_flat(left.values), _flat(right.values), strict=True)
    )


def _flat(values: Mapping[TaskType, Mapping[str, Value]]) -> Iterator[Value]:
    named: Iterable[Mapping[str, Value]] = values.values()
    return (value for entry in named for value in entry.values())


def _is_same(left: Value, right: Value) -> bool:
    if isinstance(left, Mapping) or isinstance(right, Mapping):
        return left == right
    return np.array_equal(left, right)
