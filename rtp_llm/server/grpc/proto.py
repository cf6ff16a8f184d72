"""tei.proto -> message classes, without generated code.

Generated code is bound to the protobuf release it was made for; descriptors built at run time work with any, and the
file that the server reads is the file that users make their clients from. tests/server/test_grpc_proto.py compares the
result with protoc's.
"""

import re
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "tei.v1"
FILE = "tei.proto"
# The classes exist at run time only.
Message: TypeAlias = Any

_COMMENT = re.compile(r"//.*")
_BLOCK = re.compile(r"(message|enum|service) (\w+) \{([^{}]*)\}")
_FIELD = re.compile(r"(?:(optional|repeated) )?(\w+) (\w+) = (\d+);")
_VALUE = re.compile(r"(\w+) = (\d+);")
_CALL = re.compile(r"rpc (\w+)\((stream )?(\w+)\) returns \((stream )?(\w+)\);")


@cache
def pool() -> Any:
    """A descriptor pool with the file: one of our own, since a client in this process may have its own tei.proto."""
    text = resources.files(__package__).joinpath(FILE).read_text(encoding="utf-8")
    own = descriptor_pool.DescriptorPool()
    own.AddSerializedFile(parse(text).SerializeToString())
    return own


def services() -> dict[str, Any]:
    """The file's service descriptors by full name."""
    return {service.full_name: service for service in pool().FindFileByName(FILE).services_by_name.values()}


@cache
def message(name: str) -> Message:
    """The class of a message."""
    return message_factory.GetMessageClass(pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


def parse(text: str) -> Any:
    """A proto3 file's FileDescriptorProto: messages without nesting, enums, services."""
    file = descriptor_pb2.FileDescriptorProto(name=FILE, package=PACKAGE, syntax="proto3")
    blocks = _BLOCK.findall(_COMMENT.sub("", text))
    kinds = {name: kind for kind, name, _ in blocks}
    for kind, name, body in blocks:
        if kind == "service":
            _add_service(file.service.add(name=name), body)
        elif kind == "enum":
            values = file.enum_type.add(name=name).value
            for value, number in _VALUE.findall(body):
                values.add(name=value, number=int(number))
        else:
            _add_fields(file.message_type.add(name=name), body, kinds)
    return file


def _add_service(service: Any, body: str) -> None:
    for name, client_stream, request, server_stream, answer in _CALL.findall(body):
        method = service.method.add(name=name, input_type=_full(request), output_type=_full(answer))
        # Setting them, be it to false, would differ from protoc.
        if client_stream:
            method.client_streaming = True
        if server_stream:
            method.server_streaming = True


def _add_fields(message_type: Any, body: str, kinds: dict[str, str]) -> None:
    proto = descriptor_pb2.FieldDescriptorProto
    for label, type_, name, number in _FIELD.findall(body):
        field = message_type.field.add(name=name, number=int(number), json_name=_camel(name))
        field.label = proto.LABEL_REPEATED if label == "repeated" else proto.LABEL_OPTIONAL
        if type_ in kinds:
            field.type = proto.TYPE_ENUM if kinds[type_] == "enum" else proto.TYPE_MESSAGE
            field.type_name = _full(type_)
        else:
            field.type = proto.Type.Value(f"TYPE_{type_.upper()}")
        if label == "optional":
            # proto3 knows presence by a oneof of one field.
            field.proto3_optional = True
            field.oneof_index = len(message_type.oneof_decl)
            message_type.oneof_decl.add(name=f"_{name}")


def _full(name: str) -> str:
    return f".{PACKAGE}.{name}"


def _camel(name: str) -> str:
    first, *others = name.split("_")
    return first + "".join(word.capitalize() for word in others)
