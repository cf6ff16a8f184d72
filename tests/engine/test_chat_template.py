"""Chat templates: those of real tokenizers as transformers renders them; broken and hostile ones are one line."""

import json
from pathlib import Path
from typing import Any

import pytest

from rtp_llm.engine.chat_template import ChatTemplate
from rtp_llm.errors import CheckpointError, InvalidRequest

transformers = pytest.importorskip("transformers")
pytest.importorskip("jinja2")

CHAT = [
    {"role": "system", "content": "Find what answers the question."},
    {"role": "user", "content": "What is a <panda>? \u4f60\u597d & \u00fc"},
    {"role": "assistant", "content": "  A bear.\n"},
]
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module", params=["qwen2", "qwen3"])
def real(request: pytest.FixtureRequest, assets: Path) -> Any:
    """transformers' tokenizer; its folder is `name_or_path`."""
    return transformers.AutoTokenizer.from_pretrained(assets / "tokenizers" / str(request.param))


def ours(folder: Path) -> ChatTemplate:
    config = json.loads((folder / "tokenizer_config.json").read_text())
    special = {key.removesuffix("_token"): token for key, token in config.items() if key.endswith("eos_token")}
    return ChatTemplate(folder, config, special)


def written(text: str, **special: str) -> ChatTemplate:
    """A template of `text`, which never touches a file."""
    return ChatTemplate(Path("/nowhere"), {"chat_template": text}, special)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"add_generation_prompt": True},
        {"continue_final_message": True},
        {"add_generation_prompt": True, "variables": {"enable_thinking": False}},
        {"variables": {"tools": [TOOL]}},
    ],
)
@pytest.mark.parametrize("messages", [CHAT, CHAT[1:], CHAT[1:2], CHAT[:2]])
def test_real_templates(real: Any, messages: list[dict[str, str]], options: dict[str, Any]) -> None:
    arguments = {**options, **options.get("variables", {})}
    arguments.pop("variables", None)
    theirs = real.apply_chat_template(messages, tokenize=False, **arguments)
    assert ours(Path(real.name_or_path)).render(messages, **options) == theirs


def test_where_it_stands(tmp_path: Path) -> None:
    """chat_template.jinja before chat_template.json before the configuration, in which there may be several by name."""
    several = [{"name": "tool_use", "template": "x"}, {"name": "default", "template": "config"}]
    config = {"chat_template": several}
    assert ChatTemplate(tmp_path, config, {}).render(CHAT) == "config"
    (tmp_path / "chat_template.json").write_text(json.dumps({"chat_template": "json"}))
    assert ChatTemplate(tmp_path, config, {}).render(CHAT) == "json"
    (tmp_path / "chat_template.jinja").write_text("jinja")
    assert ChatTemplate(tmp_path, config, {}).render(CHAT) == "jinja"
    (tmp_path / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(CheckpointError, match="cannot be read"):
        ChatTemplate(tmp_path, config, {})


def test_what_a_template_is_given() -> None:
    text = "{{ bos_token }}{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
    assert written(text, bos="<s>").render(CHAT) == "<s>system"
    assert written("{% generation %}{{ messages[0].content[:4] }}{% endgeneration %}").render(CHAT) == "Find"
    assert written("{{ {'a': '<&>'} | tojson }}{{ strftime_now('%Y') | length }}").render(CHAT) == '{"a": "<&>"}4'
    assert written("{{ tools is none }}{{ colour }}").render(CHAT, variables={"colour": "red"}) == "Truered"


NESTED = (
    "{% for i in range(99) %}{% for a in messages[0].content %}{% for b in messages[0].content %}"
    "{% for c in messages[0].content %}{% for d in messages[0].content %}{% endfor %}{% endfor %}{% endfor %}"
    "{% endfor %}{% endfor %}"
)


def test_a_long_conversation_is_no_attack() -> None:
    """Megabytes of text, joined bit by bit, replaced and counted."""
    template = (
        "{% set n = namespace(s='') %}{% for m in messages %}{% set n.s = n.s ~ m.role + ': ' "
        "+ m.content | replace('ab', 'cd') | trim ~ loop.length %}{% endfor %}{{ n.s }}"
    )
    messages = [{"role": "user", "content": "ab " * 300_000}, *CHAT * 50]
    assert len(written(template).render(messages)) > 900_000


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "cannot be read: "),
        ("{{ messages[9].content.x }}", "does not take these messages: list object has no element 9"),
        ("{{ raise_exception('roles must\\nalternate') }}", "does not take these messages: roles must alternate"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{{ messages.append(1) }}", "access to attribute 'append'"),
        ("{% for i in range(1000000) %}{% endfor %}", "it loops over 100000 times"),
        ("{% for i in range(1000) %}{% for j in range(1000) %}{% endfor %}{% endfor %}", "it loops over 100000 times"),
        ("{% for i in range(9999) %}{{ messages[0].content * 99 }}{% endfor %}", "writes over 1048576 characters"),
        ("{{ 'a' * 9999999999 }}", "makes over 1048576"),
        ("{{ 9 ** 9999999999 }}", "makes over 1048576"),
        ("{{ 1 / 0 }}", "division by zero"),
        ("{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "makes over"),
        ("{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}", "makes over"),
        ("{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}", "makes over"),
        (
            "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}{{ n.s }}",
            "makes",
        ),
        (
            "{% set n = namespace(s=[1]) %}{% for i in range(60) %}{% set n.s = [n.s, n.s] %}{% endfor %}"
            "{{ n.s | tojson }}",
            "may make over",
        ),
        ("{% set n = namespace(s=2) %}{% for i in range(60) %}{% set n.s = n.s * n.s %}{% endfor %}", "makes over"),
        (
            "{% set n = namespace(s='a') %}{% for i in range(60) %}"
            "{% set n.s %}{{ n.s }}{{ n.s }}{% endset %}{% endfor %}",
            "makes over",
        ),
        ("{% macro f(n) %}x{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", "it "),
        ("{% for a in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}", "recursion"),
        (NESTED, "it loops over 1000000 times"),
        ("{{ 'a' | center(999999999) }}", "may make over"),
        ("{{ 'a'.ljust(999999999) }}", "may make over"),
        ("{{ ('a' * 99999).replace('a', 'b' * 99999) }}", "may make over"),
        ("{{ ('a' * 99999) | replace('a', 'b' * 99999) }}", "may make over"),
        ("{{ ('b' * 99999).join(('a' * 99999) | list) }}", "may make over"),
        ("{{ '%999999999d' % 1 }}{{ 1 }}", "a width of a million"),
        ("{{ '%*d' % (999999999, 1) }}", "a width of a million"),
        ("{{ '{:999999999}'.format(1) }}", "a width of a million"),
        ("{{ '{:{}}'.format(1, 999999999) }}", "a width of a million"),
        ("{{ '%999999999d' | format(1) }}", "a width of a million"),
        ("{{ lipsum(99999) }}", "'lipsum' is undefined"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion"),
    ],
)
def test_broken_and_hostile(template: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        written(template).render(CHAT)
    assert message in caught.value.message and "\n" not in caught.value.message and len(caught.value.message) < 300


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variables": {"range": 2}}, "'range' is a name of the template language"),
        ({"variables": {"raise_exception": 2}}, "'raise_exception' is a name"),
        ({"variables": {"self": 2}}, "'self' is a name"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "not both possible"),
        ({"continue_final_message": True}, "does not show the last message"),
    ],
)
def test_refused_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        written("fixed").render(CHAT, **options)


@pytest.mark.parametrize(
    ("content", "variables", "param"),
    [
        ("a", {"colour": 5}, "chat_template_kwargs"),
        ("a", {"colour": ["red"]}, "chat_template_kwargs"),
        ("", {"colour": "red"}, "messages"),
        ("", {"colour": 5}, "messages"),
        ("", {}, "messages"),
    ],
)
def test_whose_fault_it_is(content: str, variables: dict[str, Any], param: str) -> None:
    """That of the variables where the template takes these messages without them."""
    template = "{% if not messages[0].content %}{{ raise_exception('empty') }}{% endif %}{{ (colour or '') + '!' }}"
    with pytest.raises(InvalidRequest, match="does not take these (messages|variables)") as caught:
        written(template).render([{"role": "user", "content": content}], variables=variables)
    assert caught.value.param == param


def test_looking_for_the_fault_is_within_the_budget() -> None:
    template = "{% for i in range(60000) %}{% endfor %}{{ (colour or '') + '!' }}"
    with pytest.raises(InvalidRequest, match="does not take these messages"):
        written(template).render(CHAT, variables={"colour": 5})


def test_templates_by_name(tmp_path: Path) -> None:
    """A file of its own before the entry of tokenizer_config.json; where JSON has one template it is the default."""
    several = [{"name": "default", "template": "plain"}, {"name": "ranker", "template": "listed"}]
    template = ChatTemplate(tmp_path, {"chat_template": several}, {})
    assert [template.named(name).source for name in ("default", "ranker")] == ["plain", "listed"]
    assert template.named("ranker").render([]) == "listed" and template.render([]) == "plain"
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "ranker.jinja").write_text("filed")
    assert template.named("ranker").source == "filed"
    only = ChatTemplate(tmp_path, {"chat_template": "one"}, {})
    assert only.named("default").source == "one"
    with pytest.raises(CheckpointError, match="no chat template 'other', by which texts are read: additional_chat_tem"):
        only.named("other")


def test_no_template() -> None:
    with pytest.raises(InvalidRequest, match="no chat template: send texts"):
        ChatTemplate(Path("/nowhere"), {}, {}).render(CHAT)
