"""Whatever a stranger writes, a decoder takes it or raises a FedgeError: nothing else, and in time.

The same mutations run over every decoder of :mod:`tests.properties.decoders.registry`.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from protocol.errors import FedgeError
from tests.properties.decoders.elsewhere import ELSEWHERE
from tests.properties.decoders.registry import registry as registry_of
from tests.properties.decoders.rows import Decoder
from tests.properties.decoders.world import World

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (
    "protocol",
    "storage",
    "edge_runtime",
    "base_model",
    "audit",
    "client",
    "server",
    "delivery",
    "operations",
    "fedge",
)
SLOT = "\x00slot\x00"
MARK = json.dumps(SLOT)
LONG = "9" * 6000
ODD_JSON = [
    r'"\ud800"',
    r'"\udfff\ud800 x"',
    r'"\u0000\u001b[2J\u202e"',
    '"é"',
    '"\u2028"',
    '""',
    '"' + "a" * 100_000 + '"',
    LONG,
    f"-{LONG}",
    f"0.{LONG}",
    f"1e{LONG}",
    "1e999",
    "-1e999",
    "NaN",
    "Infinity",
    "-Infinity",
    "0x10",
    "1e5",
    "-0",
    "0",
    "-1",
    "1.5",
    str(2**31),
    str(2**53),
    str(2**63),
    str(2**64),
    str(10**18),
    "true",
    "null",
    "[]",
    "{}",
    "[[]]",
    '{"a":1}',
    r'{"\ud800":1}',
    r'{"é":1}',
    '{"a":1,"a":1}',
    "[" * 300 + "]" * 300,
    '{"a":' * 300 + "1" + "}" * 300,
    "[" * 50_000 + "]" * 50_000,
    '{"a":' * 50_000 + "1" + "}" * 50_000,
    "[" + "1," * 5000 + "1]",
]
ODD_TOML = [
    '"\\ud800"',
    '"\\u0000\\u001b[2J"',
    LONG,
    f"-{LONG}",
    "0x" + "f" * 6000,
    f"1e{LONG}",
    f"0.{LONG}",
    "inf",
    "-inf",
    "nan",
    "1979-05-27T07:32:00Z",
    "07:32:00",
    "1e400",
    "[]",
    "{}",
    "[" * 5000 + "]" * 5000,
    "{" + ".".join("a" * 2000) + " = 1}",
    "true",
    "-1",
    str(2**64),
]
# Of JSON, and of TOML where it has the kind.
PLAIN_KINDS = [
    ("[]", "[]"),
    ("{}", "{}"),
    ("null", ""),
    ("true", "true"),
    ("1", "1"),
    ("-1", "-1"),
    ("0.5", "0.5"),
    ('""', '""'),
    ('"x"', '"x"'),
    ('["x"]', '["x"]'),
    ("[[]]", "[[]]"),
    ("[{}]", "[{}]"),
    ('{"a":[]}', "{a = []}"),
]
ODD_BYTES = [
    b"",
    b"\xff",
    b"\xed\xa0\x80",
    "é".encode(),
    "\u2028".encode(),
    b"\x00",
    b"\x1b[2J",
    b"\r",
    b"\n\n",
    b" ",
    b"+",
    LONG.encode(),
    b"[" * 5000,
    b"-1",
    b"NaN",
]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Decoder]:
    return registry_of(World(tmp_path_factory.mktemp("decoders")))


# -- nothing is forgotten ---------------------------------------------------------------------------


def readers() -> Iterator[str]:
    """Public functions by ``module:name`` whose name says that they read what somebody wrote."""
    named = re.compile(
        r"(decode|parse|read|unverified)(_\w+)?|plan_from_text|from_record|verify_note"
    )
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.FunctionDef) and named.fullmatch(node.name):
                    yield f"{module}:{node.name}"


def test_every_decoder_is_listed(registry: dict[str, Decoder]) -> None:
    listed = {name.partition(",")[0] for name in registry}
    found = set(readers())
    assert found - listed - ELSEWHERE.keys() == set()
    assert ELSEWHERE.keys() - found == set(), "what is no more needs no exemption"


def test_every_seed_is_accepted(registry: dict[str, Decoder]) -> None:
    for name, decoder in registry.items():
        for seed in decoder.seeds:
            try:
                decoder.read(seed)
            except FedgeError as error:
                pytest.fail(f"{name}: {error}")


# -- mutations --------------------------------------------------------------------------------------


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from places(inner, (*path, at))


def put(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    if not path:
        return new
    head, *rest = path
    if isinstance(value, dict):
        return {k: put(v, tuple(rest), new) if k == head else v for k, v in value.items()}
    return [put(v, tuple(rest), new) if at == head else v for at, v in enumerate(value)]


def json_mutant(seed: bytes, rng: random.Random) -> bytes:
    """One place of a JSON document holds something else; its spelling stays the seed's."""
    lines = seed.split(b"\n")
    whole = len([line for line in lines if line.strip()]) > 1 and not lines[0].startswith(b'{"')
    at = 0 if whole or len(lines) <= 2 else rng.randrange(len(lines) - 1)
    document = json.loads(seed if whole or len(lines) <= 2 else lines[at])
    chosen = rng.choice(list(places(document)))
    compact = b": " not in seed and b'":' in seed
    style: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False} if compact else {}
    odd = rng.choice(ODD_JSON)
    kind = rng.randrange(4)
    if kind == 0 and isinstance(document, dict):  # a key that nobody knows
        key = rng.choice([r"\ud800", "é", "a" * 50_000, r"\u001b[2J", "a"])
        text = json.dumps({**document, SLOT: 1}, **style)
        text = text.replace(MARK, f'"{key}"')
    elif kind == 1 and chosen and isinstance(chosen[-1], str):  # another key in the place of one
        *above, last = chosen
        parent = document
        for step in above:
            parent = parent[step]
        renamed = {(SLOT if k == last else k): v for k, v in parent.items()}
        text = json.dumps(put(document, tuple(above), renamed), **style)
        text = text.replace(MARK, rng.choice([r'"\ud800"', '"é"', '""', r'"\u0007"', f'"{LONG}"']))
    else:
        text = json.dumps(put(document, chosen, SLOT), **style).replace(MARK, odd)
    changed = text.encode("utf-8", "surrogatepass")
    if whole or len(lines) <= 2:
        return changed + (b"\n" if seed.endswith(b"\n") else b"")
    return b"\n".join([*lines[:at], changed, *lines[at + 1 :]])


def documents_of(seed: bytes) -> list[tuple[int | None, Any]]:
    """A JSON document, or one per line with the line's number; lines that are none are left out."""
    try:
        return [(None, json.loads(seed))]
    except ValueError:
        pass
    rows: list[tuple[int | None, Any]] = []
    for at, line in enumerate(seed.split(b"\n")):
        with contextlib.suppress(ValueError):
            rows.append((at, json.loads(line)))
    return rows


def each_json(seed: bytes, kinds: Sequence[str]) -> Iterator[bytes]:
    """Every place of a document with a value of each kind in its place."""
    lines, end = seed.split(b"\n"), b"\n" if seed.endswith(b"\n") else b""
    compact = b": " not in seed and b'":' in seed
    style: dict[str, Any] = {"separators": (",", ":"), "ensure_ascii": False} if compact else {}
    for at, document in documents_of(seed):
        for path in places(document):
            text = json.dumps(put(document, path, SLOT), **style)
            for kind in kinds:
                changed = text.replace(MARK, kind).encode("utf-8", "surrogatepass")
                yield (
                    changed + end
                    if at is None
                    else b"\n".join([*lines[:at], changed, *lines[at + 1 :]])
                )


def each_toml(seed: bytes, kinds: Sequence[str]) -> Iterator[bytes]:
    lines = seed.decode().split("\n")
    for at, line in enumerate(lines):
        if "=" in line and not line.startswith("#"):
            for kind in kinds:
                key = line.partition("=")[0]
                yield "\n".join([*lines[:at], f"{key}= {kind}", *lines[at + 1 :]]).encode()


def toml_mutant(seed: bytes, rng: random.Random) -> bytes:
    lines = seed.decode().split("\n")
    filled = [at for at, line in enumerate(lines) if "=" in line and not line.startswith("#")]
    at = rng.choice(filled)
    key = lines[at].partition("=")[0]
    if rng.randrange(5) == 0:
        key = rng.choice([".".join("a" * 2000), '"\\u001b"', '"é"', "a" * 20_000, "zz"])
    lines[at] = f"{key} = {rng.choice(ODD_TOML)}"
    return "\n".join(lines).encode("utf-8", "surrogatepass")


def text_mutant(seed: bytes, rng: random.Random) -> bytes:
    """A word of a text that is no JSON becomes another one."""
    words = re.split(rb"([ \n+]+)", seed)
    at = rng.randrange(len(words))
    word, odd = words[at], rng.choice(ODD_BYTES)
    cut = rng.randrange(len(word) + 1)
    words[at] = rng.choice([odd, word + odd, odd + word, word[:cut] + odd + word[cut:]])
    return b"".join(words)


def bytes_mutant(seed: bytes, rng: random.Random) -> bytes:
    data = bytearray(seed)
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(data) + 1)
        match rng.randrange(6):
            case 0:
                del data[at:]
            case 1 if at < len(data):
                data[at] ^= 1 << rng.randrange(8)
            case 2 if at < len(data):
                data[at] = rng.choice([0, 0x22, 0x5C, 0x7B, 0x80, 0xFF])
            case 3:
                data[at:at] = rng.choice(ODD_BYTES)
            case 4:
                del data[at : at + rng.randrange(1, 40)]
            case _:
                data += data[at : at + 200]
    return bytes(data)


def is_json(seed: bytes) -> bool:
    """Not of random bytes that happen to begin with a bracket."""
    try:
        return seed.decode().lstrip()[:1] in ("{", "[")
    except UnicodeDecodeError:
        return False


def is_toml(seed: bytes) -> bool:
    return b" = " in seed and not is_json(seed) and b"\x00" not in seed


def mutant(seed: bytes, rng: random.Random) -> bytes:
    choices = [bytes_mutant]
    if is_json(seed):
        choices += [json_mutant] * 5
    elif is_toml(seed):
        choices += [toml_mutant] * 3
    elif b"\x00" not in seed:
        choices += [text_mutant] * 3
    return rng.choice(choices)(seed, rng)


def tried(registry: dict[str, Decoder], rng: random.Random) -> None:
    name = rng.choice(sorted(registry))
    decoder = registry[name]
    seed = rng.choice(decoder.seeds or (b"x",))
    refused_or_read(name, decoder, mutant(seed, rng))


def refused_or_read(name: str, decoder: Decoder, data: bytes) -> None:
    try:
        decoder.read(data)
    except FedgeError as error:
        text = f"{error.cause}{error.remedy}"
        assert text.isprintable(), name
        assert len(text) < 3000, f"{name}: {len(text)} characters"
    except BaseException as error:
        shown = data if len(data) < 3000 else data[:1500] + b" ... " + data[-1000:]
        raise AssertionError(
            f"{name}: {type(error).__name__}: {str(error)[:200]}\n{shown!r}"
        ) from error


@pytest.mark.parametrize(
    "kinds",
    [
        PLAIN_KINDS[:3],
        pytest.param(PLAIN_KINDS[3:], marks=pytest.mark.slow),
    ],
    ids=["no hash, or null", "others"],
)
def test_every_value_may_be_of_any_kind(
    registry: dict[str, Decoder], kinds: Sequence[tuple[str, str]]
) -> None:
    """Not by chance: a value without a hash in the one place where a decoder looks it up."""
    in_json, in_toml = [kind for kind, _ in kinds], [kind for _, kind in kinds if kind]
    for name, decoder in registry.items():
        for seed in decoder.seeds:
            if is_json(seed):
                changed = each_json(seed, in_json)
            elif is_toml(seed):
                changed = each_toml(seed, in_toml)
            else:
                continue
            for data in changed:
                refused_or_read(name, decoder, data)


@settings(
    max_examples=2500,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(st.randoms(use_true_random=False))
def test_odd_documents(registry: dict[str, Decoder], rng: random.Random) -> None:
    tried(registry, rng)


@pytest.mark.slow
@pytest.mark.exhaustive
def test_many_odd_documents(registry: dict[str, Decoder]) -> None:
    seed = int(os.environ.get("FEDGE_FUZZ_SEED", "0"))
    for number in range(int(os.environ.get("FEDGE_FUZZ", "200000"))):
        tried(registry, random.Random(seed + number))
