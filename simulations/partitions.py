"""How rows are spread over simulated devices. Pure and seeded: row numbers in, row numbers out.

Every scheme returns one sorted list of row indices per client; each row is in exactly one list.
``dirichlet`` is the label skew of Hsu et al. (arXiv 1909.06335) in the per-class form of Yurochkin
et al. (arXiv 1905.12022); ``shards`` is that of McMahan et al. (arXiv 1602.05629).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from protocol.encoding import seed_from
from protocol.errors import PlanError

Partition = list[list[int]]


def iid(rows: int, clients: int, *, seed: int, min_rows: int = 1) -> Partition:
    """A shuffle cut into ``clients`` parts whose sizes differ by at most one."""
    _check_enough(rows, clients, min_rows)
    order = _generator("iid", seed).permutation(rows)
    return _sorted([part.tolist() for part in np.array_split(order, clients)])


def dirichlet(
    labels: Sequence[str], clients: int, *, alpha: float, seed: int, min_rows: int = 1
) -> Partition:
    """Each label's rows are shared out by proportions drawn from Dirichlet(alpha).

    Small alpha: a label lies with few clients. A client left with fewer than ``min_rows`` takes
    rows from the one with most, which terminates where drawing again need not.
    """
    _check_enough(len(labels), clients, min_rows)
    rng = _generator("dirichlet", seed)
    parts: Partition = [[] for _ in range(clients)]
    for _, rows in sorted(_by_value(labels).items()):
        order = rng.permutation(rows)
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(order)).astype(int)
        for part, piece in zip(parts, np.split(order, cuts), strict=True):
            part.extend(piece.tolist())
    return _sorted(_filled(parts, min_rows))


def by_column(values: Sequence[str], clients: int, *, min_rows: int = 1) -> Partition:
    """A client per value with all of its rows; largest first, then by value."""
    groups = _by_value(values)
    if len(groups) != clients:
        raise PlanError(
            f"`population.clients` is {clients}, but the column has {len(groups)} different values "
            "and every device holds one",
            f"set population.clients = {len(groups)}, or name a column with {clients} values",
        )
    order = sorted(groups.items(), key=lambda item: (-len(item[1]), item[0]))
    if short := [value for value, rows in order if len(rows) < min_rows]:
        raise PlanError(
            f"{len(short)} clients would have fewer than {min_rows} rows",
            "lower population.min_rows, or leave the rows of these values out",
        )
    return _sorted([rows for _, rows in order])


def shards(
    labels: Sequence[str], clients: int, *, per_client: int, seed: int, min_rows: int = 1
) -> Partition:
    """Rows sorted by label are cut into clients * per_client shards, dealt out at random."""
    _check_enough(len(labels), clients * per_client, 1)
    _check_enough(len(labels), clients, min_rows)
    order = [row for _, rows in sorted(_by_value(labels).items()) for row in rows]
    pieces = np.array_split(np.asarray(order), clients * per_client)
    deal = _generator("shards", seed).permutation(len(pieces)).reshape(clients, per_client)
    parts = [[row for piece in hand for row in pieces[piece].tolist()] for hand in deal]
    return _sorted(_filled(parts, min_rows))


def _generator(scheme: str, seed: int) -> np.random.Generator:
    return np.random.default_rng(seed_from("partition", scheme, seed))


def _by_value(values: Sequence[str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = defaultdict(list)
    for row, value in enumerate(values):
        groups[value].append(row)
    return groups


def _filled(parts: Partition, min_rows: int) -> Partition:
    for part in parts:
        while len(part) < min_rows:
            part.append(max(parts, key=len).pop())
    return parts


def _sorted(parts: Partition) -> Partition:
    return [sorted(part) for part in parts]


def _check_enough(rows: int, clients: int, min_rows: int) -> None:
    if rows < clients * min_rows:
        raise PlanError(
            f"{rows} rows cannot give {clients} parts at least {min_rows} rows each",
            "lower population.clients, population.shards_per_client or population.min_rows",
        )
