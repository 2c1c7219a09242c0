from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class VersionStatement(_message.Message):
    __slots__ = ("public_key", "version", "weights", "manifest", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    version: int
    weights: bytes
    manifest: bytes
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., version: _Optional[int] = ..., weights: _Optional[bytes] = ..., manifest: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Equivocation(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: VersionStatement
    second: VersionStatement
    def __init__(self, first: _Optional[_Union[VersionStatement, _Mapping]] = ..., second: _Optional[_Union[VersionStatement, _Mapping]] = ...) -> None: ...

class FetchVersionRequest(_message.Message):
    __slots__ = ("publisher", "version")
    PUBLISHER_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    publisher: bytes
    version: int
    def __init__(self, publisher: _Optional[bytes] = ..., version: _Optional[int] = ...) -> None: ...

class FetchVersionReply(_message.Message):
    __slots__ = ("statement", "manifest")
    STATEMENT_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    statement: VersionStatement
    manifest: bytes
    def __init__(self, statement: _Optional[_Union[VersionStatement, _Mapping]] = ..., manifest: _Optional[bytes] = ...) -> None: ...
