"""The descriptors that the server builds are protoc's, and reflection hands them out."""

from pathlib import Path
from typing import Any

import pytest

from rtp_llm.server.grpc import proto
from tests.server.grpc.conftest import Client, Stubs

descriptor_pb2: Any = pytest.importorskip("google.protobuf.descriptor_pb2")


def test_descriptor_is_protocs(descriptor_file: Path) -> None:
    (theirs,) = descriptor_pb2.FileDescriptorSet.FromString(descriptor_file.read_bytes()).file
    text = (Path(proto.__file__).parent / proto.FILE).read_text()
    assert proto.parse(text).SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


def test_messages_are_read_by_both(stubs: Stubs) -> None:
    theirs = stubs.messages.RerankRequest(query="q", texts=["a", ""], raw_scores=True, truncation_direction=1)
    ours = proto.message("RerankRequest").FromString(theirs.SerializeToString())
    assert (ours.query, list(ours.texts), ours.raw_scores, ours.truncation_direction) == ("q", ["a", ""], True, 1)
    assert ours.SerializeToString() == theirs.SerializeToString()


def test_reflection_lists_and_describes(fake: Client) -> None:
    reflection_pb2: Any = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2")
    reflection_grpc: Any = pytest.importorskip("grpc_reflection.v1alpha.reflection_pb2_grpc")
    ask = reflection_grpc.ServerReflectionStub(fake.channel).ServerReflectionInfo
    request = reflection_pb2.ServerReflectionRequest
    questions = [
        request(list_services=""),
        request(file_containing_symbol="tei.v1.Embed"),
        request(file_containing_symbol="grpc.health.v1.Health"),
        request(file_containing_symbol="no.Such"),
    ]
    listed, embed, health, unknown = ask(iter(questions), timeout=10)
    names = {service.name for service in listed.list_services_response.service}
    assert {"tei.v1.Embed", "tei.v1.Rerank", "grpc.health.v1.Health"} <= names
    for answer, package in ((embed, "tei.v1"), (health, "grpc.health.v1")):
        (content,) = answer.file_descriptor_response.file_descriptor_proto
        assert descriptor_pb2.FileDescriptorProto.FromString(content).package == package
    assert unknown.error_response.error_code == 5
