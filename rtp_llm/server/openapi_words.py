"""What the OpenAPI description says in prose: of the whole, of each group of routes, of headers and of failures."""

from rtp_llm import errors
from rtp_llm.server.errors import BodyTimeout, MethodNotAllowed, UnknownPath, UnsupportedEncoding
from rtp_llm.server.tei.frame import EmptyInput

ABOUT = """\
Embeddings, rerankers and classifiers, as the clients of OpenAI, Cohere, Jina, Voyage, text-embeddings-inference,
vLLM, Infinity, Ollama, Weaviate and RTP-LLM ask. Bodies and answers are JSON; `Content-Type` is not looked at. A
path may end with a slash. In bodies null means absent, and unknown fields are ignored.

Where several models are served, a request names one by the body's `model`, or by the header `X-Model`; one that
names none goes to the first model that can do what it asks. The order of inputs is kept. `usage` counts the tokens
that the model read: after truncation, special tokens included.

A body over the limit is refused as soon as that is known, without reading the rest, and the connection is closed.
When a client leaves before its answer, what still waits of its request is dropped, and the exchange is counted in
the metrics under status 499. On SIGTERM or SIGINT the server stops listening, lets running requests end for at most
`shutdown_timeout` seconds, and answers those still running with 503."""

_EMBEDDINGS = """\
An item that was cut at the model's limit has `"truncated": true`. Floats are written in the shortest form that
gives the same float32 back, so `float` and `base64` carry the same bits; `base64` is under half the size and costs
less time on both sides. Token ids must come from the model's own tokenizer; ids outside the vocabulary are refused.

A checkpoint with BGE-M3's heads gives three kinds of embedding from one forward. `/v1/embeddings` gives the kind
that the checkpoint offers first, `/v1/embeddings/{dense,sparse,colbert}` give that one, and `output` asks for any
of them at once, each under its own name: `embedding`, `sparse_embedding`, `colbert_embedding`, `token_embeddings`.

Sparse weights are those of FlagEmbedding: relu of the head, the maximum of each id, without the ids of cls, eos,
pad and unk. A SPLADE checkpoint gives sparse embeddings alone, whose tokens are words that the text need not have.
Where it has a Router, `input_type`, `task` or `prompt_name` say whether an input is a query, whose tokens' weights may
come from a table instead of the model, or a document; without a word the checkpoint's default route is taken.
`max_active_dims` keeps the largest weights alone.
BGE-M3's colbert leaves out the first token and keeps the last; its vectors are normalised. A checkpoint of late
interaction gives a query's or a document's, as `input_type`, `task` or `prompt_name` say; without a word they are a
document's. Tokens are the last hidden states
of all tokens, normalised unless `normalize` is `false`. `dimensions`, `normalize` and `encoding_format` apply to
every vector.

Similarity has a row for each left text. `dense` is the dot product; `sparse` the sum over shared ids of the
products of their weights; `colbert` the mean over the left tokens of the largest dot product with a right one, of
late interaction their sum;
`hybrid` their mean, weighted as by FlagEmbedding's `weights_for_different_modes`, where 0 leaves one out."""

_SCORES = """\
A checkpoint whose classification head has one label is served as a reranker, and so is Qwen3-Reranker: as a
conversion to a classification head, with a LogitScore module, or in its original form, which is known by the word
`reranker` in its name or by `--task_type RERANKER`. `total_tokens` counts the query once for each document.

`truncation` says which side of a pair over the limit loses tokens. `true` and `longest_first`: the longer of query
and document first, as in sentence-transformers; `only_second`: the query is cut to three quarters of the limit,
then the document to what is left, as in FlagEmbedding. The two differ only for pairs over the limit and for queries
over three quarters of it. In the library, `Model.rerank` applies the checkpoint's own activation, as
`CrossEncoder.predict` does: what `config.json` notes, else sigmoid.

Qwen3-Reranker is asked its authors' question, with `instruction`, query and document in it; its score is P(yes),
the sigmoid of the difference of two logits, in fp32. Only the text between the fixed parts of the question loses
tokens, at its end, whatever `truncation` is, unless that is `false`. bge-reranker-v2-gemma, a Gemma known in the same
way, is asked FlagEmbedding's question, or `instruction` in its place; its score is the sigmoid of the logit of Yes. Its
query is cut to three quarters of what the limit leaves beside twice the question, its document to the rest.
bge-reranker-v2-minicpm-layerwise is asked so too, and has a head for this logit alone.

A classifier's `score` has a row of raw logits for each text or pair, unless `activation` or `labels` ask otherwise.
With `labels`, the activation is what transformers' pipeline would apply: by `problem_type`, else sigmoid for one
label and softmax for more.

A token classifier (`ForTokenClassification`: names, personal data) finds entities: characters `start`:`end` of the
text as it was sent, with label, score and the tokenizer's `word`, as transformers' token-classification pipeline has
them under `aggregation_strategy`. Of a text over the limit the beginning alone is read, and `truncated` says so;
`--auto_truncate false` makes it an error."""

TAGS = {
    "embeddings": _EMBEDDINGS,
    "rerank": "Documents scored from 0 to 1, the best first. Models that are no rerankers score too: with colbert "
    "vectors by MaxSim, with dense ones by the cosine.",
    "scores": _SCORES,
    "custom": "With `--custom_module`, all inputs of a request go to the operator's own class, and `data` is what it "
    "returned.",
    "tokens": "Special tokens are included, unless `add_special_tokens` is `false`; no prompt, nothing is cut.",
    "vLLM": "As vLLM's and Infinity's clients ask.",
    "TEI": "As the clients of text-embeddings-inference ask, with its errors: 422 for a body that does not validate, "
    "424 for what the model does not do.",
    "Ollama": "As Ollama's clients ask, who call every failure an `error`. A name may have `:latest` behind it. What "
    "generates text, and what fetches or removes models, is refused with 400.",
    "Weaviate": "As Weaviate's modules text2vec-transformers and reranker-transformers ask their inference containers.",
    "models": "Which models there are, and what they do.",
    "probes": "For load balancers, orchestrators and Prometheus. Health is `ok` or 503 with the reason: starting, "
    "draining, dead. Liveness is `ok` as soon as the process answers. Weaviate's say the same by 204 and 503. No probe "
    "needs a key; `/metrics` does.",
    "pages": "The same on every server, so they need no key.",
}

REQUEST_HEADERS = {
    "X-Request-Id": "yours comes back, if it is at most 128 of `A-Z a-z 0-9 _ . : / + = @ -`; else one is made. "
    "The log uses it",
    "X-Request-Timeout": "seconds that the answer may take, above 0 and at most `request_timeout`; then 504",
    "X-Priority": "`interactive`, `bulk` or `auto`: who is served first when there is a queue",
    "X-Model": "a served model, where the body's dialect has no `model`",
    "traceparent": "the caller's trace, as W3C Trace Context has it: the log names it, and spans go under it",
    "tracestate": "goes with traceparent",
}
ANSWER_HEADERS = {
    "X-Request-Id": "the name of this request in the log; every answer has it",
    "Server-Timing": "milliseconds spent in each stage: tokenize, queue, compute, encode, total",
    "USAGE": "the tokens that were read, as JSON",
    "x-embedding-shape": "of raw bytes: rows and columns",
    "x-truncated": "where the answer itself has no room to say so: the places of inputs that were cut, with commas; "
    "numbers, or fields' names where inputs come in several fields; of more than 1000, or 6000 bytes, the first, then "
    "`...`",
    "metadata": "of `encoding_format: bytes`: what JSON would say around the vectors, and where each stands",
    "Retry-After": "whole seconds to wait, with 429 and 503",
}

FAILURES = {
    400: "The body cannot be served as it is; `param` names the place. Or the model does not do what is asked",
    401: "No API key, or a wrong one; only where the server asks for keys",
    404: "No model, or no route, of that name",
    405: "The path takes other methods; `Allow` lists them",
    408: "The body did not arrive within `body_timeout`",
    413: "A body, an input or a batch over the limit",
    415: "A compressed body",
    422: "The body does not validate",
    424: "The model does not do this, or failed",
    429: "Too much in flight or in the queue: come back after `Retry-After` seconds",
    500: "The server's own fault, or the custom module's; the log tells more under the answer's `x-request-id`",
    503: "Starting, draining or dead",
    504: "Over `request_timeout`, or over the caller's `X-Request-Timeout`",
}

UNAUTHORIZED = errors.Unauthorized("an API key is needed: send the header Authorization: Bearer KEY")
NOT_READY = errors.NotReady("the model is loading: try again in a moment")
UNKNOWN_MODEL = errors.UnknownModel("model 'other' not found; this server serves 'bge-m3'", param="model")
# What a POST with a body can fail with, by what happened. Each form makes its own status and body of it.
SAMPLES: dict[str, errors.RtpError] = {
    "malformed": errors.InvalidRequest("the body is not valid JSON: it ends too early (byte 12)"),
    "unsupported": errors.UnsupportedTask("this model offers dense, not rerank"),
    "empty": EmptyInput("`inputs` cannot be empty", param="inputs"),
    "no key": UNAUTHORIZED,
    "unknown model": UNKNOWN_MODEL,
    "half a body": BodyTimeout("the body did not arrive within 30 seconds (body_timeout)"),
    "large body": errors.RequestTooLarge(
        "the body is over 33554432 bytes: send fewer inputs at a time, or raise max_body_bytes"
    ),
    "compressed": UnsupportedEncoding("Content-Encoding 'gzip' is not supported: send the JSON body uncompressed"),
    "overloaded": errors.Overloaded("1024 requests are in flight, the most allowed (concurrency_limit)"),
    "failed": errors.EngineFailure("the server failed on this request; its log tells why under 4f2a-1c"),
    "not ready": NOT_READY,
    "late": errors.DeadlineExceeded("the request took longer than 2 seconds (X-Request-Timeout)"),
}
# What is refused before any dialect is known of.
ELSEWHERE: dict[str, errors.RtpError] = {
    "unknown path": UnknownPath("nothing is served at /nowhere; GET /docs lists the routes"),
    "wrong method": MethodNotAllowed("/v1/embeddings does not take GET; it takes POST", allow="POST"),
}
