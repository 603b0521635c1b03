"""Turn a PEFT folder into what devices run, and prove the two equal. (P-5.2, P-5.3)

Parity is measured through the door a user takes: the adapter opened by ``PeftModel`` on the codes
in torch, against the edge graph with the written ``.onnx_adapter`` in ONNX Runtime. Without parity
within the bound nothing is released.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch

from base_model.bottlenecks import open_bottlenecks
from base_model.frozen_linears import stored_linears
from base_model.hybrid import open_hybrid
from base_model.media_store import OpenMedia, open_headed
from base_model.parity import Bounds, compare
from base_model.peft_folder import published_of, read_note, read_peft
from base_model.quant_linear import refuse_merge
from base_model.relative import relate
from base_model.store import GRAPH, OpenBase
from base_model.verify import read_manifest, verify_base
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.decoder_manifest import DecoderManifest
from protocol.denoiser_manifest import DenoiserManifest
from protocol.encoding import vector_digest
from protocol.errors import ArtefactError
from protocol.manifest import TYPE_IDS
from protocol.methods.hybrid import Hybrid
from protocol.peft_format import (
    EDGE_FILE,
    RELEASE_FILE,
    Parity,
    ParityError,
    ReleaseNote,
    folder_head,
    render_release,
    to_edge,
)
from protocol.rows.media import codec_of, read_inputs
from protocol.rows.pages import Page, page_encodings, page_feeds
from protocol.rows.read import Text
from protocol.rows.tokens import padded, text_feeds
from protocol.seq2seq_manifest import Seq2SeqManifest
from storage.regular import sha256_of
from storage.whole import file_that_appears, write_whole

ROWS = 64  # per batch; both sides get the same batches
Array = npt.NDArray[Any]


def release_adapter(
    adapter: Path, base: Path, *, texts: Sequence[Any], bound: float, absolute: float = 0.0
) -> ReleaseNote:
    """Write ``adapter.onnx_adapter`` into ``adapter`` and the parity into its ``release.json``.

    Args:
        adapter: a PEFT folder with the ``release.json`` the coordinator wrote.
        base: the base folder it was trained on.
        texts: rows to compare on, at least one: texts or pairs, or for a base that writes text chats too,
            or images, or pages.
        bound: largest ``|torch - onnx| / |torch|`` of a row's logits that is accepted.
        absolute: difference that is accepted in any row; 0 derives it (:class:`Bounds`).

    Raises ArtefactError when a file is damaged or the base is another one, ParityError when parity is
    above ``bound``; then no ``.onnx_adapter`` is left behind and ``release.json`` is as it was.
    """
    note = read_note(adapter)
    check_adapter(adapter, note)
    manifest = verify_base(base)
    if manifest.fingerprint != note.base_fingerprint:
        raise ArtefactError(
            f"{adapter} belongs to base {note.base_fingerprint[:12]}…, {base} is "
            f"{manifest.fingerprint[:12]}…",
            "name the base the adapter was trained on",
        )
    if not texts:
        raise ArtefactError("there are no rows to measure parity on", "pass some texts")
    tensors = read_peft(adapter)
    with file_that_appears(adapter / EDGE_FILE) as temporary:
        linears = stored_linears(base, manifest)
        slots = to_edge(tensors, published=published_of(adapter), linears=linears)
        write_edge_adapter(slots, temporary)
        bounds = Bounds(relative=bound, absolute=absolute)
        parity = _parity(base, adapter, temporary, note, texts, bounds)
        if not parity.max_relative <= bound:
            raise ParityError(
                f"{adapter}: torch and ONNX Runtime differ by {parity.max_relative:.2e}, "
                f"the bound is {bound:.0e}",
                "do not release this adapter: where noise or long steps have spoilt it, go on from an "
                "earlier round; else rebuild the base's graph and compare again",
                parity,
            )
        files = note.files | {EDGE_FILE: sha256_of(temporary)}
        released = note.model_copy(update={"files": files, "parity": parity})
    write_whole(adapter / RELEASE_FILE, render_release(released))
    return released


def _parity(
    base: Path,
    adapter: Path,
    edge_adapter: Path,
    note: ReleaseNote,
    texts: Sequence[Any],
    bounds: Bounds,
) -> Parity:
    """Of the verified ``base``, by what it answers with."""
    match read_manifest(base):
        case DecoderManifest():
            from base_model.decoder.parity import decoder_parity

            return decoder_parity(base, adapter, edge_adapter, texts, bounds)
        case Seq2SeqManifest():
            from base_model.seq2seq.parity import seq2seq_parity

            return seq2seq_parity(base, adapter, edge_adapter, texts, bounds)
        case DenoiserManifest():
            from base_model.denoisers.parity import denoiser_parity

            labels = len(note.labels)
            return denoiser_parity(base, adapter, edge_adapter, texts, labels, bounds)
    opened = open_headed(base, labels=note.outputs, verify=False)
    return measure_parity(opened, adapter, edge_adapter, note, texts, bounds)


def check_adapter(adapter: Path, note: ReleaseNote) -> None:
    """The folder holds what its note names. Raises ArtefactError for a changed or unfit file."""
    for name, expected in sorted(note.files.items()):
        if name != EDGE_FILE and (
            not (adapter / name).is_file() or sha256_of(adapter / name) != expected
        ):
            raise ArtefactError(
                f"{adapter / name} is not the file that {RELEASE_FILE} names",
                "fetch the adapter again",
            )
    tensors = read_peft(adapter)
    vector = np.concatenate([tensors[name].reshape(-1) for name in sorted(tensors)])
    if vector_digest(vector.astype(np.float32)) != note.adapter_digest:
        raise ArtefactError(
            f"{adapter}: the tensors do not have the digest that {RELEASE_FILE} names",
            "fetch the adapter again",
        )
    if not np.isfinite(vector).all():
        raise ArtefactError(f"{adapter}: NaN or infinity", "release an earlier round")


def open_peft(opened: OpenBase | OpenMedia, adapter: Path) -> Any:
    """``PeftModel.from_pretrained`` on the opened base, in eval mode; merging is refused.

    Of a type that peft has not, ours in its place.
    """
    from peft import PeftModel

    published = published_of(adapter)
    method = published.method
    if isinstance(method, Hybrid):
        return open_hybrid(opened.model, adapter, published, read_peft(adapter))
    if not method.of_peft:
        return open_bottlenecks(opened.model, read_peft(adapter), published.constants["scaling"])
    opened.model.rename_head(folder_head(opened.manifest, method))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = PeftModel.from_pretrained(opened.model, str(adapter))
    relate(model, "default")
    refuse_merge(model)
    return model.eval()


def measure_parity(
    opened: OpenBase | OpenMedia,
    adapter: Path,
    edge_adapter: Path,
    note: ReleaseNote,
    texts: Sequence[Any],
    bounds: Bounds,
) -> Parity:
    """Both sides on the same batches. Rounding alone makes 1e-6 as a rule, and some 1e-5."""
    torch_model = open_peft(opened, adapter)
    session, options, _keep = edge_session(opened.folder, edge_adapter)
    expected, answers = [], []
    for feeds in _batches(opened, texts, note.max_length):
        inputs = {name: torch.from_numpy(value) for name, value in feeds.items()}
        if TYPE_IDS in inputs:  # by this name peft hands them on behind a prompt
            inputs["segments"] = inputs.pop(TYPE_IDS)
        with torch.no_grad():
            logits = torch_model(**inputs).logits
        expected.append(logits.numpy())
        answers.append(session.run(["logits"], feeds, options)[0])
    return compare(np.concatenate(expected), np.concatenate(answers), bounds)


def edge_session(base: Path, edge_adapter: Path) -> tuple[Any, Any, Any]:
    """(session, run options with the adapter, the adapter): keep the last, options do not."""
    settings = ort.SessionOptions()
    settings.log_severity_level = 3
    session = ort.InferenceSession(str(base / GRAPH), settings, providers=["CPUExecutionProvider"])
    loaded = ort.LoraAdapter()
    loaded.Load(str(edge_adapter))
    options = ort.RunOptions()
    options.add_active_adapter(loaded)
    return session, options, loaded


def _batches(
    opened: OpenBase | OpenMedia, texts: Sequence[Any], max_length: int
) -> list[dict[str, Array]]:
    """What the graph reads of rows, as ``client.batches`` and the device read it."""
    if isinstance(opened, OpenMedia):
        rows, codec = opened.manifest.together(ROWS), codec_of(opened.manifest)
        return [
            read_inputs(texts[at : at + rows], codec, first=at + 1)
            for at in range(0, len(texts), rows)
        ]
    return _batches_of_texts(opened, texts, max_length)


def _batches_of_texts(
    opened: OpenBase, texts: Sequence[Text | Page], max_length: int
) -> list[dict[str, Array]]:
    """Padded inputs, int64, longest rows together."""
    tokenizer, boxed = opened.tokenizer, opened.manifest.boxed
    tokenizer.enable_truncation(max_length)
    whole = (
        page_encodings(tokenizer, cast(Sequence[Page], texts))
        if boxed
        else tokenizer.encode_batch(list(texts))
    )
    encoded = sorted(zip(whole, texts, strict=True), key=lambda row: sum(row[0].attention_mask))
    typed = TYPE_IDS in opened.manifest.graph.inputs and not isinstance(texts[0], str)
    batches: list[dict[str, Array]] = []
    for start in range(0, len(encoded), ROWS):
        chunk, items = zip(*encoded[start : start + ROWS], strict=True)
        feeds: dict[str, Array] = dict(page_feeds(chunk, items) if boxed else text_feeds(chunk))
        if typed:
            feeds[TYPE_IDS] = padded([e.type_ids for e in chunk], chunk)
        batches.append(feeds)
    return batches
