"""P-5.6 and P-9.10: what of a tensor is published, and the form in which a file travels without its zeros."""

from __future__ import annotations

from typing import Any

import numpy as np

from protocol.bitmap_form import HEAD, encode_bitmap
from protocol.magnitude import largest_alone

TENSORS = {
    "in order": ([[0.5, -2.0, 0.25], [-0.75, 1.0, 3.0]], [1.0, 0.75, 0.5, 0.34, 0.1, 0.001]),
    "equal magnitudes": ([1.0, -1.0, 1.0, -1.0, 0.5, 1.0], [0.5, 0.6]),
    "zeros of both signs": ([-0.0, 0.0, -0.0, 2.0], [0.5, 0.75]),
    "tiny and huge": ([2.0**-149, -(2.0**-126), 3.4028234663852886e38, 0.0], [0.25, 0.7]),
    "a product that is rounded up": ([float(n) for n in range(1, 31)], [0.7, 0.1, 0.3]),
    "one number": ([-4.0], [0.001]),
}


def magnitude() -> dict[str, Any]:
    """P-5.6."""
    cases = []
    for what, (numbers, shares) in TENSORS.items():
        values = np.array(numbers, np.float32)
        for keep in shares:
            kept = largest_alone(values, keep)
            cases.append(
                {
                    "what": what,
                    "shape": list(values.shape),
                    "values": _hexed(values),
                    "keep": keep.hex(),
                    "kept": _hexed(kept),
                }
            )
    return {"published": cases}


def bitmap() -> dict[str, Any]:
    """P-9.10."""
    words = [0, 1, 0x80000000, 0, 0, 0xFFFFFFFF, 0, 0, 7]
    files = {
        "nothing": b"",
        "less than a word": b"\0\1",
        "zeros": bytes(11),
        "no zero": bytes(range(1, 65)),
        "nine words": np.array(words, "<u4").tobytes(),
        "nine words and a byte": np.array(words, "<u4").tobytes() + b"\xff",
    }
    good = encode_bitmap(files["nine words and a byte"])
    return {
        "forms": [
            {"what": what, "file": data.hex(), "form": encode_bitmap(data).hex()}
            for what, data in files.items()
        ],
        "length": 37,
        "refused": [
            {"why": why, "form": form.hex(), "error": error} for why, form, error in _refused(good)
        ],
    }


def _refused(good: bytes) -> list[tuple[str, bytes, str]]:
    """Of a file of 37 bytes: ten words, five of them stated, in two bytes of bitmap."""
    head, bits, words = good[:HEAD], good[HEAD : HEAD + 2], good[HEAD + 2 :]
    magic, length = head[:8], head[8:]

    def of_length(number: int) -> bytes:
        return magic + number.to_bytes(8, "little") + bits + words

    return [
        ("empty", b"", "no bitmap form, or cut off"),
        ("half a head", good[:12], "no bitmap form, or cut off"),
        ("another magic", magic[:-1] + b"\1" + length + bits + words, "no bitmap form, or cut off"),
        ("half a bitmap", good[: HEAD + 1], "no bitmap form, or cut off"),
        ("a longer file", of_length(38), "another length"),
        ("a shorter file", of_length(36), "another length"),
        ("a file of any length", of_length(2**63), "another length"),
        ("a word too few", good[:-4], "names 5 words, 16 bytes follow"),
        ("half a word too few", good[:-2], "names 5 words, 18 bytes follow"),
        ("a byte behind", good + b"\0", "names 5 words, 21 bytes follow"),
        ("a word behind", good + bytes(4), "names 5 words, 24 bytes follow"),
        ("a bit less", head + bytes([bits[0] & ~2, bits[1]]) + words, "names 4 words"),
        ("a bit more", head + bytes([bits[0] | 1, bits[1]]) + words, "names 6 words"),
        (
            "a word behind the last",
            head + bytes([bits[0], bits[1] | 4]) + words + b"\1\0\0\0",
            "words behind the last",
        ),
        ("a zero that is stated", head + bits + bytes(4) + words[4:], "a word that it states"),
        ("a byte behind the file's end", good[:-1] + b"\1", "behind the file's end"),
    ]


def _hexed(values: Any) -> str:
    return np.ascontiguousarray(values, "<f4").tobytes().hex()
