"""Laws of every partition."""

from hypothesis import given
from hypothesis import strategies as st

from simulations.partitions import Partition, by_column, dirichlet, iid, shards

labels = st.lists(st.sampled_from("abcdef"), min_size=40, max_size=200)
clients = st.integers(1, 12)
seeds = st.integers(0, 2**40)


def assert_partition(parts: Partition, rows: int, count: int, min_rows: int) -> None:
    assert len(parts) == count
    assert sorted(row for part in parts for row in part) == list(range(rows))
    assert all(len(part) >= min_rows and part == sorted(part) for part in parts)


@given(st.integers(40, 300), clients, seeds)
def test_iid(rows: int, count: int, seed: int) -> None:
    parts = iid(rows, count, seed=seed, min_rows=3)
    assert_partition(parts, rows, count, 3)
    assert parts == iid(rows, count, seed=seed, min_rows=3)


@given(labels, clients, seeds, st.sampled_from([0.001, 0.01, 0.1, 1.0, 1000.0]))
def test_dirichlet(values: list[str], count: int, seed: int, alpha: float) -> None:
    parts = dirichlet(values, count, alpha=alpha, seed=seed, min_rows=3)
    assert_partition(parts, len(values), count, 3)
    assert parts == dirichlet(values, count, alpha=alpha, seed=seed, min_rows=3)


@given(labels)
def test_by_column(values: list[str]) -> None:
    count = len(set(values))
    parts = by_column(values, count)
    assert_partition(parts, len(values), count, 1)
    held = [{values[row] for row in part} for part in parts]
    assert all(len(one) == 1 for one in held)
    assert set().union(*held) == set(values)


@given(labels, clients, seeds, st.integers(1, 3))
def test_shards(values: list[str], count: int, seed: int, per_client: int) -> None:
    parts = shards(values, count, per_client=per_client, seed=seed)
    assert_partition(parts, len(values), count, 1)
    assert parts == shards(values, count, per_client=per_client, seed=seed)
