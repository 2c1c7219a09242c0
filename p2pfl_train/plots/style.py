"""How the pictures look: colours that colour-blind readers tell apart, the time axis, many peers at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from p2pfl_train.plots.curves import Numbers, carry_forward
from p2pfl_train.plots.records import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

SIZE_INCHES = (9.6, 5.4)
MANY = 12
"""More peers than this share one colour map, and the mean and the last of them stand out."""

# Okabe & Ito, "Color Universal Design" (2008), without the yellow, which is too pale for a line on white
OKABE_ITO = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_DASHES = ("-", (0, (5, 1.6)))
"""The second round through the colours is dashed."""
MEAN_COLOUR = "#000000"
WORST_COLOUR = "#D55E00"
_GRID_POINTS = 400

_STYLE: dict[Any, Any] = {
    "axes.axisbelow": True,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.labelsize": 11,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 13,
    "axes.titleweight": "bold",
    "figure.dpi": 100,
    "figure.facecolor": "white",
    "font.size": 10,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.8,
    "legend.fontsize": 9,
    "legend.frameon": False,
    "savefig.dpi": 150,
    "svg.hashsalt": "p2pfl",  # equal input gives equal files
}


@contextmanager
def styled() -> Iterator[None]:
    """Sets the style for what is drawn and saved inside.

    `matplotlib.rc_context` would also read the name of the interactive backend, and so load pyplot.
    """
    from matplotlib import rcParams

    before = {key: rcParams[key] for key in _STYLE}
    rcParams.update(_STYLE)
    try:
        yield
    finally:
        rcParams.update(before)


@dataclass(frozen=True)
class Series:
    """One peer's values over time."""

    index: int
    """Place of the peer among all that were given: its colour."""
    times: Numbers
    """In the unit of the axis, ascending, of shape (points,)."""
    values: Numbers
    """Of shape (points,)."""
    breaks: tuple[float, ...] = ()
    """Times after which nothing was measured until the next point: the peer was down."""

    def broken(self, *, steps: bool) -> tuple[Numbers, Numbers]:
        """Times and values with a NaN at each break; a step holds its value until there."""
        times, values = self.times, self.values
        for moment in self.breaks:
            at = int(np.searchsorted(times, moment, side="right"))
            if 0 < at < len(times):
                held = [values[at - 1], np.nan] if steps else [np.nan]
                times = np.insert(times, at, [moment] * len(held))
                values = np.insert(values, at, held)
        return times, values


@dataclass(frozen=True)
class Clock:
    """The time axis of a set of pictures: from the first line of any peer, in a unit that reads well."""

    origin: float
    """Unix seconds."""
    length_s: float

    @property
    def unit(self) -> str:
        return "h" if self.length_s > 3 * 3600 else "min" if self.length_s > 300 else "s"

    def __call__(self, times: Sequence[float]) -> Numbers:
        """Unix seconds to the unit of the axis."""
        seconds = {"s": 1.0, "min": 60.0, "h": 3600.0}[self.unit]
        return (np.array(times, dtype=np.float64) - self.origin) / seconds

    def label(self, axes: Axes) -> None:
        name = {"s": "seconds", "min": "minutes", "h": "hours"}[self.unit]
        axes.set_xlabel(f"time since the first start ({name})")
        end = float(self([self.origin + self.length_s])[0]) or 1.0
        axes.set_xlim(-0.01 * end, 1.02 * end)


@dataclass(frozen=True)
class Palette:
    """Colours and dashes for the peers, by their order."""

    names: tuple[str, ...]

    @property
    def many(self) -> bool:
        return len(self.names) > MANY

    def line(self, index: int) -> dict[str, Any]:
        """Keyword arguments of `Axes.plot` for the peer of this index."""
        if self.many:
            from matplotlib import colormaps

            return {"color": colormaps["viridis"](self._place(index)), "linestyle": "-"}
        return {
            "color": OKABE_ITO[index % len(OKABE_ITO)],
            "linestyle": _DASHES[index // len(OKABE_ITO)],
        }

    def colour(self, index: int) -> Any:
        return self.line(index)["color"]

    def _place(self, index: int) -> float:
        return 0.9 * index / max(1, len(self.names) - 1)  # the last tenth of viridis is too pale

    def colour_bar(self, figure: Figure, panels: Sequence[Axes]) -> None:
        """Tells which colour is which peer, when there are too many for a legend."""
        from matplotlib import colormaps
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import ListedColormap, Normalize

        last = len(self.names) - 1
        colours = [colormaps["viridis"](self._place(index)) for index in range(last + 1)]
        mappable = ScalarMappable(Normalize(-0.5, last + 0.5), ListedColormap(colours))
        bar = figure.colorbar(mappable, ax=list(panels), pad=0.02, aspect=35)
        ticks = np.unique(np.linspace(0, last, min(last + 1, 9)).round().astype(int))
        labels = [shorten(self.names[tick], 16) for tick in ticks]
        bar.set_ticks([float(tick) for tick in ticks], labels=labels)
        bar.ax.tick_params(length=0, labelsize=8)
        bar.ax.grid(visible=False)
        bar.set_label("peer")


@dataclass(frozen=True)
class Run:
    """What the pictures are drawn from."""

    histories: Sequence[History]
    clock: Clock
    palette: Palette

    @property
    def end(self) -> float:
        """The end of the time axis in its unit."""
        return float(self.clock([self.clock.origin + self.clock.length_s])[0])


def shorten(name: str, limit: int = 24) -> str:
    """The name, its middle left out when it is longer than `limit` characters."""
    if len(name) <= limit:
        return name
    head = limit // 2
    return f"{name[:head]}…{name[head + 1 - limit :]}"


@dataclass(frozen=True)
class Together:
    """Mean and minimum over peers, each at its last value, from the first value of any on."""

    times: Numbers
    mean: Numbers
    least: Numbers


def together(series: Sequence[Series], end: float) -> Together:
    """`series` (at least one, none empty) up to `end` in the unit of the axis."""
    start = min(float(one.times[0]) for one in series)
    grid = np.linspace(start, max(end, start), _GRID_POINTS)
    carried = np.array([carry_forward(one.times, one.values, grid) for one in series])
    return Together(grid, np.nanmean(carried, axis=0), np.nanmin(carried, axis=0))


def say_empty(axes: Axes, text: str) -> None:
    """A picture without data says so."""
    axes.grid(visible=False)
    axes.text(
        0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color="#555555", fontsize=12
    )


def whole_numbers(axis: Axis) -> None:
    """Ticks at whole numbers only, for an axis that counts."""
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
