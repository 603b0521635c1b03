"""The installed base of a device that turns a text into another: verified files and two sessions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from edge_runtime.base import check_graph, manifest_text, open_session, verify_slots
from edge_runtime.decoder.base import (
    FLOAT,
    FREE,
    INT64,
    Shape,
    Values,
    WritingBase,
    cache_contract,
    verify_contract,
    whole_tokenizer,
)
from edge_runtime.decoder.key_values import writes_in_place
from protocol.decoder_manifest import IDS, MASK
from protocol.errors import ArtefactError
from protocol.manifest import MANIFEST_NAME
from protocol.seq2seq_manifest import (
    SOURCE_MASK,
    STATES,
    Seq2SeqManifest,
    is_seq2seq,
    parse_seq2seq_manifest,
)


@dataclass(frozen=True, kw_only=True)
class Seq2SeqBase(WritingBase):
    """An encoder with a decoder, checked and opened. ``reader``: the session of the encoder."""

    manifest: Seq2SeqManifest
    reader: Any

    @classmethod
    def open(cls, folder: Path, *, threads: int = 0, verify: bool = True) -> Seq2SeqBase:
        """Open a folder that ``fedge base build --task seq2seq-lm`` wrote.

        Args:
            folder: of the base.
            threads: of a session within an operator; 0 lets ONNX Runtime choose.
            verify: compare the sha256 of graphs and tokenizer with the manifest first.

        Raises ArtefactError when a file is missing, damaged or does not fit the manifest.
        """
        manifest = read_seq2seq_manifest(folder)
        check_graph(folder, manifest, verify=verify)
        reader, session = (
            open_session(folder / graph.file, threads=threads, one_by_one=True)
            for graph in manifest.graphs()
        )
        heads: Shape = (FREE, manifest.heads, FREE, manifest.head_size)
        cross: Values = dict.fromkeys(manifest.cross_names(), (FLOAT, heads))
        texts: Values = dict.fromkeys((IDS, MASK), (INT64, (FREE, FREE)))
        states: Values = {STATES: (FLOAT, (FREE, FREE, manifest.hidden_size))}
        verify_contract(reader, texts, states | cross, folder)
        inputs, outputs = cache_contract(session, manifest)
        source: Values = {SOURCE_MASK: (INT64, (FREE, FREE))}
        verify_contract(session, inputs | cross | source, outputs, folder)
        for opened, graph in zip((reader, session), manifest.graphs(), strict=True):
            verify_slots(opened, manifest.input_slots(graph), folder)
        return cls(
            folder=folder,
            manifest=manifest,
            session=session,
            reader=reader,
            tokenizer=whole_tokenizer(folder, manifest, verify=verify),
            in_place=writes_in_place(session, manifest, memory_of(reader, manifest, [0], {})),
        )


def memory_of(
    reader: Any, manifest: Seq2SeqManifest, source: Sequence[int], filled: Mapping[str, Any]
) -> dict[str, Any]:
    """What the decoder takes of a text's tokens, OrtValues by name; ``filled``: values of slots.

    Slots that are not the encoder's are left out. Raises ArtefactError when ONNX Runtime does.
    """
    slots = manifest.encoder.slot_names
    ids = np.array(source, np.int64)[None]
    mask = ort.OrtValue.ortvalue_from_numpy(np.ones_like(ids))
    feeds = {IDS: ort.OrtValue.ortvalue_from_numpy(ids), MASK: mask}
    feeds |= {name: value for name, value in filled.items() if name in slots}
    names = manifest.cross_names()
    try:
        values = reader.run_with_ort_values(names, feeds)
    except Exception as error:  # ORT raises types of its own, without a common public base
        raise ArtefactError(
            f"the base's graph does not run: {str(error).splitlines()[0][:200]}",
            "fetch the base and its adapter again, or give the device more memory",
        ) from None
    return {**dict(zip(names, values, strict=True)), SOURCE_MASK: mask}


def read_seq2seq_manifest(folder: Path) -> Seq2SeqManifest:
    """The manifest of such a base's folder. Raises ArtefactError."""
    text = manifest_text(folder)
    if not is_seq2seq(text):
        raise ArtefactError(
            f"{folder} is not a base that turns a text into another",
            "take one that was built with --task seq2seq-lm",
        )
    return parse_seq2seq_manifest(text, source=str(folder / MANIFEST_NAME))
