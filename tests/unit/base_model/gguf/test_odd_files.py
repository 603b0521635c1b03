"""Files that are no whole GGUF file of a model that is read: refused by name, at once, in little memory."""

from __future__ import annotations

import os
import struct
import time
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from base_model.gguf.container import read_container
from base_model.gguf.read import read_gguf
from protocol.errors import ArtefactError
from tests.unit.base_model.gguf.files import HIDDEN, write_gguf

STRING, ARRAY, UINT32 = 8, 9, 4
LARGE = 2**63 - 1


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "whole.gguf")


def test_every_truncation_is_refused(whole: Path, tmp_path: Path) -> None:
    data, path = whole.read_bytes(), tmp_path / "cut.gguf"
    header = data.index(b"blk.0.attn_norm.weight") + 1500
    places = sorted(
        {*range(48), *range(48, header, 211), *range(header, len(data), 9973), len(data) - 40}
    )
    for place in places:
        path.write_bytes(data[:place])
        _refused(path)


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.integers(4, 2000), byte=st.integers(0, 255))
def test_a_changed_byte_of_the_header_is_refused_or_read(
    whole: Path, tmp_path: Path, place: int, byte: int
) -> None:
    data = bytearray(whole.read_bytes())
    data[place] = byte
    path = tmp_path / "changed.gguf"
    path.write_bytes(data)
    with suppress(ArtefactError):
        read_gguf(path)


HEADERS: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "empty"),
    "a text": (b"# A model\n" * 9, "not a GGUF"),
    "an archive": (b"PK\x03\x04" + bytes(60), "not a GGUF"),
    "three bytes": (b"GGU", "not a GGUF"),
    "its magic alone": (b"GGUF", "truncated"),
    "an older format": (b"ggjt" + struct.pack("<I", 3) + bytes(60), "not a GGUF"),
    "version 1": (b"GGUF" + struct.pack("<III", 1, 0, 0) + bytes(40), "version 1"),
    "version 0": (b"GGUF" + struct.pack("<I", 0) + bytes(40), "version 0"),
    "version 4": (b"GGUF" + struct.pack("<I", 4) + bytes(40), "version 4"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0) + bytes(40), "big-endian"),
    "a pointer": (b"version https://git-lfs/spec/v1\n", "git-lfs"),
    "no keys": (b"GGUF" + struct.pack("<IQQ", 3, 0, 0), "general.architecture"),
}


@pytest.mark.parametrize("name", HEADERS)
def test_another_header_is_refused(tmp_path: Path, name: str) -> None:
    data, says = HEADERS[name]
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    _refused(path, says)


def _head(tensors: int, keys: int) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, tensors, keys)


def _text(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


def _key(kind: int, rest: bytes) -> bytes:
    return _head(0, 1) + _text("a.key") + struct.pack("<I", kind) + rest + bytes(64)


def _tensor(*, dims: tuple[int, ...] = (4, 2), kind: int = 0, offset: int = 0) -> bytes:
    head = _text("a.tensor") + struct.pack(f"<I{len(dims)}Q", len(dims), *dims)
    return _head(1, 0) + head + struct.pack("<IQ", kind, offset) + bytes(64)


COUNTS: dict[str, tuple[bytes, str]] = {
    "tensors": (_head(LARGE, 0) + bytes(64), "tensors"),
    "keys": (_head(0, LARGE) + bytes(64), "keys"),
    "a name's bytes": (_head(0, 1) + struct.pack("<Q", LARGE) + bytes(64), "name of a key"),
    "a text's bytes": (_key(STRING, struct.pack("<Q", LARGE)), "'a.key'"),
    "items": (_key(ARRAY, struct.pack("<IQ", UINT32, LARGE)), "'a.key'"),
    "items of nothing": (_key(ARRAY, struct.pack("<IQ", STRING, 2**20)), "cannot be in the file"),
    "arrays of arrays": (_key(ARRAY, struct.pack("<IQ", ARRAY, 1)), "array of arrays"),
    "a value's type": (_key(99, bytes(8)), "unknown type 99"),
    "an item's type": (_key(ARRAY, struct.pack("<IQ", 77, 1)), "unknown type 77"),
    "no UTF-8": (_key(STRING, struct.pack("<Q", 2) + b"\xff\xfe"), "UTF-8"),
    "no dimensions": (_tensor(dims=()), "0 dimensions"),
    "many dimensions": (_tensor(dims=(1,) * 5), "5 dimensions"),
    "large dimensions": (_tensor(dims=(2**62, 2**62)), "truncated"),
    "an empty dimension": (_tensor(dims=(4, 0)), "shape"),
    "half a block": (_tensor(dims=(48, 2), kind=2), "shape"),
    "a tensor's type": (_tensor(kind=4), "unknown type 4"),
    "a tensor outside": (_tensor(offset=2**40), "truncated"),
    "a tensor between": (_tensor(offset=8), "misplaced"),
}


@pytest.mark.parametrize("name", COUNTS)
def test_an_absurd_count_is_refused(tmp_path: Path, name: str) -> None:
    data, says = COUNTS[name]
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    _refused(path, says)


def test_a_key_and_a_tensor_are_there_but_once(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    key = _text("a.key") + struct.pack("<II", UINT32, 7)
    path.write_bytes(_head(0, 2) + key + key)
    _refused(path, "twice")
    tensor = _tensor()[24:-64]
    path.write_bytes(_head(2, 0) + tensor + tensor + bytes(128))
    _refused(path, "twice")


def test_tensors_do_not_overlap(tmp_path: Path) -> None:
    path = tmp_path / "odd.gguf"
    first = _text("a") + struct.pack("<IQQIQ", 2, 64, 1, 0, 0)
    second = _text("b") + struct.pack("<IQQIQ", 2, 64, 1, 0, 32)
    path.write_bytes(_head(2, 0) + first + second + bytes(600))
    _refused(path, "'b' is misplaced")


@pytest.mark.parametrize("alignment", [0, 12, 2**20, "32"])
def test_an_odd_alignment_is_refused(tmp_path: Path, alignment: int | str) -> None:
    kind = STRING if isinstance(alignment, str) else UINT32
    value = _text(alignment) if isinstance(alignment, str) else struct.pack("<I", alignment)
    path = tmp_path / "odd.gguf"
    path.write_bytes(_head(0, 1) + _text("general.alignment") + struct.pack("<I", kind) + value)
    _refused(path, "aligned")


def test_another_alignment_is_read(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", keys={"general.alignment": 256})
    places = [
        (str(tensor.name), tensor.data_offset, tensor.n_bytes)
        for tensor in GGUFReader(path).tensors
    ]
    entries = read_container(path).tensors.values()
    assert [(entry.name, entry.offset, entry.length) for entry in entries] == places
    assert all(entry.offset % 256 == 0 for entry in entries)


def test_a_folder_a_pipe_and_nothing_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for path in (tmp_path, tmp_path / "pipe.gguf", tmp_path / "absent.gguf"):
        _refused(path)


KEYS: dict[str, tuple[dict[str, Any], str]] = {
    "a part": ({"split.count": 3, "split.no": 0}, "3 files"),
    "an adapter": ({"general.type": "adapter"}, "adapter"),
    "no layers": ({"llama.block_count": None}, "block_count is missing"),
    "no width": ({"llama.embedding_length": None}, "embedding_length is missing"),
    "no context": ({"llama.context_length": None}, "context_length is missing"),
    "no epsilon": ({"llama.attention.layer_norm_rms_epsilon": None}, "epsilon is missing"),
    "an epsilon of 0": ({"llama.attention.layer_norm_rms_epsilon": 0.0}, "no positive number"),
    "no number": ({"llama.block_count": "two"}, "no size"),
    "heads by layer": ({"llama.attention.head_count": [4, 4]}, "no size"),
    "no heads": ({"llama.attention.head_count": 0}, "no size"),
    "heads that do not divide": ({"llama.attention.head_count": 3}, "head"),
    "key heads that do not divide": ({"llama.attention.head_count_kv": 3}, "heads"),
    "half a head turned": ({"llama.rope.dimension_count": 8}, "rope.dimension_count"),
    "more layers": ({"llama.block_count": 3}, "'blk.2.attn_norm.weight' is missing"),
    "very many layers": ({"llama.block_count": 2**31 - 1}, "tensors are missing"),
    "fewer layers": ({"llama.block_count": 1}, "no place"),
    "another width": ({"llama.feed_forward_length": 64}, "shape"),
    "experts": ({"llama.expert_count": 8}, "llama.expert_count"),
    "a scaled rotary": ({"llama.rope.scaling.type": "yarn"}, "rope.scaling.type"),
    "a window": ({"llama.attention.sliding_window": 4096}, "sliding_window"),
    "a key nobody knows": ({"llama.residual_scale": 0.5}, "residual_scale"),
}


@pytest.mark.parametrize("name", KEYS)
def test_keys_that_ask_for_another_model_are_refused(tmp_path: Path, name: str) -> None:
    keys, says = KEYS[name]
    _refused(write_gguf(tmp_path / "tiny.gguf", keys=keys), says)


NAMES = [
    *(
        "general.type",
        "general.alignment",
        "split.count",
        "llama.block_count",
        "llama.rope.freq_base",
    ),
    *("llama.attention.causal", "llama.vocab_size", "tokenizer.ggml.model", "tokenizer.ggml.pre"),
    *("tokenizer.ggml.tokens", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"),
    *("tokenizer.ggml.add_eos_token", "tokenizer.ggml.eos_token_id", "tokenizer.chat_template"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [[1, 2], [0.5, 0.25], ["a", "b"], -1.5, "words"], ids=repr)
def test_a_value_of_another_type_is_refused_or_harmless(
    tmp_path: Path, name: str, value: Any
) -> None:
    path = write_gguf(
        tmp_path / "tiny.gguf", keys={} if name == "general.alignment" else {name: value}
    )
    with suppress(ArtefactError):
        assert read_gguf(path).tensors


def test_keys_that_change_nothing_are_read(tmp_path: Path) -> None:
    keys = {
        "llama.rope.scaling.type": "none",
        "llama.expert_count": 0,
        "llama.rope.freq_base": None,
        "general.name": None,
        "split.count": 1,
        "llama.vocab_size": None,
    }
    source = read_gguf(write_gguf(tmp_path / "tiny.gguf", keys=keys))
    assert source.name == "tiny"
    assert source.config["rope_parameters"]["rope_theta"] == 10000.0
    assert any("10000" in reason for reason in source.reasons)


@pytest.mark.parametrize("architecture", ["mamba", "gemma3", "qwen2moe", "llama4"])
def test_another_architecture_is_refused_by_name(tmp_path: Path, architecture: str) -> None:
    path = write_gguf(tmp_path / "tiny.gguf", architecture=architecture)
    _refused(path, repr(architecture))


def test_a_tensor_without_a_place_is_refused(tmp_path: Path) -> None:
    extra = {"rope_freqs.weight": np.ones(8, np.float32)}
    _refused(write_gguf(tmp_path / "tiny.gguf", extra=extra), "rope_freqs")
    extra = {"blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}
    _refused(write_gguf(tmp_path / "other.gguf", extra=extra), r"blk\.0\.attn_q\.bias")


def test_a_type_that_no_library_computes_is_refused(whole: Path, tmp_path: Path) -> None:
    data = bytearray(whole.read_bytes())
    name = b"blk.1.attn_norm.weight"
    place = data.index(name) + len(name) + 4 + 8  # behind the number of axes, and the axis
    assert data[place : place + 4] == struct.pack("<I", GGMLQuantizationType.F32)
    data[place : place + 4] = struct.pack("<I", GGMLQuantizationType.I32)
    path = tmp_path / "odd.gguf"
    path.write_bytes(data)
    _refused(path, "I32")


def _refused(path: Path, says: str = "\\S") -> None:
    """An ArtefactError that names the file, within a second and 8 MiB."""
    tracemalloc.start()
    begin = time.process_time()
    try:
        with pytest.raises(ArtefactError, match=says) as caught:
            read_gguf(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert str(path) in caught.value.cause
    assert caught.value.remedy
    assert time.process_time() - begin < 1
    assert peak < 2**23
