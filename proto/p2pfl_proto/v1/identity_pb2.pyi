from p2pfl_proto.v1 import membership_pb2 as _membership_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class HelloRequest(_message.Message):
    __slots__ = ("protocol", "nonce")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    protocol: _membership_pb2.ProtocolRange
    nonce: bytes
    def __init__(self, protocol: _Optional[_Union[_membership_pb2.ProtocolRange, _Mapping]] = ..., nonce: _Optional[bytes] = ...) -> None: ...

class HelloReply(_message.Message):
    __slots__ = ("protocol", "nonce", "valid_s", "proof", "former")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    VALID_S_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    FORMER_FIELD_NUMBER: _ClassVar[int]
    protocol: _membership_pb2.ProtocolRange
    nonce: bytes
    valid_s: int
    proof: bytes
    former: _containers.RepeatedCompositeFieldContainer[FormerKey]
    def __init__(self, protocol: _Optional[_Union[_membership_pb2.ProtocolRange, _Mapping]] = ..., nonce: _Optional[bytes] = ..., valid_s: _Optional[int] = ..., proof: _Optional[bytes] = ..., former: _Optional[_Iterable[_Union[FormerKey, _Mapping]]] = ...) -> None: ...

class FormerKey(_message.Message):
    __slots__ = ("public_key", "signature")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    signature: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., signature: _Optional[bytes] = ...) -> None: ...

class Token(_message.Message):
    __slots__ = ("public_key", "nonce", "signature", "proof", "former")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    NONCE_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    FORMER_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    nonce: bytes
    signature: bytes
    proof: bytes
    former: _containers.RepeatedCompositeFieldContainer[FormerKey]
    def __init__(self, public_key: _Optional[bytes] = ..., nonce: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., proof: _Optional[bytes] = ..., former: _Optional[_Iterable[_Union[FormerKey, _Mapping]]] = ...) -> None: ...
