"""Chat messages -> the text that the model was trained on: the checkpoint's own template, as transformers renders it.

A template is a program that comes with a checkpoint. It runs in jinja2's sandbox, which lets it reach values and no
more; what it may loop over and write is bounded.
"""

import copy
import json
import secrets
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rtp_llm.checkpoint import find, read_json
from rtp_llm.engine.chat_sandbox import BUDGET, MAX_CHARACTERS, Budget, environment, guard
from rtp_llm.errors import CheckpointError, InvalidRequest, UnsupportedTask, one_line

Messages = Sequence[Mapping[str, Any]]


class ChatTemplate:
    """The template of a tokenizer's folder; `special_tokens` (role -> token) are variables of it.

    Source: transformers, utils/chat_template_utils.py.
    """

    def __init__(self, folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str]) -> None:
        self.source = _read(folder, config)
        self._folder, self._config = folder, config
        self._variables = {f"{role}_token": token for role, token in special_tokens.items()}
        self._template: Any = None

    def named(self, name: str) -> "ChatTemplate":
        """Another of the folder's templates; CheckpointError where there is none of this name."""
        found = copy.copy(self)
        found.source, found._template = _read_named(self._folder, self._config, name), None
        return found

    def render(
        self,
        messages: Messages,
        *,
        add_generation_prompt: bool = False,
        continue_final_message: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as one text. InvalidRequest where there is no template, or it fails on these messages."""
        mark = ""
        if continue_final_message:
            if add_generation_prompt:
                message = "continue_final_message and add_generation_prompt are not both possible"
                raise InvalidRequest(message, param="continue_final_message")
            mark = secrets.token_hex(16)
            messages = [*messages[:-1], {**messages[-1], "content": f"{messages[-1].get('content') or ''}{mark} "}]
        text = self._run(messages, add_generation_prompt, dict(variables or {}))
        return _up_to(mark, text) if mark else text

    def _run(self, messages: Messages, add_generation_prompt: bool, given: Mapping[str, Any]) -> str:
        template = self._compiled()
        size = sum(len(str(message)) for message in messages) + len(str(given))
        room, budget = MAX_CHARACTERS + size, Budget(size)
        _check_names(given, template)
        variables = {"tools": None, "documents": None, **self._variables}
        own = {"messages": messages, "add_generation_prompt": add_generation_prompt, "range": budget.range}
        try:
            return _written(template, {**variables, **given, **own, BUDGET: budget}, room)
        except InvalidRequest:
            raise
        except Exception as error:  # the border: a template may fail in any way on any messages
            # What is left of the budget tells whose fault it is.
            if given and _is_written(template, {**variables, **own, BUDGET: budget}, room):
                raise _failure("does not take these variables", error, param="chat_template_kwargs") from None
            raise _failure("does not take these messages", error) from None

    def _compiled(self) -> Any:
        if self._template is None:
            if self.source is None:
                message = "this model has no chat template: send texts instead of `messages`"
                raise UnsupportedTask(message, param="messages")
            made = _environment()
            try:
                self._template = made.from_string(self.source)
            except Exception as error:  # the border to jinja2's parser
                raise _failure("cannot be read", error) from None
        return self._template


def _read(folder: Path, config: Mapping[str, Any]) -> str | None:
    """chat_template.jinja, chat_template.json, or the key of tokenizer_config.json, in which there may be several."""
    text = _read_text(folder, "chat_template.jinja")
    return _read_listed(folder, config, "default") if text is None else text


def _read_named(folder: Path, config: Mapping[str, Any], name: str) -> str:
    """additional_chat_templates/NAME.jinja, else that of this name where there are several."""
    if name == "default":
        text = _read(folder, config)
    else:
        file = f"additional_chat_templates/{name}.jinja"
        text = _read_text(folder, file) or _read_listed(folder, config, name)
    if text is None:
        raise CheckpointError(
            f"{folder}: there is no chat template {name!r}, by which texts are read: "
            f"additional_chat_templates/{name}.jinja is missing; download it again"
        )
    return text


def _read_text(folder: Path, name: str) -> str | None:
    file = find(folder, name)
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file} cannot be read: {error}") from error


def _read_listed(folder: Path, config: Mapping[str, Any], name: str) -> str | None:
    """Where JSON has one template, that is the default."""
    found = read_json(folder, "chat_template.json", required=False).get("chat_template", config.get("chat_template"))
    listed = found if isinstance(found, list) else [{"name": "default", "template": found}]
    named = {entry.get("name"): entry.get("template") for entry in listed if isinstance(entry, dict)}
    text = named.get(name)
    return text if isinstance(text, str) else None


def _written(template: Any, variables: Mapping[str, Any], room: int) -> str:
    """What a template writes; InvalidRequest where that is over `room` characters."""
    pieces: list[str] = []
    for piece in template.generate(variables):
        room -= len(piece)
        if room < 0:
            message = f"the chat template writes over {MAX_CHARACTERS} characters of its own"
            raise InvalidRequest(message, param="messages")
        pieces.append(piece)
    return "".join(pieces)


def _is_written(template: Any, variables: Mapping[str, Any], room: int) -> bool:
    """Whether a template takes these variables."""
    try:
        _written(template, variables, room)
    except Exception:  # the border, as where it is rendered
        return False
    return True


def _environment() -> Any:
    made = environment()
    made.filters["tojson"] = _to_json
    made.globals["raise_exception"] = _refuse
    made.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    guard(made)
    return made


def _check_names(given: Mapping[str, Any], template: Any) -> None:
    """InvalidRequest for variables that would stand before a function of the template language."""
    taken = next((name for name in given if name in template.environment.globals or name in ("self", "loop")), None)
    if taken is not None:
        message = f"chat_template_kwargs: {taken!r} is a name of the template language; give the variable another"
        raise InvalidRequest(message, param="chat_template_kwargs")


def _refuse(message: str) -> None:
    raise ValueError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without HTML's escapes, which jinja2's own filter makes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _up_to(mark: str, text: str) -> str:
    """What stands before the mark, as it is; without white space where the template trimmed what stood after it."""
    before, found, after = text.rpartition(mark)
    if not found:
        message = "continue_final_message: the chat template does not show the last message's content"
        raise InvalidRequest(message, param="continue_final_message")
    return before if after.startswith(" ") else before.rstrip()


def _failure(what: str, error: Exception, param: str = "messages") -> InvalidRequest:
    reason = one_line(error) or type(error).__name__
    return InvalidRequest(f"the model's chat template {what}: {reason:.200}", param=param)
