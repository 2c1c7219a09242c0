"""`p2pfl-net get`: a peer's published model into a file, without joining its network.

The bytes collect in `FILE.part`; which file they are of stands in `FILE.part.json`, so that a broken
download goes on where it stopped, also in another run.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from p2pfl_state import atomic
from p2pfl_state.errors import DirectoryUnusable, MalformedFile
from p2pfl_state.fields import Fields, parse_object
from p2pfl_state.layout import StateDir

from p2pfl_net.core.events import FailureKind
from p2pfl_net.core.ids import Address, PeerId
from p2pfl_net.errors import FetchError, MalformedModel, PeerFailed, RemoteError, UsageError
from p2pfl_net.rpc.connections import Credentials
from p2pfl_net.rpc.fetching import Cancellation, ModelClient, Wanted
from p2pfl_net.rpc.following import current_id
from p2pfl_net.rpc.keys import Identity
from p2pfl_net.runtime import rotations
from p2pfl_net.wire.models import ModelHeader

_AGAIN = "; run the same command again to go on"
_FINAL = (FailureKind.FORBIDDEN, FailureKind.INCOMPATIBLE, FailureKind.ABSENT, FailureKind.WRONG_PEER)
"""To go on would end the same way."""
NO_DEADLINE_S = 30 * 86400.0
WHO_TIMEOUT_S = 10.0


@dataclass(frozen=True)
class Part:
    """A download that broke off."""

    data: Path
    note: Path

    @classmethod
    def of(cls, target: Path) -> Part:
        return cls(target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json"))

    def resume_point(self) -> tuple[int, str] | None:
        """(bytes there, digest of the whole file), or None to begin anew."""
        try:
            noted = atomic.read_bounded(self.note, 4096)
            if noted is None:
                return None
            digest = Fields(parse_object(noted, str(self.note)), str(self.note)).digest("file_digest")
            return self.data.stat().st_size, digest
        except (MalformedFile, FileNotFoundError):
            return None

    def remove(self) -> None:
        self.data.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def credentials(state: Path | None, network_key: bytes | None) -> Credentials:
    """Calls as the peer of `state`, or else as a stranger with a key of its own. Raises `StateError`,
    `KeyUnusable`."""
    if state is None:
        return Credentials(Identity.new(), network_key)
    return Credentials(rotations.load(StateDir(state)), network_key)


def get(
    address: Address,
    peer_id: PeerId | None,
    target: Path,
    credentials: Credentials,
    *,
    patience_s: float,
    progress: Callable[[int, int], None],
) -> ModelHeader:
    """Fetches the model that the peer at `address` has published into `target`; with `peer_id`, no other's,
    but for the key that has replaced this one.

    A transfer that breaks is resumed until no byte has come for `patience_s`. Raises `UsageError`,
    `FetchError`; `target` is as it was then.
    """
    try:
        is_folder, has_parent = target.is_dir(), target.parent.is_dir()
    except OSError as error:
        raise UsageError(f"--out {target}: {error.strerror}: name a file that can be made") from None
    if is_folder or not has_parent:
        what = "is a folder" if is_folder else "is in a folder that does not exist"
        raise UsageError(f"--out {target} {what}: name a file in a folder that exists")
    part = Part.of(target)
    noted: str | None = None

    def note_then_progress(received_bytes: int, header: ModelHeader) -> None:
        nonlocal noted
        if noted != header.file_digest:
            noted = header.file_digest
            atomic.write_json(part.note, {"file_digest": noted})
        progress(received_bytes, header.size_bytes)

    client = ModelClient(credentials)
    try:
        named = None if peer_id is None else _now(credentials, address, peer_id)
        wanted = Wanted((address,), NO_DEADLINE_S, to=named, patience_s=patience_s, waits_for_busy=True)
        header = client.fetch(wanted, part.data, Cancellation(), note_then_progress, part.resume_point())
        atomic.settle(part.data, target)
    except MalformedModel as error:
        part.remove()
        raise FetchError(f"{address}: {error}; what came was thrown away") from None
    except RemoteError as error:
        remedy = "" if error.kind in _FINAL else _AGAIN
        raise FetchError(f"{address}: {error}{remedy}") from None
    except (OSError, DirectoryUnusable) as error:
        cause = error if isinstance(error, OSError) else error.__cause__
        reason = cause.strerror if isinstance(cause, OSError) else str(error)
        raise FetchError(
            f"{target} cannot be written ({reason}): make room, or choose another --out"
        ) from None
    finally:
        client.close()
    part.remove()
    return header


def _now(credentials: Credentials, address: Address, named: PeerId) -> PeerId:
    """The id that the named peer has now, or the one given where nobody answers yet. Raises `RemoteError`."""
    try:
        return current_id(credentials, address, named, WHO_TIMEOUT_S)
    except PeerFailed as error:
        if error.kind.is_unreachable:
            return named
        raise
