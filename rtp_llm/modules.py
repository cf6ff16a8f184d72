"""The modules of a sentence-transformers checkpoint: modules.json, and the routes of a Router, once called Asym.

A Router sends an input through one of several chains of modules, by what it is for and by its modality, which here is
text. Read as sentence-transformers 6 reads it, `Router.load` and `Router._resolve_route_name`.
"""

import ast
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rtp_llm import config_files
from rtp_llm.checkpoint import find, inside, read_json, read_json_list
from rtp_llm.core import Params
from rtp_llm.errors import CheckpointError, InvalidRequest
from rtp_llm.sides import side_of

logger = logging.getLogger(__name__)

# sentence-transformers' Transformer for fill-mask, before 5.4.
MASKED = "MLMTransformer"
# Its table of tokens' vectors, without a transformer, and that of a weight for each token.
STATIC, TOKEN_WEIGHTS = "StaticEmbedding", "SparseStaticEmbedding"
TABLES = (STATIC, TOKEN_WEIGHTS)
# What the last module of a CrossEncoder's chain writes.
SCORES = "scores"
# Perplexity's rounding of a vector's tanh to 8 bits.
ROUNDING = "FlexibleQuantizer"
_ROUTERS = ("Router", "Asym")
_TRANSFORMERS = ("Transformer", MASKED)
# Its CLIP, of old and as saved again, which gives a text's vector by itself.
CLIP = "CLIPModel"
_MODALITY = "text"
# What sentence-transformers has too, or is served as if it had, by the name there.
_ALIASES = {
    "pylate.models.Dense.Dense": "sentence_transformers.base.modules.dense.Dense",
    # Code of pplx-embed-v1's own, which comes with it and does what its kind says.
    "st_quantize.FlexibleQuantizer": f"sentence_transformers.{ROUNDING}",
}
# Code of a checkpoint's own that is served by ours: jina-embeddings-v3's, with its adapters.
_SAME = ("custom_st.Transformer",)
# What to do with routes that cannot be served together.
_APART = (
    "Write each route as a checkpoint of its own, with sentence-transformers: "
    "SentenceTransformer(modules=[*model[0].sub_modules[route], *model[1:]]).save(folder), and serve several models"
)


@dataclass(frozen=True, slots=True)
class Module:
    """One entry of modules.json, or one of a Router's.

    kind    the class name
    folder  holds its files
    code    dotted path of a class that is not sentence-transformers' own, so that running it needs trust; None: it is
    kwargs  what the class wants to know of each request, by name
    """

    kind: str
    folder: Path
    code: str | None = None
    kwargs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Router:
    """Which modules an input goes through.

    path      its file
    routes    name -> all modules of a route: those before the Router, its own, and those after it
    default   the route of what is for nothing in particular; None: such an input is refused
    mappings  what an input is for, or None for anything -> its route, most particular first
    """

    path: Path
    routes: Mapping[str, tuple[Module, ...]]
    default: str | None
    mappings: Sequence[tuple[str | None, str]] = ()

    @property
    def tasks(self) -> tuple[str, ...]:
        """What an input may be said to be for, beside query and document."""
        return tuple(dict.fromkeys([*self.routes, *(task for task, _ in self.mappings if task is not None)]))

    @property
    def names(self) -> tuple[str | None, ...]:
        """A prompt's name for each route, under which an input takes it; None: the route of what says nothing."""
        found: dict[str, str | None] = {}
        for name in (None, "query", "document", *self.tasks):
            try:
                found.setdefault(self.route(name), name)
            except InvalidRequest:
                continue
        return tuple(found.values())

    def route(self, name: str | None) -> str:
        """The route of an input that comes under the prompt of this name; InvalidRequest where there is none."""
        task = name if name in self.tasks else side_of(name)
        found = next((route for mapped, route in self.mappings if mapped in (None, task)), None)
        if found is None:
            found = task if task in self.routes else _MODALITY if _MODALITY in self.routes else None
        if found is None and task is None:
            found = self.default
        if found is None:
            known = ", ".join(self.tasks)
            problem = "say what the inputs are for" if task is None else f"no route for {task!r}"
            raise InvalidRequest(
                f"input_type: {problem}; this model reads inputs in different ways: input_type, task or prompt_name is "
                f"one of {known}",
                param="input_type",
            )
        return found

    def check(self, params: Params) -> None:
        """InvalidRequest where an input of such a request has no route."""
        names = (params.prompt_name,) if params.num_queries is None else ("query", "document")
        for name in names:
            self.route(name)


def read_modules(folder: Path) -> tuple[tuple[Module, ...] | None, Router | None]:
    """modules.json in order, the transformer first; None without the file.

    With a Router, the modules of its default route, or else of the first one that has a transformer.
    """
    path = find(folder, "modules.json")
    if path is None:
        return None, None
    modules = _entries(folder, path)
    routers = [place for place, module in enumerate(modules) if module.kind in _ROUTERS and module.code is None]
    if not routers:
        if not modules or modules[0].kind not in (*_TRANSFORMERS, STATIC, CLIP):
            found = modules[0].kind if modules else "nothing"
            raise CheckpointError(
                f"{path}: the first module is {found}; Transformer, {STATIC} and Router are served there"
            )
        if modules[0].code not in (None, *_SAME):
            raise CheckpointError(
                f"{path}: the first module is {modules[0].code}, code that comes with the checkpoint and is not run "
                "there; where it does what sentence_transformers.models.Transformer does, name that instead"
            )
        return modules, None
    place = routers[0]
    router = _read_router(modules[place].folder, modules[:place], modules[place + 1 :])
    return _main_route(router), router


def read_settings(
    folder: Path, names: tuple[str, ...], modules: Sequence[Module] | None
) -> tuple[Path, dict[str, Any]]:
    """The first of sentence-transformers' files that is there, and its path; {} where none is.

    Without modules.json sentence-transformers reads neither, and we take names for prompts alone from them: a prompt
    changes nothing until a request asks for it.
    """
    path, settings = folder / names[0], dict[str, Any]()
    for name in names:
        if not settings and find(folder, name) is not None:
            path, settings = folder / name, read_json(folder, name)
    return path, settings if modules is not None else _without_modules(path, settings)


def _without_modules(path: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What is heeded of a file of sentence-transformers' where there is no modules.json: names for prompts."""
    unread = sorted(key for key, value in settings.items() if value and key not in {"prompts", *config_files.UNREAD})
    if unread:
        logger.warning(
            "%s: %s not heeded: without modules.json sentence-transformers does not read it", path, ", ".join(unread)
        )
    return {key: value for key, value in settings.items() if key == "prompts"}


def num_scores(modules: Sequence[Module]) -> int | None:
    """Columns of the last module, where it is a Dense that gives a CrossEncoder's scores; else None."""
    if not modules or modules[-1].kind != "Dense" or modules[-1].code is not None:
        return None
    folder = modules[-1].folder
    settings = read_json(folder, "config.json", required=False)
    config_files.check(folder / "config.json", settings, config_files.DENSE)
    columns: int | None = settings.get("out_features") if settings.get("module_output_name") == SCORES else None
    return columns


def score_activation(sentence: Mapping[str, Any], hf: Mapping[str, Any]) -> str | None:
    """The dotted path of a CrossEncoder's activation; None where no file has one.

    Each generation of sentence-transformers has noted it elsewhere: 6, those from 4 on, and those before.
    """
    noted: str | None = sentence.get("activation_fn") if sentence.get("model_type") == "CrossEncoder" else None
    own = {"activation_fn": hf.get("sbert_ce_default_activation_function"), **(hf.get("sentence_transformers") or {})}
    older: str | None = own["activation_fn"]
    return noted or older


def check_splade(
    path: Path, transformer: Mapping[str, Any], modules: tuple[Module, ...], router: Router | None
) -> None:
    """A masked language model's logits are for SpladePooling, and nothing else is for it, on whatever route."""
    routes = router.routes.values() if router else [modules]
    for route in routes:
        if router is None or route[0].kind not in TABLES:
            _check_chain(path, transformer, route)


def _check_chain(path: Path, transformer: Mapping[str, Any], modules: tuple[Module, ...]) -> None:
    is_masked = bool(modules) and modules[0].kind == MASKED or transformer.get("transformer_task") == "fill-mask"
    kinds = [module.kind for module in modules[1:]]
    if is_masked != ("SpladePooling" in kinds) or (is_masked and kinds != ["SpladePooling"]):
        chain = ", ".join(kinds) or "nothing"
        task = "fill-mask" if is_masked else "feature-extraction"
        raise CheckpointError(
            f"{path}: transformer_task {task} is followed by {chain}; SpladePooling alone goes with fill-mask, and "
            "nothing else does"
        )


def _entries(folder: Path, path: Path) -> tuple[Module, ...]:
    entries = read_json_list(folder, "modules.json")
    for place, entry in enumerate(entries):
        config_files.check(f"{path}: module {place}", entry, config_files.MODULE)
    # NOTE: in the order of the file, whatever `idx` says, as sentence-transformers runs them.
    return tuple(
        _module(str(entry.get("type", "")), inside(folder, entry.get("path", "")), entry.get("kwargs") or ())
        for entry in entries
    )


def _module(dotted: str, folder: Path, kwargs: Sequence[Any] = ()) -> Module:
    dotted = _ALIASES.get(dotted, dotted)
    package, _, kind = dotted.rpartition(".")
    code = dotted if package and not dotted.startswith("sentence_transformers.") else None
    return Module(kind, folder, code, tuple(map(str, kwargs)))


def _read_router(folder: Path, before: tuple[Module, ...], after: tuple[Module, ...]) -> Router:
    name = "router_config.json" if find(folder, "router_config.json") is not None else "config.json"
    path, settings = folder / name, read_json(folder, name)
    config_files.check(path, settings, config_files.ROUTER)
    parameters = settings.get("parameters") or {}
    config_files.check(path, parameters, config_files.ROUTER_PARAMETERS)
    config_files.log_unknown(path, parameters, config_files.ROUTER_PARAMETERS)
    own = _own_modules(path, settings.get("structure") or {}, settings.get("types") or {})
    default = parameters.get("default_route")
    mappings = _mappings(path, parameters.get("route_mappings") or {})
    named = [*([] if default is None else [default]), *mappings.values()]
    absent = [route for route in named if route not in [*own]]  # it may be of any kind
    if absent:
        raise CheckpointError(f"{path}: the routes are {', '.join(own)}, but {absent} are needed")
    if default is None and parameters.get("allow_empty_key", True):
        default = next(iter(own))
    routes = {route: (*before, *modules, *after) for route, modules in own.items()}
    router = _of_text(Router(path=path, routes=routes, default=default, mappings=_by_priority(mappings)))
    _check_routes(router)
    return router


def _own_modules(path: Path, structure: Mapping[str, Any], types: Mapping[str, Any]) -> dict[str, tuple[Module, ...]]:
    """Route -> the modules of the Router itself."""
    if not structure:
        raise CheckpointError(f"{path}: structure names no routes, which a Router needs; download it again")
    routes = {}
    for route, ids in structure.items():
        if not isinstance(ids, list) or not all(isinstance(types.get(str(id_)), str) for id_ in ids):
            known = ", ".join(map(repr, types))
            raise CheckpointError(f"{path}: structure: {route}: {ids!r:.200} are not all among the types {known}")
        routes[route] = tuple(_module(types[str(id_)], inside(path.parent, str(id_))) for id_ in ids)
    return routes


def _of_text(router: Router) -> Router:
    """Without the routes that no text takes."""
    reached = {router.route(name) for name in router.names}
    unreached = [route for route in router.routes if route not in reached]
    if unreached:
        logger.warning("%s: no text takes the route %s, which is left out", router.path, ", ".join(unreached))
    return Router(
        path=router.path,
        routes={route: modules for route, modules in router.routes.items() if route in reached},
        default=router.default if router.default in reached else None,
        mappings=[(task, route) for task, route in router.mappings if route in reached],
    )


def _mappings(path: Path, given: Mapping[str, Any]) -> dict[tuple[Any, Any], Any]:
    """(task, modality) -> route; JSON has Python's own spelling of the pair."""
    mappings = {}
    for key, route in given.items():
        try:
            task, modality = ast.literal_eval(key)
            mappings[task, modality] = route
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            raise CheckpointError(f"{path}: route_mappings: {key!r:.100} is no pair of a task and a modality") from None
    return mappings


def _by_priority(mappings: Mapping[tuple[Any, Any], Any]) -> list[tuple[str | None, str]]:
    """Those that a text can take: the pair itself, the task of any modality, text for any task, then anything."""
    kinds = ((True, _MODALITY), (True, None), (False, _MODALITY), (False, None))
    return [
        (task, route)
        for is_named, wanted in kinds
        for (task, modality), route in mappings.items()
        if (task is not None) == is_named and modality == wanted
    ]


def _check_routes(router: Router) -> None:
    """CheckpointError unless every route begins with the one transformer of all, or with a table of tokens."""
    for route, modules in router.routes.items():
        place, kinds = f"{router.path}: route {route}", [module.kind for module in modules]
        foreign = next((module.code for module in modules if module.code is not None), None)
        if foreign is not None:
            raise CheckpointError(f"{place}: {foreign}: code of the checkpoint's own is not served in a Router")
        if not kinds or kinds[0] not in (*_TRANSFORMERS, *TABLES):
            found = kinds[0] if kinds else "nothing"
            raise CheckpointError(f"{place} begins with {found}; Transformer, {' and '.join(TABLES)} are served there")
        rest = {*kinds[1:]} - ({"Normalize", "Dropout"} if kinds[0] == STATIC else set())
        if kinds[0] in TABLES and rest:
            after = "Normalize alone is" if kinds[0] == STATIC else "nothing is"
            raise CheckpointError(f"{place} is {', '.join(kinds)}; {after} served after {kinds[0]}. {_APART}")
    folders = {modules[0].folder for modules in router.routes.values() if modules[0].kind in _TRANSFORMERS}
    if len(folders) != 1:
        found = ", ".join(sorted(map(str, folders))) or "none"
        raise CheckpointError(
            f"{router.path}: transformers: {found}; a Router whose routes share one is served. {_APART}"
        )


def _main_route(router: Router) -> tuple[Module, ...]:
    names = [router.default, *router.routes] if router.default is not None else [*router.routes]
    return next(router.routes[name] for name in names if router.routes[name][0].kind in _TRANSFORMERS)
