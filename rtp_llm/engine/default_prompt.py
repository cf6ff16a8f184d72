"""The prompt of requests that name none, where the operator says it."""

from dataclasses import replace

from rtp_llm.config import EngineConfig
from rtp_llm.errors import ConfigError
from rtp_llm.late_interaction import SIDES
from rtp_llm.model_config import ModelConfig

_NAME = "default"


def with_default_prompt(model_config: ModelConfig, config: EngineConfig) -> ModelConfig:
    """The checkpoint's prompts, with the default of the configuration; ConfigError where it names one there is not.

    A text of one's own is that of queries and of documents too, where the checkpoint has none for either: next to a
    prompt for queries an empty one for documents means what it says.
    """
    name, text = config.default_prompt_name, config.default_prompt
    if name and text:
        message = "default_prompt_name and default_prompt: give one of them"
        raise ConfigError(message, param="default_prompt")
    if (name or text) and model_config.late is not None:
        param = "default_prompt" if text else "default_prompt_name"
        raise ConfigError(f"{param}: queries and documents of late interaction each have their own", param=param)
    if text:
        own, sides = dict(model_config.prompts), dict.fromkeys(SIDES, text)
        prompts = (sides | own if any(own.values()) else own | sides) | {_NAME: text}
        return replace(model_config, prompts=prompts, default_prompt_name=_NAME)
    if not name:
        return model_config
    if name not in model_config.prompts:
        known = ", ".join(model_config.prompts) or "none"
        message = f"default_prompt_name: {name!r:.100} is not one of {known}"
        raise ConfigError(message, param="default_prompt_name")
    return replace(model_config, default_prompt_name=name)
