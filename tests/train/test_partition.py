"""Who holds what: pure functions against naive references."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from p2pfl_train.datasets.examples import Indices
from p2pfl_train.datasets.partition import (
    WHOLE,
    Partition,
    Shard,
    labels_of,
    parse_partition,
    parse_shard,
    shards,
    split,
    stratified,
    table,
)
from p2pfl_train.errors import DataError, UsageError

CLASSES = 10
label_arrays = st.lists(st.integers(0, CLASSES - 1), min_size=30, max_size=300).map(
    lambda values: np.array(values, dtype=np.int64)
)
seeds = st.integers(0, 2**40)


def mnist_like(each: int = 40) -> Indices:
    return np.repeat(np.arange(CLASSES, dtype=np.int64), each)


@pytest.mark.parametrize(
    "text", ["11/10", "0/10", "3", "3/", "/3", "a/b", "-1/3", "1/0", "1.5/3", "1/99999", ""]
)
def test_a_shard_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        parse_shard(text)


def test_shards_count_from_one() -> None:
    assert parse_shard("1/10") == Shard(1, 10)
    assert parse_shard(" 10/10 ") == Shard(10, 10)
    with pytest.raises(UsageError, match="1/10 to 10/10"):
        parse_shard("11/10")


@pytest.mark.parametrize(
    "text", ["", "papers", "iid:1", "dirichlet", "dirichlet:x", "dirichlet:0", "dirichlet:nan"]
)
def test_an_unknown_partition_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--partition"):
        parse_partition(text)


def test_partitions_by_name() -> None:
    assert parse_partition("paper", 3) == Partition("paper", labels_per_peer=3)
    assert parse_partition("iid") == Partition("iid")
    assert parse_partition("dirichlet:0.5") == Partition("dirichlet", 0.5)
    with pytest.raises(UsageError, match="labels-per-peer"):
        parse_partition("iid", 3)


@given(st.integers(1, 40), st.integers(1, 30), st.data())
def test_the_papers_labels_are_the_formula_itself(number: int, classes: int, data: st.DataObject) -> None:
    held = data.draw(st.integers(1, classes))
    k = number - 1
    naive = [(held * k + i) % classes for i in range(held)]
    assert labels_of(Shard(number, 40), classes, held) == naive


def test_the_paper_has_seven_of_ten_by_default() -> None:
    assert labels_of(Shard(1, 10), 10) == [0, 1, 2, 3, 4, 5, 6]
    assert labels_of(Shard(2, 10), 10) == [7, 8, 9, 0, 1, 2, 3]
    assert labels_of(Shard(10, 10), 10) == [3, 4, 5, 6, 7, 8, 9]
    for held in (0, 11):
        with pytest.raises(UsageError, match="--labels-per-peer"):
            labels_of(Shard(1, 10), 10, held)


@given(label_arrays, st.integers(2, 12), st.integers(1, CLASSES))
def test_a_paper_shard_is_all_examples_of_its_labels(labels: Indices, count: int, held: int) -> None:
    parts = shards(labels, CLASSES, Partition("paper", labels_per_peer=held), count, seed=1)
    for k, part in enumerate(parts):
        wanted = {(held * k + i) % CLASSES for i in range(held)}
        assert part.tolist() == [i for i, label in enumerate(labels) if label in wanted]


@given(
    label_arrays,
    st.integers(2, 30),
    seeds,
    st.sampled_from(["iid", "dirichlet:0.001", "dirichlet:0.5", "dirichlet:100"]),
)
def test_shards_are_disjoint_cover_everything_and_are_equal_in_size(
    labels: Indices, count: int, seed: int, text: str
) -> None:
    parts = shards(labels, CLASSES, parse_partition(text), count, seed)
    assert len(parts) == count
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = shards(labels.copy(), CLASSES, parse_partition(text), count, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_another_seed_gives_other_shards() -> None:
    for text in ("iid", "dirichlet:0.5"):
        first, second = (shards(mnist_like(), CLASSES, parse_partition(text), 4, seed) for seed in (1, 2))
        assert not np.array_equal(first[0], second[0])


def test_shards_do_not_change_with_versions() -> None:
    """Peers with another numpy must compute the same shards, so known values stand here."""
    labels = mnist_like(4)
    assert shards(labels, CLASSES, Partition("iid"), 8, seed=7)[0].tolist() == [12, 16, 19, 25, 37]
    assert shards(labels, CLASSES, Partition("dirichlet", 0.5), 8, seed=7)[0].tolist() == [0, 5, 13, 14, 36]
    assert split(labels, 0.25, seed=7)[1].tolist() == [1, 7, 8, 13, 19, 23, 25, 31, 32, 39]


def test_a_small_alpha_is_more_skewed_than_a_large_one() -> None:
    labels = mnist_like(100)

    def present(alpha: float) -> float:
        parts = shards(labels, CLASSES, Partition("dirichlet", alpha), 10, seed=3)
        return float(
            np.mean([np.bincount(labels[part], minlength=CLASSES).max() / len(part) for part in parts])
        )

    assert present(0.01) > 0.8 > present(1.0) > 0.3 > present(1000.0)


def test_one_shard_is_everything_and_too_many_are_refused() -> None:
    for text in ("paper", "iid", "dirichlet:1"):
        (only,) = shards(mnist_like(), CLASSES, parse_partition(text), 1, seed=0)
        assert len(only) == 400
    for text in ("iid", "dirichlet:1"):
        with pytest.raises(DataError, match="do not fill"):
            shards(mnist_like(1), CLASSES, parse_partition(text), 11, seed=0)


@given(label_arrays, st.floats(0.05, 0.9), seeds)
def test_the_split_is_stratified_disjoint_and_the_same_everywhere(
    labels: Indices, fraction: float, seed: int
) -> None:
    train, dev = split(labels, fraction, seed)
    assert sorted([*train.tolist(), *dev.tolist()]) == list(range(len(labels)))
    assert set(labels[train].tolist()) == set(labels.tolist()), "each class can be trained"
    sizes = Counter(labels.tolist())
    if len(dev) >= len(sizes):
        assert set(labels[dev].tolist()) == {label for label, n in sizes.items() if n > 1}
    assert len(dev) <= max(1, round(fraction * len(labels)))
    assert np.array_equal(split(labels, fraction, seed)[1], dev)


def test_the_split_of_a_balanced_set_is_eighty_twenty_in_every_class() -> None:
    labels = mnist_like(50)
    train, dev = split(labels, 0.2, seed=0)
    assert np.bincount(labels[train]).tolist() == [40] * 10
    assert np.bincount(labels[dev]).tolist() == [10] * 10
    assert len(split(labels, 0.0, seed=0)[1]) == 0


def test_a_wrong_dev_fraction_or_no_data_is_refused() -> None:
    for fraction in (-0.1, 0.95, float("nan")):
        with pytest.raises(UsageError, match="dev fraction"):
            split(mnist_like(), fraction, seed=0)
    with pytest.raises(DataError, match="no examples"):
        split(np.zeros(0, dtype=np.int64), 0.2, seed=0)


@settings(max_examples=200)
@given(label_arrays, st.integers(0, 400), seeds)
def test_a_stratified_subset_is_in_proportion(labels: Indices, count: int, seed: int) -> None:
    chosen = stratified(labels, count, seed)
    assert len(set(chosen.tolist())) == len(chosen) == min(count, len(labels))
    assert chosen.tolist() == sorted(chosen.tolist())
    assert np.array_equal(stratified(labels, count, seed), chosen)
    drawn, sizes = Counter(labels[chosen].tolist()), Counter(labels.tolist())
    if count >= len(sizes):
        assert set(drawn) == set(sizes)
    rare = len(sizes)
    for label, size in sizes.items():
        exact = min(count, len(labels)) * size / len(labels)
        assert exact - rare <= drawn[label] <= exact + 1 + 1e-9


def test_the_table_marks_the_own_shard_and_fits_a_screen() -> None:
    held = np.arange(50 * 30, dtype=np.int64).reshape(50, 30)
    names = [f"[red]{i}" for i in range(30)]
    console = Console(width=300, record=True)
    console.print(table(held, names, Shard(40, 50)))
    text = console.export_text()
    assert "→ 40/50" in text
    assert "26 more shards" in text
    assert "10 more" in text
    assert "[red]0" in text, "a class name is no markup"
    assert str(held[39].sum()) in text
    console.print(table(held[:1, :3], names, WHOLE))
    assert "→ 1/1" in console.export_text()
