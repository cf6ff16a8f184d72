"""TEI's gRPC API, package tei.v1, in front of the same engine as HTTP; `pip install 'rtp-llm[grpc]'`."""

from rtp_llm.server.grpc.server import GrpcServer

__all__ = ["GrpcServer"]
