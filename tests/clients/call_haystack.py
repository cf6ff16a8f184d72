"""Haystack's embedders and ranker for OpenAI, Cohere and Ollama against the servers of argv -> JSON."""

import json
import os
import sys
from typing import Any

os.environ["HAYSTACK_TELEMETRY_ENABLED"] = "False"

from haystack import Document
from haystack.components.embedders import OpenAIDocumentEmbedder, OpenAITextEmbedder
from haystack.utils import Secret
from haystack_integrations.components.embedders.cohere import (
    CohereDocumentEmbedder,
    CohereTextEmbedder,
)
from haystack_integrations.components.embedders.ollama import (
    OllamaDocumentEmbedder,
    OllamaTextEmbedder,
)
from haystack_integrations.components.rankers.cohere import CohereRanker

given = json.loads(sys.argv[1])
key = Secret.from_token("unused")
documents = [Document(content=text) for text in given["texts"]]
openai = {"api_base_url": f"{given['dense']}/v1", "api_key": key, "model": "m"}
cohere = {"api_base_url": given["dense"], "api_key": key, "model": "m"}
ollama = {"url": given["dense"], "model": "m"}
ranker = CohereRanker(model="m", api_key=key, api_base_url=given["reranker"], top_k=2)
candidates = [Document(content=text, meta={"place": place}) for place, text in enumerate(given["documents"])]


def vectors(embedder: Any) -> list[list[float]]:
    return [document.embedding for document in embedder.run(documents=documents)["documents"]]


json.dump(
    {
        "openai": vectors(OpenAIDocumentEmbedder(**openai, progress_bar=False)),
        "openai_text": OpenAITextEmbedder(**openai).run(text=given["texts"][0])["embedding"],
        "cohere": vectors(CohereDocumentEmbedder(**cohere, progress_bar=False)),
        "cohere_text": CohereTextEmbedder(**cohere).run(text=given["texts"][0])["embedding"],
        "ollama": vectors(OllamaDocumentEmbedder(**ollama, progress_bar=False)),
        "ollama_text": OllamaTextEmbedder(**ollama).run(text=given["texts"][0])["embedding"],
        "ranks": [
            [document.meta["place"], document.score]
            for document in ranker.run(query=given["query"], documents=candidates)["documents"]
        ],
    },
    sys.stdout,
)
