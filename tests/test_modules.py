"""modules.json and a Router's file: which route an input takes, and what is wrong with files that say too little."""

import json
import random
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.core import Params
from rtp_llm.errors import CheckpointError, InvalidRequest
from rtp_llm.modules import Router, read_modules
from rtp_llm.sides import DOCUMENT_PROMPTS, QUERY_PROMPTS, side_of

TYPES = {
    "": "sentence_transformers.models.Transformer.Transformer",
    "own": "sentence_transformers.sparse_encoder.models.SparseStaticEmbedding",
    "pool": "sentence_transformers.models.Pooling",
}
STRUCTURE = {"query": ["own"], "document": ["", "pool"]}


def write(folder: Path, settings: Any, kind: str = "Router") -> Path:
    (folder / "router_config.json").write_text(json.dumps(settings))
    entry = {"idx": 0, "path": "", "type": f"sentence_transformers.models.{kind}"}
    (folder / "modules.json").write_text(json.dumps([entry]))
    return folder


def read(folder: Path, **parameters: Any) -> Router:
    _, router = read_modules(write(folder, {"types": TYPES, "structure": STRUCTURE, "parameters": parameters}))
    assert router is not None
    return router


def test_the_transformer_leads(tmp_path: Path) -> None:
    for default in ("query", "document", None):
        read(tmp_path, default_route=default)
        modules, _ = read_modules(tmp_path)
        assert modules is not None and [module.kind for module in modules] == ["Transformer", "Pooling"]
        assert modules[0].folder == tmp_path and modules[1].folder == tmp_path / "pool"


@pytest.mark.parametrize("words", [QUERY_PROMPTS, DOCUMENT_PROMPTS])
def test_words_of_either_side(words: tuple[str, ...], tmp_path: Path) -> None:
    router = read(tmp_path)
    assert {router.route(word) for word in words} == {words[0]} == {side_of(word) for word in words}
    assert router.route("sts") == router.route(None) == "query"
    params = Params(num_queries=1, prompt_name="sts")
    assert [params.prompt_name_of(index) for index in (0, 1)] == ["query", "document"]
    assert router.names == (None, "document")


def test_routes_are_those_of_sentence_transformers(tmp_path: Path) -> None:
    """Random ones, by every name that they have; theirs are asked for texts."""
    pytest.importorskip("torch")
    modules = pytest.importorskip("sentence_transformers.base.modules")
    from torch.nn import Identity

    names = ["query", "document", "code", "text", "image"]
    modalities = [None, "text", "image", ("image", "text")]
    for seed in range(400):
        chosen = random.Random(seed)
        routes = chosen.sample(names, chosen.randint(1, 3))
        keys = [(chosen.choice([None, *names, "look"]), chosen.choice(modalities)) for _ in range(chosen.randint(0, 4))]
        options: dict[str, Any] = {
            "default_route": chosen.choice([None, *routes]),
            "allow_empty_key": chosen.random() < 0.5,
            "route_mappings": {key: chosen.choice(routes) for key in keys},
        }
        theirs = modules.Router({route: [Identity()] for route in routes}, **options)
        options["route_mappings"] = {str(key): route for key, route in options["route_mappings"].items()}
        folder = tmp_path / str(seed)
        folder.mkdir()
        structure = {route: ["", f"pool{place}"] for place, route in enumerate(routes)}
        types = {"": TYPES[""], **{f"pool{place}": TYPES["pool"] for place in range(len(routes))}}
        _, ours = read_modules(write(folder, {"types": types, "structure": structure, "parameters": options}))
        assert ours is not None
        for task in (None, "query", "document", *ours.tasks):
            try:
                wanted: str | None = theirs._resolve_route(task, "text")
            except ValueError:
                wanted = None
            try:
                found: str | None = ours.route(task)
            except InvalidRequest as error:
                found = None
                assert error.param == "input_type" and all(name in error.message for name in ours.tasks)
            assert found == wanted, (seed, task, options)


WRONG: list[Any] = [
    None,
    0,
    1.5,
    True,
    "",
    "x",
    "..",
    "/etc",
    [],
    ["x"],
    [None],
    {},
    {"x": []},
    {"query": "own"},
    10**30,
]


def test_damaged_files_are_named(tmp_path: Path) -> None:
    """Every value of the file as another kind: it is read, or an error names the file."""
    whole: dict[str, Any] = {
        "types": TYPES,
        "structure": STRUCTURE,
        "parameters": {
            "default_route": "query",
            "allow_empty_key": True,
            "route_mappings": {"(None, 'text')": "query"},
        },
    }
    places: list[tuple[str, ...]] = [()]
    for key, values in whole.items():
        places += [(key,), *((key, name) for name in values)]
    places += [("structure", "document", "0"), ("parameters", "route_mappings", "(None, 'text')")]
    for place in places:
        for value in WRONG:
            settings: Any = json.loads(json.dumps(whole))
            if place:
                *outer, last = place
                inside = settings
                for key in outer:
                    inside = inside[key]
                inside[int(last) if isinstance(inside, list) else last] = value
            else:
                settings = value
            try:
                read_modules(write(tmp_path, settings))
            except CheckpointError as error:
                assert "router_config.json" in error.message or str(tmp_path) in error.message


def test_no_file_at_all(tmp_path: Path) -> None:
    write(tmp_path, {}, "Asym")
    (tmp_path / "router_config.json").unlink()
    with pytest.raises(CheckpointError, match="config.json is missing"):
        read_modules(tmp_path)
    assert read_modules(tmp_path / "elsewhere") == (None, None)
