from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrustStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRUST_STATUS_UNSPECIFIED: _ClassVar[TrustStatus]
    TRUST_STATUS_NOTED: _ClassVar[TrustStatus]
    TRUST_STATUS_APPROVED: _ClassVar[TrustStatus]
TRUST_STATUS_UNSPECIFIED: TrustStatus
TRUST_STATUS_NOTED: TrustStatus
TRUST_STATUS_APPROVED: TrustStatus

class TrustRequest(_message.Message):
    __slots__ = ("to", "reason")
    TO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    to: bytes
    reason: str
    def __init__(self, to: _Optional[bytes] = ..., reason: _Optional[str] = ...) -> None: ...

class TrustReply(_message.Message):
    __slots__ = ("status",)
    STATUS_FIELD_NUMBER: _ClassVar[int]
    status: TrustStatus
    def __init__(self, status: _Optional[_Union[TrustStatus, str]] = ...) -> None: ...
