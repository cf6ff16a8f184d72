"""Every way of getting a request wrong: the status, the words that help, and the place."""

import sys

import httpx
import pytest

from tests.server.conftest import MAX_BODY_BYTES
from tests.server.fake_engine import FakeEngine

ROUTE = "/v1/embeddings"
# From Python 3.14 on the stack's bytes are counted, of which these levels take too few to be refused.
TOO_DEEP = "nested too deeply" if sys.version_info < (3, 14) else "ends too early"

# name, body, status, fragment of the message, param
BODIES: list[tuple[str, bytes, int, str, str | None]] = [
    ("empty body", b"", 400, "body is empty", None),
    ("blank body", b" \n", 400, "body is empty", None),
    ("null", b"null", 400, "JSON object: expected object, got null", None),
    ("list", b"[]", 400, "got array", None),
    ("string", b'"text"', 400, "got str", None),
    ("number", b"3", 400, "got int", None),
    ("cut short", b'{"input":"a"', 400, "ends too early (byte 12)", None),
    ("single quotes", b"{'input':'a'}", 400, "(byte 1)", None),
    ("trailing text", b'{"input":"a"} x', 400, "trailing characters (byte 15)", None),
    ("trailing comma", b'{"input":"a",}', 400, "not valid JSON", None),
    ("NaN literal", b'{"input":NaN}', 400, "not valid JSON", None),
    ("raw newline in a string", b'{"input":"a\nb"}', 400, "not valid JSON", None),
    ("byte order mark alone", b"\xef\xbb\xbf", 400, "body is empty", None),
    ("two byte order marks", b'\xef\xbb\xbf\xef\xbb\xbf{"input":"a"}', 400, "byte 0", None),
    ("invalid UTF-8", b'{"input":"a\xff"}', 400, "not valid UTF-8 (byte 11)", None),
    ("invalid UTF-8 in a key", b'{"inp\xffut":"a"}', 400, "not valid UTF-8 (byte 5)", None),
    ("latin-1", '{"input":"é"}'.encode("latin-1"), 400, "not valid UTF-8", None),
    ("encoded surrogate", b'{"input":"\xed\xa0\x80"}', 400, "not valid UTF-8", None),
    ("UTF-16", '{"input":"a"}'.encode("utf-16"), 400, "not valid JSON", None),
    ("high surrogate", rb'{"input":"\ud800"}', 400, "half of a surrogate pair (byte 10)", None),
    ("high surrogate before the end", rb'{"input":"\ud800 a"}', 400, "half of a surrogate pair (byte 10)", None),
    ("cut short in a pair", rb'{"input":"\ud83d', 400, "ends too early (byte 16)", None),
    ("low surrogate", rb'{"input":"\udc00"}', 400, "half of a surrogate pair", None),
    ("surrogate before text", rb'{"input":"\ud800abcdefgh"}', 400, "half of a surrogate pair", None),
    ("deep array", b"[" * 50_000, 400, "got array", None),
    ("deep input", b'{"input":' + b"[" * 50_000, 400, "expected int, got array", "input[0][0]"),
    ("deep unknown field", b'{"input":"a","x":' + b"[" * 50_000, 400, TOO_DEEP, None),
    ("deep objects", b'{"input":"a","x":' + b'{"a":' * 10_000, 400, TOO_DEEP, None),
    ("no input", b"{}", 400, "input is missing", "input"),
    ("other field only", b'{"inputs":"a"}', 400, "input is missing", "input"),
    ("null input", b'{"input":null}', 400, "input is missing: the body must be a JSON object", "input"),
    ("number as input", b'{"input":5}', 400, "got int", "input"),
    ("boolean as input", b'{"input":true}', 400, "got bool", "input"),
    ("empty list", b'{"input":[]}', 400, "empty list", "input"),
    ("content part", b'{"input":{"type":"text","text":"a"}}', 400, "texts are strings", "input"),
    ("content parts", b'{"input":["a",{"type":"text"}]}', 400, "an object with `text` is read", "input[1]"),
    ("chat messages", b'{"input":[{"role":"user","content":"a"}]}', 400, "go into `messages`", "input[0]"),
    ("null among texts", b'{"input":["a",null]}', 400, "input[1]", "input[1]"),
    ("float as id", b'{"input":[1.5]}', 400, "got float", "input[0]"),
    ("boolean as id", b'{"input":[true]}', 400, "got bool", "input[0]"),
    ("text, then id", b'{"input":["a",1]}', 400, "input[1] is a token id and input[0] is a string", "input[1]"),
    ("id, then text", b'{"input":[1,2,"a"]}', 400, "input[2] is a string and input[0] is a token id", "input[2]"),
    ("ids, then text", b'{"input":[[1],"a"]}', 400, "input[1] is a string", "input[1]"),
    ("text, then ids", b'{"input":["a","b",[1]]}', 400, "input[2] is a list of token ids", "input[2]"),
    ("text among ids", b'{"input":[[1,"a"]]}', 400, "expected int, got str", "input[0][1]"),
    ("nested ids", b'{"input":[[1,[2]]]}', 400, "got array", "input[0][1]"),
    ("no ids", b'{"input":[[1],[]]}', 400, "input[1] is an empty list", "input[1]"),
    ("id over the vocabulary", b'{"input":[5,100]}', 400, "token id 100 is outside", "input"),
    ("negative id", b'{"input":[[5],[-1]]}', 400, "token id -1 is outside", "input[1]"),
    ("tiktoken ids", b'{"input":[[9906,1917]]}', 400, "check_embedding_ctx_length=False", "input[0]"),
    ("vocabulary size", b'{"input":[[9906]]}', 400, "vocabulary of 100", "input[0]"),
    ("huge id", b'{"input":[100000000000000000000000]}', 400, "token id 1000000", "input"),
    ("endless number", b'{"input":[' + b"9" * 5000 + b"]}", 400, "out of range", "input[0]"),
    ("dimensions below 0", b'{"input":"a","dimensions":-1}', 400, "-1 is not between 1 and 8", "dimensions"),
    ("negative dimensions", b'{"input":"a","dimensions":-4}', 400, "-4 is not between", "dimensions"),
    ("too many dimensions", b'{"input":"a","dimensions":9}', 400, "9 is not between 1 and 8", "dimensions"),
    ("dimensions as text", b'{"input":"a","dimensions":"eight"}', 400, "got str", "dimensions"),
    ("dimensions as boolean", b'{"input":"a","dimensions":true}', 400, "got bool", "dimensions"),
    ("infinite dimensions", b'{"input":"a","dimensions":1e400}', 400, "out of range", "dimensions"),
    ("unknown format", b'{"input":"a","encoding_format":"hex"}', 400, "'float', 'base64'", "encoding_format"),
    ("format as number", b'{"input":"a","encoding_format":1}', 400, "got int", "encoding_format"),
    ("model as number", b'{"input":"a","model":5}', 400, "got int", "model"),
    ("truncate as text", b'{"input":"a","truncate":"no"}', 400, "'NONE', 'START', 'END'", "truncate"),
    ("unknown side", b'{"input":"a","truncation_side":"middle"}', 400, "'left', 'right'", "truncation_side"),
    ("normalize as number", b'{"input":"a","normalize":2}', 400, "got int", "normalize"),
    ("prompt as list", b'{"input":"a","prompt":["p"]}', 400, "got array", "prompt"),
    ("unknown prompt name", b'{"input":"a","prompt_name":"doc"}', 400, "not one of query, passage", "prompt_name"),
    ("extra_configs as list", b'{"input":"a","extra_configs":[]}', 400, "got array", "extra_configs"),
    (
        "unsupported tokenizer setting",
        b'{"input":"a","extra_configs":{"tokenizer_config":{"padding":true}}}',
        400,
        "add_special_tokens is the only key",
        "extra_configs.tokenizer_config.padding",
    ),
    (
        "add_special_tokens as text",
        b'{"input":"a","extra_configs":{"tokenizer_config":{"add_special_tokens":"no"}}}',
        400,
        "expected bool or null, got 'no'",
        "extra_configs.tokenizer_config.add_special_tokens",
    ),
    ("too many texts", b'{"input":["a"' + b',"a"' * 200 + b"]}", 413, "201 inputs are over the limit of 200", "input"),
    ("body too large", b'{"input":"' + b"a" * MAX_BODY_BYTES + b'"}', 413, "max_body_bytes", None),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "status", "fragment", "param"), [case[1:] for case in BODIES], ids=[c[0] for c in BODIES]
)
def test_bad_body(
    client: httpx.Client, engine: FakeEngine, body: bytes, status: int, fragment: str, param: str | None
) -> None:
    answer = client.post(ROUTE, content=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert fragment in error["message"]
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert not engine.requests


@pytest.mark.parametrize("body", ['{"input":"a"}', '{"input":["a","b"]}'])
@pytest.mark.parametrize("pieces", [1, 2])
def test_a_byte_order_mark_is_passed_over(client: httpx.Client, body: str, pieces: int) -> None:
    content = body.encode("utf-8-sig")
    answer = client.post(ROUTE, content=content if pieces == 1 else iter([content[:2], content[2:]]))
    assert answer.status_code == 200 and answer.content == client.post(ROUTE, content=body).content


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "x-unknown"])
def test_compressed_body(client: httpx.Client, encoding: str) -> None:
    answer = client.post(ROUTE, content=b"\x1f\x8b", headers={"content-encoding": encoding})
    assert answer.status_code == 415
    assert encoding in answer.json()["error"]["message"]


def test_chunked_body_too_large(client: httpx.Client) -> None:
    answer = client.post(ROUTE, content=(b"a" * 1024 for _ in range(100)))
    assert answer.status_code == 413
    assert answer.json()["error"]["code"] == "request_too_large"


def test_body_at_the_limit(client: httpx.Client) -> None:
    frame = b'{"input":""}'
    body = b'{"input":"' + b"a" * (MAX_BODY_BYTES - len(frame)) + b'"}'
    assert client.post(ROUTE, content=body).status_code == 200
    assert client.post(ROUTE, content=body + b" ").status_code == 413


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/embeddings", "POST"),
        ("HEAD", "/v1/embeddings", "POST"),
        ("PUT", "/embeddings", "POST"),
        ("DELETE", "/v1/models", "GET, HEAD"),
        ("POST", "/v1/models", "GET, HEAD"),
        ("PATCH", "/health", "GET, HEAD, POST"),
        ("POST", "/metrics", "GET, HEAD"),
    ],
)
def test_wrong_method(client: httpx.Client, method: str, path: str, allow: str) -> None:
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allow)
    if method != "HEAD":
        assert answer.json()["error"]["code"] == "method_not_allowed"


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v3/embed", "/%ff", "/v1/embeddings/x", "/" + "x" * 5000])
def test_unknown_path(client: httpx.Client, path: str) -> None:
    answer = client.post(path)
    assert answer.status_code == 404
    assert answer.json()["error"]["code"] == "unknown_path"


def test_unknown_model(client: httpx.Client) -> None:
    answer = client.get("/v1/models/other/model")
    assert (answer.status_code, answer.json()["error"]["code"]) == (404, "model_not_found")
    assert "fake/model" in answer.json()["error"]["message"]
