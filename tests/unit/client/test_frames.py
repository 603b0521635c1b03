"""What travels between a site's messages and its trainer: whole and known, or refused."""

from __future__ import annotations

import socket
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client.frames import MAGIC, PREFIX, Refused, State, Stop, Train, Trained, receive, send
from protocol.errors import (
    ArtefactError,
    DataError,
    FedgeError,
    MachineError,
    PlanError,
    RoundError,
    UpdateError,
)

TEXT = st.text(max_size=40)
HEADERS = st.one_of(
    st.builds(
        Train,
        client=TEXT,
        plan=TEXT,
        base=TEXT,
        data=TEXT,
        threads=st.integers(0, 64),
        instruction=st.dictionaries(
            TEXT, st.one_of(st.booleans(), st.integers(-(2**63), 2**63), TEXT)
        ),
    ),
    st.builds(Stop),
    st.builds(State, pid=st.integers(0, 2**31), code=TEXT, served=st.just(3), busy=st.booleans()),
    st.builds(
        Trained,
        weight=st.integers(0, 2**24),
        metrics=st.dictionaries(TEXT, st.floats(allow_nan=False, allow_infinity=False)),
    ),
    st.builds(Refused, error=st.just("DataError"), cause=TEXT, remedy=TEXT, public=st.just("p")),
)


def sent(data: bytes) -> socket.socket:
    """The reading end of a connection that carried ``data`` and was closed."""
    reader, writer = socket.socketpair()
    writer.sendall(data)
    writer.close()
    return reader


@given(header=HEADERS, body=st.binary(max_size=400))
def test_what_is_sent_is_received(header: Train, body: bytes) -> None:
    vector = np.frombuffer(body[: len(body) // 4 * 4], "<f4")
    reader, writer = socket.socketpair()
    with reader, writer:
        send(writer, header, vector)
        writer.close()
        frame = receive(reader)
        assert frame is not None
        assert frame[0] == header
        assert type(frame[0]) is type(header)
        assert frame[1].tobytes() == vector.tobytes()
        assert receive(reader) is None


def test_a_long_body_arrives_whole() -> None:
    vector = np.arange(2_000_003, dtype=np.float32)
    reader, writer = socket.socketpair()
    with reader, writer:
        threading.Thread(target=send, args=(writer, Stop(), vector)).start()
        frame = receive(reader)
        assert frame is not None
        assert np.array_equal(frame[1], vector)


STOP = b'{"kind":"stop"}'


@pytest.mark.parametrize(
    ("data", "fault"),
    [
        (PREFIX.pack(b"fedgeT2\0", 0, 0), "version 1"),
        (PREFIX.pack(MAGIC, 2**16 + 1, 0), "lengths"),
        (PREFIX.pack(MAGIC, 10, 2**30 + 4), "lengths"),
        (PREFIX.pack(MAGIC, len(STOP), 3) + STOP + b"abc", "lengths"),
        (b'{"kind":"stop","more":1}', "header is wrong"),
        (b'{"kind":"stop"', "header is wrong"),
        (b'{"kind":"run"}', "header is wrong"),
        (b'{"kind":"state","pid":"1","code":"","served":0,"busy":false}', "state.pid"),
        (b'{"kind":"trained","weight":1,"metrics":{"a":NaN}}', "header is wrong"),
        (
            b'{"kind":"refused","error":"SystemExit","cause":"","remedy":"","public":null}',
            "refused.error",
        ),
        (b"\xff\xfe", "header is wrong"),
    ],
)
def test_anything_else_is_refused(data: bytes, fault: str) -> None:
    if not data.startswith(b"fedgeT"):
        data = PREFIX.pack(MAGIC, len(data), 0) + data
    with sent(data) as reader, pytest.raises(ArtefactError, match=fault):
        receive(reader)


@pytest.mark.parametrize("kept", [1, PREFIX.size - 1, PREFIX.size, PREFIX.size + 3, -1])
def test_a_frame_that_ends_early_is_no_frame(kept: int) -> None:
    whole = PREFIX.pack(MAGIC, len(STOP), 4) + STOP + struct.pack("<f", 1.0)
    with sent(whole[:kept]) as reader, pytest.raises(EOFError):
        receive(reader)


@pytest.mark.parametrize(
    "error",
    [
        PlanError("a", "b"),
        DataError("row 3: 'private'", "b", public="row 3"),
        ArtefactError("a", "b"),
        UpdateError("a", "b"),
        RoundError("a", "b"),
        MachineError("a" * 10_000, "b"),
    ],
)
def test_an_error_is_the_same_on_the_other_side(error: FedgeError) -> None:
    again = Refused.of(error).raised()
    assert type(again) is type(error)
    assert (again.cause, again.remedy) == (error.cause[:2000], error.remedy)
    assert getattr(again, "public", None) == getattr(error, "public", None)
