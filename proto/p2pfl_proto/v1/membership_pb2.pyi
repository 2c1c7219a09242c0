from p2pfl_proto.v1 import versions_pb2 as _versions_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PeerStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PEER_STATUS_UNSPECIFIED: _ClassVar[PeerStatus]
    PEER_STATUS_ALIVE: _ClassVar[PeerStatus]
    PEER_STATUS_SUSPECT: _ClassVar[PeerStatus]
    PEER_STATUS_DEAD: _ClassVar[PeerStatus]
    PEER_STATUS_LEFT: _ClassVar[PeerStatus]
PEER_STATUS_UNSPECIFIED: PeerStatus
PEER_STATUS_ALIVE: PeerStatus
PEER_STATUS_SUSPECT: PeerStatus
PEER_STATUS_DEAD: PeerStatus
PEER_STATUS_LEFT: PeerStatus

class ProtocolRange(_message.Message):
    __slots__ = ("lowest", "highest")
    LOWEST_FIELD_NUMBER: _ClassVar[int]
    HIGHEST_FIELD_NUMBER: _ClassVar[int]
    lowest: int
    highest: int
    def __init__(self, lowest: _Optional[int] = ..., highest: _Optional[int] = ...) -> None: ...

class Address(_message.Message):
    __slots__ = ("host", "port")
    HOST_FIELD_NUMBER: _ClassVar[int]
    PORT_FIELD_NUMBER: _ClassVar[int]
    host: str
    port: int
    def __init__(self, host: _Optional[str] = ..., port: _Optional[int] = ...) -> None: ...

class RecordContent(_message.Message):
    __slots__ = ("incarnation", "left", "addresses", "local", "task", "published", "tags")
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    LEFT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    TASK_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    incarnation: int
    left: bool
    addresses: _containers.RepeatedCompositeFieldContainer[Address]
    local: bytes
    task: bytes
    published: bool
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, incarnation: _Optional[int] = ..., left: _Optional[bool] = ..., addresses: _Optional[_Iterable[_Union[Address, _Mapping]]] = ..., local: _Optional[bytes] = ..., task: _Optional[bytes] = ..., published: _Optional[bool] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class LocalAddresses(_message.Message):
    __slots__ = ("salt", "addresses")
    SALT_FIELD_NUMBER: _ClassVar[int]
    ADDRESSES_FIELD_NUMBER: _ClassVar[int]
    salt: bytes
    addresses: _containers.RepeatedCompositeFieldContainer[Address]
    def __init__(self, salt: _Optional[bytes] = ..., addresses: _Optional[_Iterable[_Union[Address, _Mapping]]] = ...) -> None: ...

class PeerRecord(_message.Message):
    __slots__ = ("public_key", "content", "signature", "local", "status", "suspected_by")
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FIELD_NUMBER: _ClassVar[int]
    SIGNATURE_FIELD_NUMBER: _ClassVar[int]
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    SUSPECTED_BY_FIELD_NUMBER: _ClassVar[int]
    public_key: bytes
    content: bytes
    signature: bytes
    local: bytes
    status: PeerStatus
    suspected_by: bytes
    def __init__(self, public_key: _Optional[bytes] = ..., content: _Optional[bytes] = ..., signature: _Optional[bytes] = ..., local: _Optional[bytes] = ..., status: _Optional[_Union[PeerStatus, str]] = ..., suspected_by: _Optional[bytes] = ...) -> None: ...

class Sender(_message.Message):
    __slots__ = ("protocol", "record", "model_version", "candidates")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    RECORD_FIELD_NUMBER: _ClassVar[int]
    MODEL_VERSION_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    protocol: ProtocolRange
    record: PeerRecord
    model_version: int
    candidates: _containers.RepeatedCompositeFieldContainer[Address]
    def __init__(self, protocol: _Optional[_Union[ProtocolRange, _Mapping]] = ..., record: _Optional[_Union[PeerRecord, _Mapping]] = ..., model_version: _Optional[int] = ..., candidates: _Optional[_Iterable[_Union[Address, _Mapping]]] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("sender", "dialled", "records", "to")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    DIALLED_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    dialled: Address
    records: _containers.RepeatedCompositeFieldContainer[PeerRecord]
    to: bytes
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., dialled: _Optional[_Union[Address, _Mapping]] = ..., records: _Optional[_Iterable[_Union[PeerRecord, _Mapping]]] = ..., to: _Optional[bytes] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("sender", "observed_host", "records")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    OBSERVED_HOST_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    observed_host: str
    records: _containers.RepeatedCompositeFieldContainer[PeerRecord]
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., observed_host: _Optional[str] = ..., records: _Optional[_Iterable[_Union[PeerRecord, _Mapping]]] = ...) -> None: ...

class PingRequest(_message.Message):
    __slots__ = ("sender", "to", "dialled", "updates")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    DIALLED_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    to: bytes
    dialled: Address
    updates: _containers.RepeatedCompositeFieldContainer[PeerRecord]
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., to: _Optional[bytes] = ..., dialled: _Optional[_Union[Address, _Mapping]] = ..., updates: _Optional[_Iterable[_Union[PeerRecord, _Mapping]]] = ...) -> None: ...

class PingReply(_message.Message):
    __slots__ = ("sender", "updates")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    updates: _containers.RepeatedCompositeFieldContainer[PeerRecord]
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., updates: _Optional[_Iterable[_Union[PeerRecord, _Mapping]]] = ...) -> None: ...

class RelayRequest(_message.Message):
    __slots__ = ("sender", "to", "dialled", "target")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    DIALLED_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    to: bytes
    dialled: Address
    target: bytes
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., to: _Optional[bytes] = ..., dialled: _Optional[_Union[Address, _Mapping]] = ..., target: _Optional[bytes] = ...) -> None: ...

class RelayReply(_message.Message):
    __slots__ = ("sender", "reached", "updates")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    REACHED_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    reached: bool
    updates: _containers.RepeatedCompositeFieldContainer[PeerRecord]
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., reached: _Optional[bool] = ..., updates: _Optional[_Iterable[_Union[PeerRecord, _Mapping]]] = ...) -> None: ...

class AccuseRequest(_message.Message):
    __slots__ = ("sender", "to", "dialled", "proof")
    SENDER_FIELD_NUMBER: _ClassVar[int]
    TO_FIELD_NUMBER: _ClassVar[int]
    DIALLED_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    to: bytes
    dialled: Address
    proof: _versions_pb2.Equivocation
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ..., to: _Optional[bytes] = ..., dialled: _Optional[_Union[Address, _Mapping]] = ..., proof: _Optional[_Union[_versions_pb2.Equivocation, _Mapping]] = ...) -> None: ...

class AccuseReply(_message.Message):
    __slots__ = ("sender",)
    SENDER_FIELD_NUMBER: _ClassVar[int]
    sender: Sender
    def __init__(self, sender: _Optional[_Union[Sender, _Mapping]] = ...) -> None: ...
