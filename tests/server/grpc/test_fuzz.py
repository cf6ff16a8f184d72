"""Messages as bytes: right ones, damaged ones and noise, to every method. No answer is a fault of the server's."""

from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.grpc.conftest import Client, Stubs

grpc: Any = pytest.importorskip("grpc")
HANG = 2.0  # seconds
METHODS = [
    "Embed/Embed", "Embed/EmbedStream", "Embed/EmbedSparse", "Embed/EmbedSparseStream", "Embed/EmbedAll",
    "Embed/EmbedAllStream", "Predict/Predict", "Predict/PredictPair", "Predict/PredictStream",
    "Predict/PredictPairStream", "Rerank/Rerank", "Rerank/RerankStream", "Tokenize/Tokenize",
    "Tokenize/TokenizeStream", "Tokenize/Decode", "Tokenize/DecodeStream", "Info/Info",
]  # fmt: skip
FAULTS = {grpc.StatusCode.UNKNOWN, grpc.StatusCode.DATA_LOSS, grpc.StatusCode.UNAVAILABLE}
quick = settings(max_examples=300, phases=[Phase.generate], suppress_health_check=list(HealthCheck), database=None)


def right_ones(stubs: Stubs) -> list[bytes]:
    m = stubs.messages
    made = [
        m.EmbedRequest(inputs="a text", normalize=True, truncate=True),
        m.EmbedSparseRequest(inputs="a text"),
        m.PredictPairRequest(inputs=["a", "b"]),
        m.RerankRequest(query="a", texts=["b", "c"]),
        m.EncodeRequest(inputs="a text"),
        m.DecodeRequest(ids=[5, 6]),
    ]
    return [one.SerializeToString() for one in made]


@quick
@given(data=st.data())
def test_messages(fake: Client, stubs: Stubs, data: st.DataObject) -> None:
    method = data.draw(st.sampled_from(METHODS))
    right = data.draw(st.sampled_from(right_ones(stubs)))
    cut = data.draw(st.integers(0, len(right)))
    damaged = right[:cut] + data.draw(st.binary(max_size=6)) + right[cut + data.draw(st.integers(0, 3)) :]
    sent = data.draw(st.sampled_from([right, damaged, damaged * 50, data.draw(st.binary(max_size=200))]))
    metadata = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(["x-request-id", "x-priority", "x-model", "authorization", "x-request-timeout"]),
                st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=20),
            ),
            max_size=2,
        )
    )
    try:
        if method.endswith("Stream"):
            list(fake.channel.stream_stream(f"/tei.v1.{method}")(iter([sent, right]), timeout=HANG, metadata=metadata))
        else:
            fake.channel.unary_unary(f"/tei.v1.{method}")(sent, timeout=HANG, metadata=metadata)
    except grpc.RpcError as error:
        assert error.code() not in FAULTS, (method, sent, error)
        assert error.code() is not grpc.StatusCode.DEADLINE_EXCEEDED or dict(metadata).get("x-request-timeout")
        assert "Traceback" not in error.details() and ".py" not in error.details()
