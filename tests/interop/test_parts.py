"""Parts of the second verifier against ours, over more values than whole runs have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.edge_adapter import write_edge_adapter
from protocol.encoding import canonical_json
from protocol.frozen_linears import StoredLinears
from protocol.legality_of_secrecy import most_lost, said_of_secrecy
from protocol.magnitude import largest_alone
from protocol.methods import METHODS
from protocol.peft_format import Published, to_edge
from protocol.plan_sections import Secrecy
from protocol.privacy.distributed import Mechanism
from protocol.secagg.packing import pack
from protocol.secagg.ring import Ring
from protocol.step.robust import robust_mean
from tests.interop.verifier.basics import canonical, largest_sum, opens_without
from tests.interop.verifier.documents import Documents
from tests.interop.verifier.masks import unpack
from tests.interop.verifier.noise import Noise
from tests.interop.verifier.published import edge_tensors, scales_of
from tests.interop.verifier.ring import Exact
from tests.interop.verifier.shares import cut_down
from tests.interop.verifier.step import combined
from tests.unit.audit.runs import small_plan
from tests.unit.audit.small_bases import small_manifest

COMBINATIONS = [
    Secrecy(),
    *(Secrecy(combination="trimmed-mean", trim=trim) for trim in (1, 2, 4)),
]


def as_written(secrecy: Secrecy) -> dict[str, Any]:
    """As `plan.json` has it."""
    return secrecy.model_dump(mode="json", exclude=secrecy.unsaid)


@given(st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**60), 2**60), st.text())
def test_canonical_json(real: float, whole: int, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        text = "half a surrogate pair"
    value = {"b": [real, whole, None, True], "a": {"text": text, "least": 2.0**-1074}}
    assert canonical(value) == canonical_json(value)


@pytest.mark.parametrize("bits", range(8, 33))
@pytest.mark.parametrize("count", [1, 31, 33, 32_768, 32_801])
def test_packing_at_every_width(bits: int, count: int) -> None:
    rng = np.random.default_rng(bits)
    words = rng.integers(0, 2**bits, count, dtype=np.uint32)
    words = words.astype(np.uint16) if bits <= 16 else words
    assert np.array_equal(unpack(pack(words, bits), count, bits), words)


@pytest.mark.parametrize("bits", range(8, 33))
@pytest.mark.parametrize("size", [1, 2, 37, 1300])
def test_decoding_at_every_width(bits: int, size: int) -> None:
    ring = Ring(size=size, clip=0.7, clients=5, bits=bits, rotation=bytes(range(32)), counters=6)
    rng, total = np.random.default_rng(bits), np.zeros(ring.count, np.uint32)
    for _ in range(4):
        vector = rng.normal(size=size).astype(np.float32)
        total += ring.encode(vector, [1, 2**40 - 1, 0, 7, 5, 3], rng)
    mine = Exact(size=size, bits=bits, clip=0.7, members=5)
    mean, sums = ring.decode(total, 4)
    assert mine.count(6) == ring.count
    assert mine.mean(total, 4, bytes(range(32))).tobytes() == mean.tobytes()
    assert mine.counters(total) == sums


def test_decoding_of_several_blocks() -> None:
    ring = Ring(size=150_000, clip=1.0, clients=3, bits=24, rotation=bytes(32), counters=1)
    rng = np.random.default_rng(0)
    words = ring.encode(rng.normal(size=ring.size).astype(np.float32), [3], rng)
    mine = Exact(size=ring.size, bits=24, clip=1.0, members=3)
    assert mine.mean(words, 1, bytes(32)).tobytes() == ring.decode(words, 1)[0].tobytes()


@settings(max_examples=150)
@given(
    st.sampled_from([1, 5, 42, 8192, 65_536, 150_000]),
    st.floats(1e-6, 1e6),
    st.floats(0.01, 1000),
    st.integers(1, 200),
    st.integers(0, 50),
)
def test_the_numbers_of_the_noise(
    size: int, clip: float, z: float, honest: int, others: int
) -> None:
    """(P-7.2, P-7.3) Each compared bit for bit, as auditors do with a ledger."""
    given = Mechanism(
        size=size,
        clip=clip,
        multiplier=z,
        honest=honest,
        summands=honest + others,
        rotation=bytes(32),
    )
    if not given.grid or given.ring_bits is None:
        return
    mine = Noise(size=size, clip=clip, z=z, honest=honest, summands=honest + others)
    spent = given.spent()
    assert (mine.grid, mine.s, mine.bits) == (given.grid, given.local_noise, given.bits)
    assert str(mine.sigma) == str(given.sigma)
    assert mine.spent() == (spent.rho, spent.xi)


@pytest.mark.parametrize("bits", [16, 20, 24, 32])
def test_decoding_under_noise(bits: int) -> None:
    z = {16: 4.0, 20: 100.0, 24: 1000.0, 32: 1000.0}[bits]
    summands = {16: 8, 20: 8, 24: 60, 32: 20_000}[bits]
    given = Mechanism(
        size=300, clip=1.0, multiplier=z, honest=3, summands=summands, rotation=bytes(range(32))
    )
    assert given.bits == bits
    words = np.random.default_rng(bits).integers(0, 2**bits, given.turn.padded, dtype=np.uint32)
    mine = Noise(size=300, clip=1.0, z=z, honest=3, summands=summands)
    mean = mine.mean(words, 5, bytes(range(32)))
    assert mean.tobytes() == given.decode(words, 5).tobytes()


@settings(max_examples=50)
@given(
    st.integers(0, 10_000),
    st.integers(1, 9),
    st.integers(1, 70),
    st.floats(0, 100),
    st.sampled_from(COMBINATIONS),
)
def test_the_update_of_groups(
    seed: int, groups: int, size: int, boost: float, secrecy: Secrecy
) -> None:
    rng = np.random.default_rng(seed)
    means = list(rng.normal(size=(groups, size)).astype(np.float32))
    means[0] *= np.float32(boost)
    counts = [int(n) for n in rng.integers(3, 9, groups)]
    robust = robust_mean(means, counts, secrecy)
    mean, kept = combined(means, counts, as_written(secrecy))
    assert (mean.tobytes(), kept) == (robust.mean.tobytes(), list(robust.kept))


@pytest.mark.parametrize("secrecy", COMBINATIONS)
def test_equal_groups_of_nothing(secrecy: Secrecy) -> None:
    means, counts = [np.zeros(5, np.float32), np.full(5, -0.0, np.float32)] * 2, [3, 3, 4, 4]
    mean, _ = combined(means, counts, as_written(secrecy))
    assert mean.tobytes() == robust_mean(means, counts, secrecy).mean.tobytes()


def test_files_of_onnx_runtime_are_read_without_it(tmp_path: Path) -> None:
    """(P-5.2) One tensor, many, long names, none of whose dimensions is large; and an empty one."""
    rng = np.random.default_rng(0)
    for number in (1, 2, 300):
        tensors = {
            f"{'x' * (n % 90)}.{n}": rng.normal(size=(n % 5, 3 + n % 7)).astype(np.float32)
            for n in range(1, number + 1)
        }
        write_edge_adapter(tensors, tmp_path / "file")
        found = edge_tensors((tmp_path / "file").read_bytes())
        assert found == {name: (value.shape, value.tobytes()) for name, value in tensors.items()}


@given(st.integers(1, 9), st.integers(0, 10_000))
def test_lengths_of_rows_are_the_same_bits(rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {"weight": (6, 5), "bias": (6,), "lora_A": (rank, 5), "lora_B": (6, rank)}
    path, sizes = "m.0.query", sizes | {"lora_magnitude_vector": (6,)}
    drawn = {f"{path}.{n}": rng.normal(size=x).astype(np.float32) for n, x in sizes.items()}
    manifest = small_manifest().model_copy(update={"bits": 32})
    published = Published(method=METHODS["dora"], constants={"scaling": 0.7})
    tensors = {name: value for name, value in drawn.items() if ".lora_" in name}
    linears = StoredLinears(manifest, drawn.__getitem__)
    slots = to_edge(tensors, published=published, linears=linears)
    values = [drawn[f"{path}.{name}"] for name in sizes]
    mine = scales_of(*values, 0.7)
    for end, value in zip(("scale", "shift"), mine, strict=True):
        assert value.tobytes() == slots[f"{path}.{end}"].tobytes()


@given(
    st.lists(st.floats(-9, 9, width=32) | st.sampled_from([0.0, -0.0, 1.0, -1.0]), min_size=1),
    st.floats(1e-3, 0.999),
)
def test_what_is_kept_of_an_adapter(numbers: list[float], keep: float) -> None:
    plan = {"adapter": {"method": "lora"}, "release": {"keep": keep}}
    documents = Documents(Path(), plan, manifest={}, digest="", sid=b"", shapes={})
    values = np.array(numbers, np.float32)
    mine = cut_down(documents, {"m.lora_A": values, "classifier.bias": values})
    assert mine["m.lora_A"].tobytes() == largest_alone(values, keep).tobytes()
    assert mine["classifier.bias"].tobytes() == values.tobytes()


@pytest.mark.parametrize("clients", [*range(3, 132), 200, 333])
def test_how_many_a_sum_opens_without(clients: int) -> None:
    assert opens_without(clients) == most_lost(clients)


@pytest.mark.parametrize(("size", "groups"), [(9, 1), (12, 3), (20, 3), (100, 1), (150, 1)])
def test_which_plans_have_too_many_to_spare(size: int, groups: int) -> None:
    taken = []
    for spare in range(1, size):
        cohort = {"size": size, "quorum": size, "spare": spare}
        secrecy = {"exchange": "secagg", "groups": groups}
        plan, _ = small_plan(cohort=cohort, secrecy=secrecy)
        errors = [field for kind, field, *_ in said_of_secrecy(plan) if kind == "error"]
        try:
            largest_sum(plan.model_dump(mode="json"))
        except AssertionError:
            assert "cohort.spare" in errors
        else:
            assert "cohort.spare" not in errors
            taken.append(spare)
    assert 0 < len(taken) < size - 1
