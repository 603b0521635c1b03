"""What secrecy costs: our masks against Flower's SecAgg+ primitives and TenSEAL's CKKS, in one run.

    python benchmarks/secrecy.py [--coordinates N] [--repeats N] [--json]

Client: mask N coordinates with 32 neighbours and a self mask. Server: open the sum of 100 clients, 10
of them lost after sharing (k = 32, t = 22). Flower's are the functions of flwr 1.41's SecAgg+
(``pseudo_rand_gen``, ``create_shares``); TenSEAL (`pip install tenseal`) uses NVFlare's parameters and
is left out when it is not installed. Targets: 0.15 of Flower's client, 0.05 of its server, 2.0
bytes per coordinate. Reported are ratios of medians; the contenders take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from protocol.secagg import packing, shamir
from protocol.secagg.agreement import Keys, pair_key
from protocol.secagg.client import commitment
from protocol.secagg.primitives import Suite, add_mask, agree, kdf, opened_secret, public_of

NEIGHBOURS, CLIENTS, LOST, THRESHOLD, BITS = 32, 100, 10, 22, 16
FLOWER_RANGE = 2**32  # its default mod range
LIVE = round(NEIGHBOURS * (CLIENTS - LOST) / CLIENTS)
RID, ACTX, ONE, OTHER = bytes(32), bytes(40), b"\x00" * 16, b"\x01" * 16


def ours_client(count: int) -> Callable[[], Any]:
    """Key agreement, 33 masks, packing."""
    rng = np.random.default_rng(0)
    update = rng.integers(0, 600, count).astype(np.uint16)
    secret, publics = (
        opened_secret(os.urandom(32)),
        [public_of(os.urandom(32)) for _ in range(NEIGHBOURS)],
    )

    def run() -> bytes:
        words = update.copy()
        add_mask(words, kdf(bytes(32), "self", RID), sign=1, suite=Suite.AES_256_CTR)
        for public in publics:
            key = pair_key(agree(secret, public), RID, ONE, OTHER)
            add_mask(words, key, sign=1, suite=Suite.AES_256_CTR)
        return packing.pack(words, BITS)

    return run


def ours_server(count: int) -> Callable[[], Any]:
    """Rebuild and check every secret, expand every mask."""
    places = list(range(1, NEIGHBOURS + 1))
    seeds = [shamir.random_element(os.urandom) for _ in range(CLIENTS)]
    shares = [
        dict(
            list(zip(places, shamir.split(s, places, THRESHOLD, os.urandom), strict=True))[
                :THRESHOLD
            ]
        )
        for s in seeds
    ]
    public = public_of(os.urandom(32))

    def run() -> Any:
        total = np.zeros(count, np.uint16)
        for number, held in enumerate(shares):
            seed = shamir.combine(held)
            if number >= LOST:
                commitment(seed, ACTX, ONE)
                key = kdf(shamir.to_bytes(seed), "self", RID)
                add_mask(total, key, sign=-1, suite=Suite.AES_256_CTR)
                continue
            raw = Keys.X25519.mask_secret(seed, ACTX)
            public_of(raw)
            secret = opened_secret(raw)
            for _ in range(LIVE):
                key = pair_key(agree(secret, public), RID, ONE, OTHER)
                add_mask(total, key, sign=1, suite=Suite.AES_256_CTR)
        return total

    return run


def flower_client(count: int) -> Callable[[], Any]:
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    update = [np.random.default_rng(0).integers(0, 600, count)]
    seeds = [os.urandom(32) for _ in range(NEIGHBOURS + 1)]

    def run() -> Any:
        masked = update
        for seed in seeds:
            masked = parameters_addition(masked, pseudo_rand_gen(seed, FLOWER_RANGE, [(count,)]))
        return parameters_mod(masked, FLOWER_RANGE)

    return run


def flower_server(count: int) -> Callable[[], Any]:
    from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
    from flwr.common.secure_aggregation.ndarrays_arithmetic import (
        parameters_addition,
        parameters_mod,
        parameters_subtraction,
    )
    from flwr.common.secure_aggregation.secaggplus_utils import pseudo_rand_gen

    shares = [
        create_shares(os.urandom(32), THRESHOLD, NEIGHBOURS)[:THRESHOLD] for _ in range(CLIENTS)
    ]

    def run() -> Any:
        total = [np.zeros(count, np.int64)]
        for number, held in enumerate(shares):
            seed = combine_shares(held)
            if number >= LOST:
                total = parameters_subtraction(
                    total, pseudo_rand_gen(seed, FLOWER_RANGE, [(count,)])
                )
                continue
            for _ in range(LIVE):
                total = parameters_addition(total, pseudo_rand_gen(seed, FLOWER_RANGE, [(count,)]))
        return parameters_mod(total, FLOWER_RANGE)

    return run


def tenseal_client(count: int) -> Callable[[], Any] | None:
    try:
        import tenseal
    except ImportError:
        return None
    context = tenseal.context(
        tenseal.SCHEME_TYPE.CKKS, poly_modulus_degree=8192, coeff_mod_bit_sizes=[60, 40, 40]
    )
    context.global_scale = 2**40
    values = np.random.default_rng(0).normal(0, 0.1, count)
    return lambda: tenseal.ckks_vector(context, values).serialize()


def medians(contenders: dict[str, Callable[[], Any] | None], repeats: int) -> dict[str, float]:
    """Median seconds of each; they take turns."""
    times: dict[str, list[float]] = {name: [] for name, run in contenders.items() if run}
    for _ in range(repeats):
        for name, each in times.items():
            run = contenders[name]
            assert run is not None
            started = time.perf_counter()
            run()
            each.append(time.perf_counter() - started)
    return {name: statistics.median(each) for name, each in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--coordinates", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    count = arguments.coordinates
    client = medians(
        {
            "fedge": ours_client(count),
            "Flower": flower_client(count),
            "TenSEAL": tenseal_client(count),
        },
        arguments.repeats,
    )
    server = medians(
        {"fedge": ours_server(count), "Flower": flower_server(count)}, arguments.repeats
    )
    per_coordinate = len(ours_client(count)()) / count
    if arguments.json:
        print(json.dumps({"client": client, "server": server, "bytes": per_coordinate}))
        return
    print(f"{count:,} coordinates, {NEIGHBOURS} neighbours; {CLIENTS} clients, {LOST} lost")
    for what, found in (("client masks", client), ("server opens", server)):
        for name, seconds in found.items():
            ratio = found["fedge"] / seconds
            print(f"  {what}: {name:8s} {1e3 * seconds:8.1f} ms   fedge / {name} = {ratio:.3f}")
    print(f"  bytes per coordinate up: {per_coordinate:.2f} (Flower 8)")


if __name__ == "__main__":
    main()
