"""langchain-huggingface's endpoint embeddings against the server of argv -> vectors, as JSON."""

import asyncio
import json
import sys

from langchain_huggingface import HuggingFaceEndpointEmbeddings

given = json.loads(sys.argv[1])
embeddings = HuggingFaceEndpointEmbeddings(model=given["dense"], huggingfacehub_api_token="unused")
json.dump(
    {
        "vectors": embeddings.embed_documents(given["texts"]),
        "query": embeddings.embed_query(given["texts"][0]),
        "async": asyncio.run(embeddings.aembed_documents(given["texts"])),
    },
    sys.stdout,
)
