"""`make demo`: a small network learns in front of you.

Four peers on this machine, each with 7 of the 10 digits of the data that scikit-learn ships, learn one
model without showing their images to each other, until each knows all ten.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Table

from p2pfl_net.usage import Parser
from scripts import pairs
from scripts.experiment import Member, Network, fresh_folder
from scripts.failures import ScriptFailed, WrongUsage
from scripts.signals import EXIT_INTERRUPTED, StopSignals

FOLDER = Path("state/demo")
PEERS = 4
WANTED = 0.93
"""Every peer must end above this accuracy on all ten digits; alone, a peer cannot pass 0.7."""
SETTLED = 0.96
"""All measured at this or more: time to stop. Above `WANTED`, for a last average moves it a little."""
SHOWN_AT_LEAST_S = 10.0
LONGEST_S = 40.0
"""Unless --seconds says otherwise; from the first cycle of the last peer: what comes before is the machine's
time to load the libraries."""
LONGEST_START_S = 240.0
LINE_S = 3.0
"""Between two plain lines."""
EPILOG = """exit codes: 0 all peers above 93 %; 1 one stayed below; 2 wrong usage; 3 the folder is in use;
130 Ctrl-C"""


def build_parser(program: str) -> argparse.ArgumentParser:
    parser = Parser(program, __doc__, EPILOG)
    parser.add_argument(
        "--out", type=Path, default=FOLDER, metavar="DIR", help=f"folder of the run ({FOLDER})"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=LONGEST_S,
        help=f"learn at most so long; more for a busy machine ({LONGEST_S:g})",
    )
    return parser


def main(program: str, arguments: Sequence[str], signals: StopSignals) -> int:
    """Raises `ScriptFailed`, `StateError`, `TrainError`."""
    options = build_parser(program).parse_args(arguments)
    out, longest_s = options.out, options.seconds
    if not (math.isfinite(longest_s) and longest_s > 0):
        raise WrongUsage(f"SECONDS={longest_s:g} must be above 0 and finite")
    console = Console()
    with fresh_folder(out), Network(out, lambda: signals.insisted) as network:
        console.print(f"{PEERS} peers, each with 7 of the 10 digits, in {out}; Ctrl-C stops them.")
        with Display(console, network) as display:
            _learn(network, display, longest_s, signals)
            if not signals.asked:
                display.note("stopping: each peer takes a last average")
            network.stop(pairs.TRAINER_PATIENCE_S)
            display.show(last=True)
        if signals.asked:
            console.print("stopped; nothing runs any more")
            return EXIT_INTERRUPTED
        console.print(_results(network.members))
        _draw(console, network, out / "plots")
        _judge(network.members, longest_s)
    return 0


def _learn(network: Network, display: Display, longest_s: float, signals: StopSignals) -> None:
    """Starts the peers and watches them until they know enough, time is up or a signal comes."""
    for number in range(1, PEERS + 1):
        train = ["--data", "digits", "--partition", "paper", "--shard", f"{number}/{PEERS}"]
        train.append("--final-evaluation")
        display.note(f"starting peer {number} of {PEERS}")
        if network.start(f"peer-{number}", train, lambda: signals.asked) is None:
            return
    joined_at_s = time.monotonic()
    learning_since_s: float | None = None
    display.note("the trainers start")
    while not signals.asked:
        network.check()
        display.show()
        now_s = time.monotonic()
        figures = [member.watcher.figures for member in network.members]
        if learning_since_s is not None:
            lasted_s = now_s - learning_since_s
            settled = min(seen.accuracy_averaged or 0.0 for seen in figures) >= SETTLED
            if lasted_s >= longest_s or (settled and lasted_s >= SHOWN_AT_LEAST_S):
                return
        elif all(seen.cycle for seen in figures):
            learning_since_s = now_s
            display.note("learning")
        elif now_s - joined_at_s >= LONGEST_START_S:
            return
        time.sleep(pairs.LOOK_S)


class Display:
    """A table that is redrawn on a terminal, plain lines elsewhere. A context manager."""

    def __init__(self, console: Console, network: Network) -> None:
        self._console = console
        self._network = network
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._note = ""
        self._shown_at_s = float("-inf")
        self._started_at_s = time.monotonic()

    def note(self, text: str) -> None:
        """Says what happens now."""
        self._note = text
        if self._live is None:
            self._print(text)
        else:
            self.show()

    def show(self, *, last: bool = False) -> None:
        """Shows the latest figures, on a terminal at every call, elsewhere now and then."""
        now_s = time.monotonic()
        if self._live is None and now_s - self._shown_at_s < LINE_S and not last:
            for member in self._network.members:
                member.watcher.look()
            return
        self._shown_at_s = now_s
        if self._live is not None:
            self._live.update(self._table(last), refresh=True)
            return
        lines = []
        for member in self._network.members:
            seen = member.watcher.look()
            accuracy = _share(seen.accuracy_averaged)
            lines.append(f"{member.name} cycle {seen.cycle}, {seen.peers_known} peers, accuracy {accuracy}")
        self._print("; ".join(lines))

    def _print(self, text: str) -> None:
        seconds = time.monotonic() - self._started_at_s
        self._console.print(f"{seconds:4.0f} s  {text}", markup=False, highlight=False, soft_wrap=True)

    def _table(self, last: bool) -> Table:
        seconds = time.monotonic() - self._started_at_s
        table = Table(
            title=f"{seconds:.0f} s: {'stopped' if last else self._note}",
            caption="accuracy on all ten digits, after averaging",
            title_justify="left",
            caption_justify="left",
        )
        for column in ("peer", "cycle", "peers known", "models averaged", "accuracy"):
            table.add_column(column, justify="left" if column == "peer" else "right", min_width=len(column))
        for member in self._network.members:
            seen = member.watcher.look()
            accuracy = seen.accuracy_averaged
            style = "green" if accuracy is not None and accuracy > WANTED else None
            cells = (str(seen.cycle), str(seen.peers_known), str(seen.models), _share(accuracy))
            table.add_row(member.name, *cells, style=style)
        return table

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def final_accuracy(member: Member) -> float | None:
    """Of the model that a peer ends with, on all dev examples; None for a peer that measured none.

    After the last average, or after local training when that brought no model.
    """
    final = member.watcher.figures.final
    if final is None:
        return None
    return final.accuracy_trained if final.accuracy_averaged is None else final.accuracy_averaged


def _results(members: Sequence[Member]) -> Table:
    table = Table(title="final accuracy on all dev examples of all ten digits", title_justify="left")
    table.add_column("peer")
    for column in ("cycles", "models averaged", "accuracy"):
        table.add_column(column, justify="right")
    for member in members:
        seen = member.watcher.figures
        table.add_row(member.name, str(seen.cycle), str(seen.models), _share(final_accuracy(member)))
    return table


def _draw(console: Console, network: Network, plots: Path) -> None:
    from p2pfl_train.plots.draw import draw  # takes a second to import: the peers start before it

    paths = draw([member.pair.state.root for member in network.members], plots)
    names = ", ".join(path.name for path in paths if path.suffix == ".png")
    console.print(f"plots in {plots}: {names} (and as .svg)", soft_wrap=True, highlight=False)


def _judge(members: Sequence[Member], longest_s: float) -> None:
    below = [member for member in members if (final_accuracy(member) or 0.0) <= WANTED]
    if below:
        names = ", ".join(f"{member.name} ({_share(final_accuracy(member))})" for member in below)
        raise ScriptFailed(
            f"{names} stayed at or below {100 * WANTED:.0f} %: a busy machine learns slowly, try again with "
            f"SECONDS={2 * longest_s:g}; the logs are in {below[0].pair.state.root}"
        )
