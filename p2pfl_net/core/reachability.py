"""At which addresses this peer is reached: candidates that count once somebody dialled them.

A peer knows the addresses of its interfaces and hears from its boot peer where its calls come from.
Neither says that others get through. A call that arrived here and names the address it dialled does.
"""

from __future__ import annotations

from p2pfl_net.core.ids import Address, is_loopback, parse_ip

LOOPBACK = "127.0.0.1"


class Reachability:
    """The candidate addresses of this peer and which of them are confirmed."""

    def __init__(self, port: int, hosts: tuple[str, ...], advertise: Address | None, limit: int) -> None:
        """`hosts`: IP literals on which this peer listens; `advertise` replaces all learning."""
        self._port = port
        self._limit = limit
        self._advertise = advertise
        self._candidates = [] if advertise else [Address(host, port) for host in dict.fromkeys(hosts)]
        self._confirmed = [advertise] if advertise else []
        self._observed: list[Address] = []
        self._strange: list[Address] = []

    @property
    def confirmed(self) -> tuple[Address, ...]:
        """Known to be reachable (or advertised), those of other machines' use first."""
        return tuple(sorted(self._confirmed, key=lambda address: address.is_loopback))

    def unconfirmed(self) -> tuple[Address, ...]:
        """Addresses that somebody should dial."""
        return tuple(c for c in self._candidates if c not in self._confirmed)[: self._limit]

    def best(self) -> Address:
        """The address to show a person: a confirmed one, else the likeliest candidate."""
        ordered = [*self.confirmed, *sorted(self._candidates, key=lambda address: address.is_loopback)]
        return ordered[0]

    def observed(self, host: str) -> None:
        """A boot peer sees our calls come from `host`: perhaps it gets through there."""
        literal = parse_ip(host)
        if self._advertise is None and literal is not None and not is_loopback(literal):
            address = Address(literal, self._port)
            if address not in self._candidates and len(self._candidates) < 4 * self._limit:
                self._candidates.append(address)
                self._observed.append(address)

    def listen_on(self, hosts: tuple[str, ...]) -> bool:
        """The interfaces are others now. Whether a confirmed address is gone with the old ones, or a new
        one waits to be confirmed."""
        if self._advertise is not None:
            return False
        new = [Address(host, self._port) for host in dict.fromkeys(hosts)]
        fresh = [address for address in new if address not in self._candidates]
        self._observed = [address for address in self._observed if address not in new]
        gone = [address for address in self._candidates if address not in (*new, *self._observed)]
        if gone:  # as others saw us, they may see us no more: to be dialled anew
            gone += self._observed
        lost = [address for address in self._confirmed if address in gone]
        self._candidates = [*new, *self._observed]
        self._confirmed = [address for address in self._confirmed if address not in lost]
        return bool(lost or fresh)

    def confirm(self, dialled: Address) -> bool:
        """A call came in that had dialled `dialled`. Whether that is news.

        Only a candidate can be confirmed, an address of our interfaces or what the boot peer saw: nobody
        else can make us announce a stranger's address. The boot peer is whom the operator trusts.
        """
        if self._advertise is not None:
            return False
        address = (
            Address(LOOPBACK, dialled.port) if dialled.is_loopback and dialled.host != "::1" else dialled
        )
        if address not in self._candidates or address in self._confirmed:
            return False
        if len(self._confirmed) >= self._limit:
            return False
        self._confirmed.append(address)
        return True

    def is_strange(self, dialled: Address) -> bool:
        """Whether a call came in through an address that is none of ours, for the first time, and nobody
        knows a better one: a port map, say. To be told to the operator, who alone may announce it."""
        if self._advertise is not None or dialled.is_loopback or dialled in self._candidates:
            return False
        if any(not address.is_loopback for address in self._confirmed):
            return False
        if dialled in self._strange or len(self._strange) >= self._limit:
            return False
        self._strange.append(dialled)
        return True
