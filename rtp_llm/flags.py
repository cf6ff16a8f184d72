"""Command line and environment -> ServerConfig; the help text and docs/flags.md from the same fields."""

import argparse
import difflib
import logging
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, NamedTuple, NoReturn, TypeVar

from rtp_llm.config import EngineConfig, ServerConfig
from rtp_llm.errors import ConfigError, one_line
from rtp_llm.ignored_options import IGNORED
from rtp_llm.option import environment_name, parsed

logger = logging.getLogger(__name__)

Config = TypeVar("Config", bound=EngineConfig)

_GROUPS = ("model", "hub", "compute", "batching", "server", "safety", "observability")
_FLAG_NAME = re.compile(r"[\w-]+")
_EPILOG = (
    "Flags may be written in any case, with _ or -; every option can also be set by\n"
    "the environment variable in brackets. Options of the original RTP-LLM that have\n"
    "no meaning here are accepted and logged (docs/flags.md)."
)


class Repeated(NamedTuple):
    """What the command line said of several models, in its order."""

    checkpoints: tuple[str, ...]
    names: tuple[str, ...]


def parse_serve(
    argv: Sequence[str], environ: Mapping[str, str], prog: str = "rtp_llm.start_server"
) -> tuple[ServerConfig, Repeated]:
    """The configuration that `argv` and `environ` ask for, of the first model alone, and what was said of all.

    Prints and exits with status 2 where they are wrong.
    """
    parser = CommandParser(
        prog,
        "Serve one checkpoint, or several, over HTTP.",
        example="rtp-llm serve sentence-transformers/all-MiniLM-L6-v2 --port 8088",
        repeated=("checkpoint_path", "served_model_name"),
    )
    config, namespace = parse_command(parser, argv, environ, ServerConfig)
    checkpoints = tuple(namespace.repeated.get("checkpoint_path") or filter(None, [config.checkpoint_path]))
    names = tuple(namespace.repeated.get("served_model_name") or filter(None, [config.served_model_name]))
    return config, Repeated(checkpoints, names)


class CommandParser(argparse.ArgumentParser):
    """A command's parser: it takes arguments of its own, then those of a configuration, by `parse_command`.

    The checkpoint is its first positional argument; unless `needs_checkpoint`, a flag or the environment may name it.
    Options in `repeated` may be given several times; all others mean what was said last.
    """

    def __init__(
        self,
        prog: str,
        description: str,
        *,
        example: str = "",
        needs_checkpoint: bool = False,
        repeated: Sequence[str] = (),
    ) -> None:
        super().__init__(
            prog=prog,
            description=description + (f"\n\nexample:\n  {example}" if example else ""),
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            epilog=_EPILOG,
        )
        self.needs_checkpoint = needs_checkpoint
        self.repeated = repeated
        otherwise = "" if needs_checkpoint else "; or --checkpoint_path, or CHECKPOINT_PATH in the environment"
        self.add_argument(
            "positional_checkpoint",
            nargs=None if needs_checkpoint else "?",
            metavar="CHECKPOINT",
            help="folder, or hub id such as BAAI/bge-small-en-v1.5" + otherwise,
        )

    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line and exit with status 2."""
        self.exit(2, f"{self.prog}: error: {one_line(message)} (--help lists all options)\n")


def parse_command(
    parser: CommandParser, argv: Sequence[str], environ: Mapping[str, str], kind: type[Config]
) -> tuple[Config, argparse.Namespace]:
    """The configuration of that kind, and the command's own arguments; exits with status 2 where they are wrong."""
    specs = [spec for spec in fields(kind) if not (parser.needs_checkpoint and spec.name == "checkpoint_path")]
    _add_options(parser, specs)
    parser.usage = _usage(parser)
    tokens = _drop_ignored([_canonical(token) for token in argv], environ)
    namespace, unknown = parser.parse_known_intermixed_args(tokens)
    if unknown:
        # What follows an option that is not known may be its value, and is the smaller riddle.
        parser.error(_unknown_message(next((one for one in unknown if one.startswith("-")), unknown[0]), parser))
    given = vars(namespace)
    repeated = given["repeated"] = {name: given.pop(name) for name in parser.repeated if name in given}
    values = {spec.name: _joined(given.pop(spec.name)) for spec in specs if spec.name in given}
    positional = given.pop("positional_checkpoint")
    if positional and "checkpoint_path" in parser.repeated:
        repeated["checkpoint_path"] = [positional, *repeated.get("checkpoint_path", [])]
    elif positional:
        values.setdefault("checkpoint_path", positional)
    values |= {name: said[0] for name, said in repeated.items()}
    try:
        values = {**_from_environment(environ, kind), **values}
        if values.get("models"):
            values.setdefault("checkpoint_path", "")
        if "checkpoint_path" not in values:
            raise ConfigError("checkpoint_path is missing: give --checkpoint_path FOLDER or set CHECKPOINT_PATH")
        return kind(**values), namespace
    except ConfigError as error:
        parser.error(error.message)


def _usage(parser: CommandParser) -> str:
    """The help's first line: the arguments alone, since the options that follow in groups are too many for it."""
    positionals = [action for action in parser._actions if not action.option_strings]
    words = [f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar) for action in positionals]
    return " ".join([parser.prog, *words, "[options]"])


def _joined(value: Any) -> Any:
    """The values of an option that was given several times as one; any other as it is."""
    return tuple(one for part in value for one in part) if isinstance(value, list) else value


def flags_page() -> str:
    """docs/flags.md: every option with its flag, variable, default and meaning."""
    lines = [
        "# Options",
        "",
        "Generated from `rtp_llm/config.py` by `make fix`. A flag may be written in any case, with `_` or `-`, and as",
        "`--flag value` or `--flag=value`. The command line beats the environment, which beats the default.",
    ]
    for group in _GROUPS:
        lines += ["", f"## {group.capitalize()}", "", "| flag | environment | default | meaning |", "|---|---|---|---|"]
        lines += [_flag_row(spec) for spec in fields(ServerConfig) if spec.metadata["group"] == group]
    lines += [
        "",
        "## Accepted without effect",
        "",
        "The original's options that do nothing here; giving one logs why.",
        "",
    ]
    lines += ["| flag | why |", "|---|---|"]
    lines += [f"| `--{name}` | {reason} |" for name, reason in IGNORED.items()]
    return "\n".join(lines) + "\n"


def _names(spec: Field[Any]) -> tuple[str, ...]:
    return (spec.name, *spec.metadata["aliases"])


def _flag_row(spec: Field[Any]) -> str:
    default = "required" if spec.default is MISSING else f"`{text}`" if (text := _default(spec)) else ""
    names = " ".join(f"`--{name}`" for name in _names(spec))
    return f"| {names} | `{environment_name(spec)}` | {default} | {_help(spec)} |"


def _default(spec: Field[Any]) -> str:
    """The default as one would write it; empty where there is none."""
    default = "" if spec.default is MISSING else spec.default
    return ",".join(default) if isinstance(default, tuple) else str(default)


def _help(spec: Field[Any]) -> str:
    choices = spec.metadata["choices"]
    values = list(dict.fromkeys(choices.values() if isinstance(choices, Mapping) else choices))
    return str(spec.metadata["help"]) + (f" ({', '.join(values)})" if values else "")


def _add_options(parser: CommandParser, specs: Sequence[Field[Any]]) -> None:
    named = dict.fromkeys(spec.metadata["group"] for spec in specs)
    groups = {name: parser.add_argument_group(name) for name in named}
    for spec in specs:
        default = f" (default: {text})" if (text := _default(spec)) else ""
        is_bool = spec.type is bool
        extra: dict[str, Any] = {"nargs": "?", "const": True} if is_bool else {}
        groups[spec.metadata["group"]].add_argument(
            *(f"--{name}" for name in _names(spec)),
            dest=spec.name,
            type=_converter(spec),
            action="append" if spec.type == tuple[str, ...] or spec.name in parser.repeated else "store",
            default=argparse.SUPPRESS,
            metavar="BOOL" if is_bool else "N" if spec.type in (int, float) else "VALUE",
            help=f"{_help(spec)}{default} [{environment_name(spec)}]".replace("%", "%%"),
            **extra,
        )


def _converter(spec: Field[Any]) -> Callable[[str], Any]:
    def convert(text: str) -> Any:
        try:
            return parsed(spec, text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(error.message) from None

    return convert


def _canonical(token: str) -> str:
    """`--TASK-Type=x` -> `--task_type=x`; anything that is not a flag stays as it is."""
    name, equals, value = token[2:].partition("=")
    if not token.startswith("--") or not _FLAG_NAME.fullmatch(name):
        return token
    return f"--{name.lower().replace('-', '_')}{equals}{value}"


def _from_environment(environ: Mapping[str, str], kind: type[EngineConfig]) -> dict[str, Any]:
    values = {}
    for spec in fields(kind):
        text = environ.get(environment_name(spec), "")
        if text:
            try:
                values[spec.name] = parsed(spec, text)
            except ConfigError as error:
                raise ConfigError(f"environment variable {environment_name(spec)}: {error.message}") from None
    return values


def _drop_ignored(tokens: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """`tokens` without the original's options that mean nothing here; logs why for each, from the environment too."""
    left: list[str] = []
    skip_value = False
    for token in tokens:
        name, equals, _ = token.removeprefix("--").partition("=")
        if token.startswith("--"):
            skip_value = name in IGNORED and not equals
            if name in IGNORED:
                logger.warning("--%s has no effect: %s", name, IGNORED[name])
                continue
        elif skip_value:
            skip_value = False
            continue
        left.append(token)
    for name, reason in IGNORED.items():
        if environ.get(name.upper()):
            logger.warning("%s in the environment has no effect: %s", name.upper(), reason)
    return left


def _unknown_message(token: str, parser: CommandParser) -> str:
    if not token.startswith("-"):
        return f"unexpected argument {token!r}"
    name = token.lstrip("-").partition("=")[0]
    spec = next((spec for spec in fields(ServerConfig) if name in _names(spec)), None)
    if spec is not None and spec.name == "checkpoint_path":
        return f"--{name}: the checkpoint is this command's first argument, without a flag"
    if spec is not None:
        return f"--{name} is an option of the server (rtp-llm serve) and means nothing here: leave it out"
    known = [flag.lstrip("-") for action in parser._actions for flag in action.option_strings] + list(IGNORED)
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"unknown option --{name}" + (f"; did you mean --{near[0]}?" if near else "")


if __name__ == "__main__":
    sys.stdout.write(flags_page())
