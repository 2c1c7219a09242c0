"""What leaves this peer: who may have it, and a line for every model that somebody got."""

from __future__ import annotations

import time
from collections.abc import Callable

from p2pfl_state.errors import StateError

from p2pfl_net.core.events import TrustChanged
from p2pfl_net.core.trust import Trust
from p2pfl_net.rpc.ledger import Ledger, Upload
from p2pfl_net.runtime.driver import Driver


class Outgoing:
    """Tells the core and the event log, from any thread."""

    def __init__(
        self, driver: Driver, ledger: Ledger, note: Callable[[str, dict[str, object]], None]
    ) -> None:
        self._driver = driver
        self._ledger = ledger
        self._note = note

    def tell(self, event: str, fields: dict[str, object]) -> None:
        """A line for the event log. The caller's thread must not end by a full disk: the driver's ends the
        daemon."""
        try:
            self._note(event, fields)
        except StateError as error:
            self._driver.post_failure(error)

    def trust_changed(self, trust: Trust) -> None:
        """Transfers to those who may not have the model any more end at once, and so do those from them."""
        self._driver.post(TrustChanged(trust))
        self._ledger.end(lambda caller: not trust.allows(caller))

    def withdrawn(self) -> None:
        """A person has withdrawn the published model."""
        self._ledger.end(lambda caller: True)
        self.tell("model_withdrawn", {})

    def served(self, upload: Upload) -> None:
        """A transfer has ended."""
        assert upload.header is not None
        self.tell(
            "model_served",
            {
                "peer": upload.caller,
                "address": upload.host,
                "version": upload.header.manifest.version,
                "weights": upload.header.manifest.weights,
                "bytes": upload.sent_bytes,
                "complete": upload.is_complete,
                "seconds": round(time.monotonic() - upload.started_at, 4),
            },
        )
