from p2pfl_proto.v1 import versions_pb2 as _versions_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class FetchModelRequest(_message.Message):
    __slots__ = ("to", "task", "offset", "file_digest", "have_weights")
    TO_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    FILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    HAVE_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    to: bytes
    task: bytes
    offset: int
    file_digest: bytes
    have_weights: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, to: _Optional[bytes] = ..., task: _Optional[bytes] = ..., offset: _Optional[int] = ..., file_digest: _Optional[bytes] = ..., have_weights: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ModelPart(_message.Message):
    __slots__ = ("header", "chunk")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    header: ModelHeader
    chunk: bytes
    def __init__(self, header: _Optional[_Union[ModelHeader, _Mapping]] = ..., chunk: _Optional[bytes] = ...) -> None: ...

class ModelHeader(_message.Message):
    __slots__ = ("peer_id", "manifest", "size_bytes", "file_digest", "offset", "not_modified", "statement")
    PEER_ID_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    FILE_DIGEST_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    NOT_MODIFIED_FIELD_NUMBER: _ClassVar[int]
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    peer_id: bytes
    manifest: bytes
    size_bytes: int
    file_digest: bytes
    offset: int
    not_modified: bool
    statement: _versions_pb2.VersionStatement
    def __init__(self, peer_id: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., size_bytes: _Optional[int] = ..., file_digest: _Optional[bytes] = ..., offset: _Optional[int] = ..., not_modified: _Optional[bool] = ..., statement: _Optional[_Union[_versions_pb2.VersionStatement, _Mapping]] = ...) -> None: ...

class FetchTaskRequest(_message.Message):
    __slots__ = ("to",)
    TO_FIELD_NUMBER: _ClassVar[int]
    to: bytes
    def __init__(self, to: _Optional[bytes] = ...) -> None: ...

class FetchTaskReply(_message.Message):
    __slots__ = ("task",)
    TASK_FIELD_NUMBER: _ClassVar[int]
    task: bytes
    def __init__(self, task: _Optional[bytes] = ...) -> None: ...
