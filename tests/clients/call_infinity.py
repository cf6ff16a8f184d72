"""infinity-client's calls against the servers of argv -> what its own objects hold, as JSON."""

import json
import sys

from infinity_client import Client
from infinity_client.api.default import classify, embeddings, models, rerank
from infinity_client.models import ClassifyInput, OpenAIEmbeddingInputText, RerankInput

given = json.loads(sys.argv[1])
dense, reranker, classifier = (Client(base_url=given[name]) for name in ("dense", "reranker", "classifier"))
embedded = embeddings.sync(client=dense, body=OpenAIEmbeddingInputText(input_=given["texts"], model="m"))
ranked = rerank.sync(
    client=reranker, body=RerankInput(query=given["query"], documents=given["documents"], model="m", top_n=2)
)
labelled = classify.sync(client=classifier, body=ClassifyInput(input_=given["texts"], model="m"))
listed = [models.sync(client=client).data[0] for client in (dense, reranker, classifier)]
json.dump(
    {
        "models": [[entry.id, entry.owned_by, entry.capabilities, entry.stats.to_dict()] for entry in listed],
        "vectors": [entry.embedding for entry in embedded.data],
        "tokens": embedded.usage.total_tokens,
        "ranks": [[entry.index, entry.relevance_score] for entry in ranked.results],
        "labels": [{entry.label: entry.score for entry in entries} for entries in labelled.data],
    },
    sys.stdout,
)
