"""A file without its zeros: a bit for each word of four bytes, and the words that are not zero. (P-9.10)

What is kept of an adapter travels in 4 bytes a number, what is not in a bit. It is the file itself that is
coded, not what it means: whoever decodes has the very bytes whose digest was signed. A file has one form.
"""

from __future__ import annotations

import numpy as np

from protocol.errors import ArtefactError

MAGIC = b"fedgeB1\0"
HEAD = 16  # bytes: the magic, and the file's length as u64
WORD = 4
REMEDY = "keep it as evidence and tell the publisher"


def encode_bitmap(data: bytes) -> bytes:
    """The form of ``data``: longer than it by a 32nd where no word is zero."""
    words = np.frombuffer(data + bytes(-len(data) % WORD), "<u4")
    stated = words != 0
    bitmap = np.packbits(stated, bitorder="little")
    head = MAGIC + len(data).to_bytes(8, "little")
    return b"".join([head, bitmap.tobytes(), words[stated].tobytes()])


def sent_size(data: bytes) -> int:
    """Bytes that a device fetches of a file: those of its form, where that is shorter."""
    return min(len(data), len(encode_bitmap(data)))


def decode_bitmap(form: bytes, *, length: int, source: str) -> bytes:
    """The file of ``length`` bytes, which somebody has signed, in whose form it is.

    Raises ArtefactError, which names ``source``, for any other bytes than :func:`encode_bitmap` gives.
    Nothing of the file's size is allocated before the form has what it says.
    """
    words = -(-length // WORD)
    start = HEAD + -(-words // 8)  # of the words that are not zero
    if form[: len(MAGIC)] != MAGIC or len(form) < start:
        raise _bad(source, "it is no bitmap form, or cut off before its words")
    if int.from_bytes(form[len(MAGIC) : HEAD], "little") != length:
        raise _bad(source, f"it is of a file of another length than {length} bytes")
    bits = np.unpackbits(np.frombuffer(form[HEAD:start], np.uint8), bitorder="little")
    if bits[words:].any():
        raise _bad(source, f"its bitmap names words behind the last, {words}")
    stated, count = bits[:words].view(bool), int(np.count_nonzero(bits))
    if len(form) != start + WORD * count:
        raise _bad(source, f"its bitmap names {count} words, {len(form) - start} bytes follow")
    values = np.frombuffer(form, "<u4", count, start)
    if not values.all():
        raise _bad(source, "a word that it states is zero")
    whole = np.zeros(words, "<u4")
    whole[stated] = values
    data = whole.tobytes()
    if any(data[length:]):
        raise _bad(source, "bytes behind the file's end are not zero")
    return data[:length]


def _bad(source: str, fault: str) -> ArtefactError:
    return ArtefactError(f"{source}: {fault}", REMEDY)
