"""Whose models a round may collect: live peers of one task and of our tags, whoever told us of them.

A liar may announce a thousand peers. Those that we have called ourselves count in full, and those of whom a
machine told us that the operator named; of the others, each source has a bounded number in the draw, and the
rest come last, when nobody else is left. A liar may as well say of all others that they do not answer: whom
others suspect stays in the draw until our own probe fails.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from p2pfl_net.core.events import Ask
from p2pfl_net.core.ids import Address, PeerId, TaskDigest
from p2pfl_net.core.messages import Record, Status
from p2pfl_net.core.params import Params
from p2pfl_net.core.table import Table


@dataclass(frozen=True, slots=True)
class Candidates:
    """Who may be asked, and who of them only in the end."""

    task: TaskDigest | None
    addresses: dict[PeerId, tuple[Address, ...]]
    reserve: frozenset[PeerId] = frozenset()
    suspects: frozenset[PeerId] = frozenset()
    """Whom we could not reach ourselves. Asked where nobody else brings a model: they may well live, as all
    do whom two halves of a network suspect in the moment in which they meet again."""
    members: int = 0
    """Live peers that may be of the task, of whom a share may lie: also those that publish nothing yet, that
    are suspect, or that are not asked now. Each bounded source brings in a bounded number here too."""


def candidates(
    ask: Ask,
    me: Record,
    table: Table,
    params: Params,
    random: Random,
    is_allowed: Callable[[PeerId], bool] = lambda peer_id: True,
    is_asked: Callable[[PeerId], bool] = lambda peer_id: True,
) -> Candidates:
    """The candidates of a round; `is_allowed`: whose models may come at all, `is_asked`: whose now."""
    tags = frozenset(me.tags)
    ours = [r for r in table.live_records() if tags.issubset(r.tags) and is_allowed(r.peer_id)]
    serving = [record for record in ours if record.published and is_asked(record.peer_id)]
    alive = [record for record in serving if not _out_of_reach(record, table)]
    task = choose_task(ask.task, [record.task for record in alive or serving if record.task], random)
    fitting = [record for record in serving if record.task == task]
    suspects = [record.peer_id for record in fitting if _out_of_reach(record, table)]
    others = [record.peer_id for record in fitting if not _out_of_reach(record, table)]
    limit = params.collected_hearsay * ask.fan_out
    reserve = _beyond_share(others, table, limit, random) | _beyond_share(suspects, table, limit, random)
    addresses = {record.peer_id: table.addresses(record.peer_id) for record in fitting}
    members = [record.peer_id for record in ours if not record.published or record.task == task]
    counted = len(members) - len(_beyond_share(members, table, limit, random))
    return Candidates(task, addresses, frozenset(reserve), frozenset(suspects), counted)


def _out_of_reach(record: Record, table: Table) -> bool:
    """Whether a peer is suspected, and not on others' word alone."""
    if record.status is not Status.SUSPECT:
        return False
    suspicion = table.suspicion(record.peer_id)
    return suspicion is None or suspicion.probed


def _beyond_share(peer_ids: Sequence[PeerId], table: Table, limit: int, random: Random) -> set[PeerId]:
    """Of each bounded source's peers, those beyond `limit`."""
    hearsay: defaultdict[str, list[PeerId]] = defaultdict(list)
    for peer_id in peer_ids:
        source = table.hearsay.bounded_source(peer_id)
        if source is not None:
            hearsay[source].append(peer_id)
    return {
        peer_id
        for brought in hearsay.values()
        if len(brought) > limit
        for peer_id in random.sample(sorted(brought), len(brought) - limit)
    }


def choose_task(
    wanted: TaskDigest | None, offered: Sequence[TaskDigest], random: Random
) -> TaskDigest | None:
    """The task to collect: the one asked for, or that of a random peer that offers one."""
    if wanted is not None:
        return wanted
    return random.choice(offered) if offered else None
