"""The picture of collection time against the size of the network."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl_train.plots.curves import Numbers
from p2pfl_train.plots.style import MEAN_COLOUR, WORST_COLOUR, Run, say_empty, whole_numbers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DOT_COLOUR = "#0072B2"
_BOX: dict[str, Any] = {"facecolor": "none", "edgecolor": "#444444", "linewidth": 1.0, "zorder": 3}
_WHISKER: dict[str, Any] = {"color": "#444444", "linewidth": 1.0, "zorder": 3}
CLUSTERED = 20
"""More sizes of the network than this are put together, so that the boxes stay apart."""
RASTERIZED = 2000
"""More dots than this become pixels also in the SVG, which otherwise grows by 100 bytes a dot."""
LOG_RATIO = 30.0
"""A slowest collection of more than this many medians makes the time axis logarithmic."""


def draw_collection(run: Run, figure: Figure) -> None:
    """Seconds from a request to its answer, by the size of the network at that moment."""
    from matplotlib.colors import to_rgba_array
    from matplotlib.lines import Line2D

    axes = figure.subplots()
    axes.set_title("Collection time against network size")
    axes.set_xlabel("peers in the network")
    axes.set_ylabel("from the request to the answer (ms)")
    pairs = [
        (line.network_peers, 1000.0 * line.collection_s)
        for history in run.histories
        for line in (*history.cycles, *history.finals)
        if line.network_peers is not None and line.collection_s is not None
    ]
    if not pairs:
        say_empty(axes, "no collection has been measured yet")
        return
    sizes, times_ms = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    groups = _by_size(sizes, times_ms)
    width = 0.6 * min(np.diff([group.middle for group in groups]), default=1.0)
    jitter = np.random.default_rng(0).uniform(-0.35, 0.35, len(sizes)) * min(width, 1.0)
    crowd = np.array([np.count_nonzero(sizes == size) for size in np.unique(sizes)])
    alpha = np.clip(60 / crowd, 0.12, 0.5)[np.searchsorted(np.unique(sizes), sizes)]
    axes.scatter(
        sizes + jitter,
        times_ms,
        s=9,
        color=to_rgba_array(DOT_COLOUR, alpha),
        linewidths=0,
        zorder=2,
        rasterized=len(sizes) > RASTERIZED,
    )
    middles = [group.middle for group in groups]
    shares = np.array([np.percentile(group.times_ms, (10, 25, 50, 75, 90)) for group in groups]).T
    # Axes.boxplot would load pyplot
    box = axes.bar(middles, shares[3] - shares[1], width, bottom=shares[1], **_BOX)
    axes.vlines(middles, shares[0], shares[1], **_WHISKER)
    axes.vlines(middles, shares[3], shares[4], **_WHISKER)
    (median,) = axes.plot(middles, shares[2], color=MEAN_COLOUR, marker="o", markersize=4, zorder=4)
    (tail,) = axes.plot(
        middles, shares[4], color=WORST_COLOUR, marker="^", markersize=5, linestyle="--", zorder=4
    )
    if times_ms.max() > LOG_RATIO * np.median(times_ms) and times_ms.min() > 0:
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.set_xlim(sizes.min() - 1, sizes.max() + 1)
    whole_numbers(axes.xaxis)
    dot = Line2D([], [], color=DOT_COLOUR, marker=".", linestyle="none", alpha=0.6)
    meanings: dict[str, Any] = {
        f"one collection ({len(sizes):,} in all)": dot,
        "middle half": box,
        f"median (of all: {np.median(times_ms):,.0f} ms)": median,
        f"90th percentile (of all: {np.percentile(times_ms, 90):,.0f} ms)": tail,
    }
    figure.legend(list(meanings.values()), list(meanings), loc="outside lower center", ncols=4)


@dataclass(frozen=True)
class _Group:
    middle: float
    """Mean size of the network, in peers."""
    times_ms: Numbers


def _by_size(sizes: Numbers, times_ms: Numbers) -> list[_Group]:
    """The collections by network size; neighbouring sizes together when there are many."""
    distinct = np.unique(sizes)
    step = 1.0 if len(distinct) <= CLUSTERED else np.ceil((distinct[-1] - distinct[0] + 1) / CLUSTERED)
    place = np.floor((sizes - distinct[0]) / step)
    return [
        _Group(float(sizes[place == index].mean()), times_ms[place == index]) for index in np.unique(place)
    ]
