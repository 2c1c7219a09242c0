"""Draws the four pictures of a run from the state directories of its peers.

They are those of the paper 'P2PFL: Peer to Peer Federated Learning System' (Laws & Vosburg): accuracy
over time with fit lines, training cycles over time, known peers over time, and the time of a
collection against the size of the network.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from p2pfl_train.errors import UsageError
from p2pfl_train.plots.collection import draw_collection
from p2pfl_train.plots.pictures import draw_accuracy, draw_cycles, draw_known_peers
from p2pfl_train.plots.records import origin, read_histories
from p2pfl_train.plots.style import SIZE_INCHES, Clock, Palette, Run, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES: Mapping[str, Callable[[Run, Figure], None]] = {
    "accuracy": draw_accuracy,
    "cycles": draw_cycles,
    "known_peers": draw_known_peers,
    "collection": draw_collection,
}
"""By the name of the file."""


def draw(dirs: Sequence[Path], out: Path) -> list[Path]:
    """Draws the four pictures of the peers in `dirs` into the folder `out`, each as PNG and SVG.

    Returns the eight files. A picture for which there is no data says so in its place. Raises
    `DataError` when one of `dirs` is not a directory or none holds a measurement, `UsageError` when
    `out` cannot be written, `StateError` when a state directory cannot be read.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    histories = read_histories(dirs)
    start = origin(histories)
    length_s = max(time for history in histories for time in history.times) - start
    run = Run(histories, Clock(start, length_s), Palette(tuple(history.name for history in histories)))
    written: list[Path] = []
    for name, picture in PICTURES.items():
        with styled():
            figure = Figure(figsize=SIZE_INCHES, layout="constrained")
            FigureCanvasAgg(figure)
            picture(run, figure)
            written += _save(figure, out, name)
    return written


def _save(figure: Figure, out: Path, name: str) -> list[Path]:
    paths = [out / f"{name}.png", out / f"{name}.svg"]
    try:
        out.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], format="png", metadata={"Software": None})
        figure.savefig(paths[1], format="svg", metadata={"Date": None})
    except OSError as error:
        raise UsageError(
            f"cannot write the pictures into {out} ({error.strerror}): choose another --out DIR"
        ) from error
    return paths
