"""The four pictures: what is drawn, that it is readable from 2 to 50 peers, and what cannot be drawn."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from p2pfl_train.errors import DataError, UsageError
from p2pfl_train.plots.collection import draw_collection
from p2pfl_train.plots.draw import PICTURES, draw
from p2pfl_train.plots.pictures import draw_accuracy, draw_cycles, draw_known_peers
from p2pfl_train.plots.records import origin, read_histories
from p2pfl_train.plots.style import SIZE_INCHES, Clock, Palette, Run, styled
from tests.processes import TORCH_PATIENCE_S
from tests.train.synthetic_run import START, write_lines, write_run

PEER_COUNTS = (2, 12, 13, 50)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Path]]:
    folder = tmp_path_factory.mktemp("runs")
    return {count: write_run(folder / str(count), count, minutes=4.0, stagger_s=1.5) for count in PEER_COUNTS}


@pytest.fixture
def figure() -> Iterator[Figure]:
    with styled():
        made = Figure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(made)
        yield made


def load(dirs: list[Path]) -> Run:
    histories = read_histories(dirs)
    start = origin(histories)
    length_s = max(time for history in histories for time in history.times) - start
    return Run(histories, Clock(start, length_s), Palette(tuple(history.name for history in histories)))


def cycle(time: float, number: int, **fields: Any) -> dict[str, Any]:
    return {"time": START + time, "cycle": number, **fields}


def joined(time: float, peers: int) -> dict[str, Any]:
    return {"time": START + time, "event": "peer_joined", "peers": peers}


def renderer_of(figure: Figure) -> Any:
    figure.canvas.draw()
    assert isinstance(figure.canvas, FigureCanvasAgg)
    return figure.canvas.renderer


def test_four_pictures_as_png_and_svg(runs: dict[int, list[Path]], tmp_path: Path) -> None:
    written = draw(runs[2], tmp_path / "new" / "out")
    names = [
        f"{name}.{kind}"
        for name in ("accuracy", "cycles", "known_peers", "collection")
        for kind in ("png", "svg")
    ]
    assert [path.name for path in written] == names
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(names)
    for path in written:
        if path.suffix == ".png":
            data = path.read_bytes()
            assert data[:8] == b"\x89PNG\r\n\x1a\n"
            assert int.from_bytes(data[16:20]) >= 1200  # pixels across
        else:
            assert ET.parse(path).getroot().tag.endswith("svg")


def test_same_input_gives_same_files(runs: dict[int, list[Path]], tmp_path: Path) -> None:
    first = draw(runs[2], tmp_path / "a")
    again = draw(runs[2], tmp_path / "b")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in again]


@pytest.mark.timeout(300)
def test_matplotlib_comes_late_and_without_pyplot(runs: dict[int, list[Path]], tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from p2pfl_train.plots.draw import draw\n"
        "assert 'matplotlib' not in sys.modules\n"
        "draw([pathlib.Path(sys.argv[1])], pathlib.Path(sys.argv[2]))\n"
        "assert 'matplotlib.pyplot' not in sys.modules\n"
    )
    command = [sys.executable, "-W", "error", "-c", code, str(runs[2][0]), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TORCH_PATIENCE_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("count", PEER_COUNTS)
@pytest.mark.parametrize("name", PICTURES)
def test_nothing_overlaps(name: str, count: int, runs: dict[int, list[Path]], figure: Figure) -> None:
    PICTURES[name](load(runs[count]), figure)
    renderer = renderer_of(figure)
    axes_boxes = [axes.get_tightbbox(renderer) for axes in figure.axes]
    legend_boxes = [legend.get_window_extent(renderer) for legend in figure.legends]
    assert axes_boxes
    for box in legend_boxes:
        assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert figure.bbox.y0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(axes_box is not None and box.overlaps(axes_box) for axes_box in axes_boxes)
    assert not any(box.overlaps(other) for box, other in pairwise(legend_boxes))
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            boxes = [label.get_window_extent(renderer) for label in labels]
            assert not any(box.overlaps(other) for box, other in pairwise(boxes))
        assert axes.get_window_extent(renderer).height > 0.3 * figure.bbox.height


def test_few_peers_have_a_look_and_a_name_each(runs: dict[int, list[Path]], figure: Figure) -> None:
    run = load(runs[12])
    looks = {str(sorted(run.palette.line(index).items())) for index in range(12)}
    assert len(looks) == 12
    draw_cycles(run, figure)
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert texts == [str(8000 + index) for index in range(12)]


def test_many_peers_share_a_colour_map_and_mean_and_least_stand_out(tmp_path: Path, figure: Figure) -> None:
    dirs = [
        write_lines(tmp_path / f"{index:02}", [cycle(0, 0), cycle(100, index + 1)], []) for index in range(13)
    ]
    draw_cycles(load(dirs), figure)
    labelled = {str(line.get_label()): line for line in figure.axes[0].lines}
    assert np.asarray(labelled["mean of all peers"].get_ydata())[-1] == 7.0
    assert np.asarray(labelled["fewest of any peer"].get_ydata())[-1] == 1.0
    bar = figure.axes[1]
    names = [text.get_text() for text in bar.get_yticklabels()]
    assert (names[0], names[-1]) == ("00", "12")


def test_accuracy_line_dots_fit_star_and_zoom(tmp_path: Path, figure: Figure) -> None:
    metrics = [
        cycle(
            time,
            time,
            accuracy_averaged=(averaged := 0.98 - 0.9 / (1 + time / 5) ** 2),
            accuracy_trained=averaged - 0.02,
        )
        for time in range(100)
    ]
    metrics.append({**cycle(101, 100), "final": True, "accuracy_averaged": 0.97})
    draw_accuracy(load([write_lines(tmp_path / "8000", metrics, [])]), figure)
    whole, zoomed = figure.axes
    assert whole.get_ylim()[0] <= 0.06
    assert zoomed.get_ylim()[0] == 0.95
    dots, line, fit, star = whole.lines
    assert list(np.asarray(line.get_ydata())) == [record["accuracy_averaged"] for record in metrics[:-1]]
    assert list(np.asarray(dots.get_ydata())) == [record["accuracy_trained"] for record in metrics[:-1]]
    times = np.asarray(fit.get_xdata())
    assert np.abs(np.asarray(fit.get_ydata()) - (0.98 - 0.9 / (1 + times / 5) ** 2)).max() < 0.02
    assert (list(np.asarray(star.get_xdata())), list(np.asarray(star.get_ydata()))) == ([101.0], [0.97])


def test_time_axis_counts_from_the_first_line_of_any_peer(tmp_path: Path, figure: Figure) -> None:
    early = write_lines(tmp_path / "a", [cycle(10, 1), cycle(20, 2)], [])
    late = write_lines(tmp_path / "b", [cycle(50, 1), cycle(70, 2)], [joined(30, 1)])
    run = load([early, late])
    draw_cycles(run, figure)
    assert [list(np.asarray(line.get_xdata())) for line in figure.axes[0].lines] == [
        [0.0, 10.0],
        [40.0, 60.0],
    ]
    assert figure.axes[0].get_xlabel() == "time since the first start (seconds)"


@pytest.mark.parametrize(
    ("length_s", "unit", "end"), [(300, "seconds", 300), (600, "minutes", 10), (18000, "hours", 5)]
)
def test_long_runs_are_told_in_larger_units(
    length_s: float, unit: str, end: float, tmp_path: Path, figure: Figure
) -> None:
    root = write_lines(tmp_path / "a", [cycle(0, 1), cycle(length_s, 2)], [])
    draw_cycles(load([root]), figure)
    assert unit in figure.axes[0].get_xlabel()
    assert np.asarray(figure.axes[0].lines[0].get_xdata())[-1] == end


def test_known_peers_are_steps_to_the_end_of_the_run(tmp_path: Path, figure: Figure) -> None:
    events = [
        {"time": START, "event": "started"},
        joined(1, 1),
        joined(2, 2),
        {"time": START + 5, "event": "fetch_failed", "peers": 77},
        {"time": START + 6, "event": "peer_lost", "peers": 1},
        {"time": START + 8, "event": "peer_left", "peers": 0},
    ]
    draw_known_peers(load([write_lines(tmp_path / "a", [cycle(40, 1)], events)]), figure)
    (line,) = figure.axes[0].lines
    assert line.get_drawstyle() == "steps-post"
    assert list(np.asarray(line.get_xdata())) == [0, 1, 2, 6, 8, 40]
    assert list(np.asarray(line.get_ydata())) == [0, 1, 2, 1, 0, 0]


def test_a_peer_that_was_down_has_a_gap(tmp_path: Path, figure: Figure) -> None:
    metrics = [cycle(time, index) for index, time in enumerate([*range(1, 31), *range(90, 120)])]
    events = [joined(1, 1), joined(2, 2), joined(90.5, 1), joined(91, 2)]
    run = load([write_lines(tmp_path / "a", metrics, events)])
    draw_cycles(run, figure)
    cycles = figure.axes[0].lines[0]
    hole = np.flatnonzero(np.isnan(np.asarray(cycles.get_ydata())))
    assert list(np.asarray(cycles.get_ydata())[hole[0] - 1 : hole[0] + 2][[0, 2]]) == [29, 30]
    assert len(hole) == 1
    figure.clear()
    draw_known_peers(run, figure)
    times, peers = (np.asarray(data) for data in figure.axes[0].lines[0].get_data())
    assert list(times) == [0, 1, 29, 29, 89.5, 90, 118]
    assert list(peers[[0, 1, 2, 4, 5, 6]]) == [1, 2, 2, 1, 2, 2]
    assert np.isnan(peers[3])


def test_collection_shows_median_and_90th_percentile_of_each_size(tmp_path: Path, figure: Figure) -> None:
    metrics = [
        cycle(index, index, collection_seconds=0.001 * (index % 100 + 1), network_peers=5 + index // 100)
        for index in range(200)
    ]
    draw_collection(load([write_lines(tmp_path / "a", metrics, [])]), figure)
    axes = figure.axes[0]
    by_marker = {line.get_marker(): line for line in axes.lines}
    assert list(np.asarray(by_marker["o"].get_xdata())) == [5, 6]
    assert np.asarray(by_marker["o"].get_ydata()) == pytest.approx([50.5, 50.5])
    assert np.asarray(by_marker["^"].get_ydata()) == pytest.approx([90.1, 90.1])
    assert len(np.asarray(axes.collections[0].get_offsets())) == 200


def test_picture_without_data_says_so(tmp_path: Path) -> None:
    root = write_lines(tmp_path / "8000", [cycle(1, 1)], [])
    draw([root], tmp_path / "out")
    for name, text in (
        ("accuracy", "no accuracy has been measured yet"),
        ("known_peers", "no daemon has written a membership event yet"),
        ("collection", "no collection has been measured yet"),
    ):
        assert text in (tmp_path / "out" / f"{name}.svg").read_text(encoding="utf-8")


def test_peer_without_a_measurement_is_told(tmp_path: Path, figure: Figure) -> None:
    dirs = [write_lines(tmp_path / "a", [cycle(1, 1)], []), write_lines(tmp_path / "b", [], [])]
    draw_cycles(load(dirs), figure)
    texts = [text.get_text() for legend in figure.legends for text in legend.get_texts()]
    assert "(1 without a measurement)" in texts


@pytest.mark.parametrize("what", ["nothing", "empty", "missing", "file"])
def test_no_data_is_one_clear_line(what: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        draw([] if what == "nothing" else [tmp_path / what], tmp_path / "out")
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)
    assert "give " in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_out_that_cannot_be_written_is_a_usage_error(tmp_path: Path) -> None:
    root = write_lines(tmp_path / "8000", [cycle(1, 1)], [])
    (tmp_path / "out").write_text("in the way", encoding="utf-8")
    with pytest.raises(UsageError, match="choose another --out DIR") as caught:
        draw([root], tmp_path / "out")
    assert caught.value.exit_code == 2
