"""Names of architectures: the flag's, config.json's model_type, and `architectures` without one."""

from typing import Any

import pytest

from rtp_llm.config_files import check_model
from rtp_llm.errors import ConfigError
from rtp_llm.models import MODELS, find_model_type


@pytest.mark.parametrize("name", MODELS)
def test_the_flag_wins(name: str) -> None:
    assert find_model_type(name, {"model_type": "gpt2"}) == name


@pytest.mark.parametrize(
    ("hf", "expected"),
    [
        ({"model_type": "xlm-roberta", "architectures": ["BertModel"]}, "xlm-roberta"),
        ({"architectures": ["BertModel"]}, "bert"),
        ({"architectures": ["BertForMaskedLM"]}, "bert"),
        ({"architectures": ["RobertaForSequenceClassification"]}, "roberta"),
        ({"architectures": ["XLMRobertaModel"]}, "xlm-roberta"),
        ({"architectures": ["CamembertForMaskedLM"]}, "camembert"),
        ({"architectures": ["DebertaV2ForSequenceClassification"]}, "deberta-v2"),
        ({"architectures": ["DebertaForSequenceClassification"]}, "deberta"),
        ({"architectures": ["BartForSequenceClassification"]}, "bart"),
        ({"architectures": ["T5EncoderModel"]}, "t5"),
        ({"architectures": ["MT5EncoderModel"]}, "mt5"),
        ({"architectures": ["T5ForConditionalGeneration"]}, "t5"),
        ({"architectures": ["Qwen2ForCausalLM"]}, "qwen2"),
        ({"architectures": ["Qwen3ForSequenceClassification"]}, "qwen3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "llama"),
        ({"architectures": ["MistralModel"]}, "mistral"),
        ({"architectures": ["Gemma3TextModel"]}, "gemma3_text"),
        ({"architectures": ["EuroBertForMaskedLM"]}, "eurobert"),
        ({"architectures": ["HF_ColBERT"], "position_embedding_type": "rotary"}, "jina_embeddings_v3"),
        ({"model_type": "qwen3", "architectures": ["VoyageQwen3BidirectionalEmbedModel"]}, "voyage_qwen3"),
        ({"model_type": "qwen3", "architectures": ["JinaEmbeddingsV5Model"]}, "jina_embeddings_v5"),
        ({"model_type": "ministral3_bidirec"}, "ministral3_bidirec"),
        ({"model_type": "qwen3", "architectures": ["JinaForRanking"]}, "jina_reranker_v3"),
        ({"architectures": ["Lfm2ForCausalLM"]}, "lfm2"),
        ({"model_type": "lfm2", "architectures": ["Lfm2BidirectionalModel"]}, "lfm2_bidirec"),
        ({"model_type": "lfm2", "architectures": ["Lfm2BidirectionalForMaskedLM"]}, "lfm2_bidirec"),
    ],
)
def test_config_json(hf: dict[str, Any], expected: str) -> None:
    assert find_model_type("auto", hf) == expected


@pytest.mark.parametrize(
    ("flag", "hf", "message"),
    [
        ("auto", {"model_type": "funnel"}, "config.json says model_type 'funnel', which is not one of bert, roberta"),
        ("auto", {"architectures": ["FunnelModel"]}, "its architecture is 'FunnelModel', which is not one of bert"),
        ("auto", {"architectures": ["Bert"]}, "its architecture is 'Bert'"),
        ("auto", {}, "has no model_type, and its architecture is ''"),
        ("gpt", {"model_type": "bert"}, "model_type is 'gpt'"),
        ("auto", {"model_type": "funnel"}, "static_embedding; it needs its authors' code"),
        (
            "auto",
            {"model_type": "qwen3_vl"},
            "'qwen3_vl', which is not served: a model that reads images",
        ),
        (
            "auto",
            {"model_type": "mobilebert", "classifier_activation": True},
            "'mobilebert', which is not served: take a MiniLM",
        ),
        ("auto", {"model_type": "gpt2"}, "'gpt2', which is not served: it writes texts"),
    ],
)
def test_unknown_architectures_list_what_there_is(flag: str, hf: dict[str, Any], message: str) -> None:
    check_model("config.json", hf)
    with pytest.raises(ConfigError, match=message):
        find_model_type(flag, hf)
