"""tei-client's calls, over HTTP or by the gRPC stubs that it carries, against the servers of argv -> JSON."""

import json
import sys
from typing import Any

from tei_client import GrpcClient, HttpClient

given = json.loads(sys.argv[1])


def client(name: str) -> Any:
    if given["protocol"] == "grpc":
        return GrpcClient(given[name])
    return HttpClient(given[name])


dense, reranker, classifier = client("dense"), client("reranker"), client("classifier")
ranked = reranker.rerank(given["query"], given["documents"])
labelled = classifier.classify(given["texts"])
json.dump(
    {
        "model": dense.info().server_model_id,
        "vectors": [list(row) for row in dense.embed(given["texts"])],
        "tokens": [len(rows) for rows in dense.embed_all(given["texts"])],
        "ranks": [[rank.index, rank.score] for rank in ranked.ranks],
        "labels": [{score.label: score.score for score in result.scores} for result in labelled],
    },
    sys.stdout,
)
