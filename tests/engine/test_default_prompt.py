"""A default prompt that the operator names, over a tiny checkpoint."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rtp_llm import Model
from rtp_llm.errors import ConfigError
from tests.tasks.checkpoints import save

pytest.importorskip("torch")

PROMPTS = {"query": "so sunny ", "passage": "the weather "}
FAST: dict[str, Any] = {"backend": "numpy", "num_threads": 1, "warm_up": False}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    save(made := tmp_path_factory.mktemp("prompts"))
    (made / "config_sentence_transformers.json").write_text(json.dumps({"prompts": PROMPTS}))
    return made


@pytest.mark.parametrize(
    ("option", "prompt"),
    [({"default_prompt_name": "query"}, "so sunny "), ({"default_prompt": "he drove "}, "he drove ")],
)
def test_requests_that_name_none_get_it(option: dict[str, str], prompt: str, folder: Path) -> None:
    with Model(folder, **FAST) as plain, Model(folder, **option, **FAST) as model:
        text = "is lovely"
        np.testing.assert_array_equal(model.embed(text), plain.embed(text, prompt=prompt))
        np.testing.assert_array_equal(
            model.embed(text, prompt_name="passage"), plain.embed(text, prompt_name="passage")
        )
        np.testing.assert_array_equal(model.embed(text, prompt=""), plain.embed(text))


def test_a_text_is_for_the_sides_too_that_have_no_prompt(folder: Path) -> None:
    with Model(folder, **FAST) as plain, Model(folder, default_prompt="he drove ", **FAST) as model:
        text = "is lovely"
        for name, prompt in {"query": "so sunny ", "document": "he drove "}.items():
            np.testing.assert_array_equal(model.embed(text, prompt_name=name), plain.embed(text, prompt=prompt))


def test_an_empty_prompt_beside_others_means_what_it_says(tmp_path: Path) -> None:
    save(tmp_path)
    stated = {"prompts": {"query": "so sunny ", "document": ""}}
    (tmp_path / "config_sentence_transformers.json").write_text(json.dumps(stated))
    with Model(tmp_path, **FAST) as plain, Model(tmp_path, default_prompt="he drove ", **FAST) as model:
        text = "is lovely"
        for name, prompt in {"query": "so sunny ", "document": ""}.items():
            np.testing.assert_array_equal(model.embed(text, prompt_name=name), plain.embed(text, prompt=prompt))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"default_prompt_name": "none"}, "'none' is not one of query, passage"),
        ({"default_prompt_name": "query", "default_prompt": "a"}, "give one of them"),
    ],
)
def test_what_cannot_be_is_told(option: dict[str, str], message: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        Model(folder, **option, **FAST)
