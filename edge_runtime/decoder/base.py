"""The installed base of a device that writes text: verified files, one session, a tokenizer, a template."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from edge_runtime.base import (
    REFETCH,
    TOKENIZER,
    check_file,
    check_graph,
    manifest_text,
    open_session,
    open_tokenizer,
    verify_slots,
)
from edge_runtime.decoder.key_values import rows_agree, writes_in_place
from protocol.chat.template import MOST_TEMPLATE
from protocol.decoder_manifest import (
    CHAT_TEMPLATE,
    IDS,
    LOGITS,
    MASK,
    DecoderManifest,
    WritingManifest,
    is_decoder,
    parse_decoder_manifest,
)
from protocol.errors import ArtefactError, DataError
from protocol.manifest import MANIFEST_NAME
from protocol.panics import tokenizing
from protocol.seq2seq_manifest import is_seq2seq
from storage.regular import read_regular_text

FREE = ""  # a dimension of any size
INT64, FLOAT = "tensor(int64)", "tensor(float)"
Shape = tuple[int | str, ...]
Values = dict[str, tuple[str, Shape]]  # types and shapes by name


@dataclass(frozen=True, kw_only=True)
class WritingBase:
    """A base that writes a text token by token, checked and opened. One session serves many threads.

    ``session``: of the graph that writes. ``in_place``: it writes a cache's new state into the old one's
    memory, where that has room.
    """

    folder: Path
    manifest: WritingManifest
    session: Any
    tokenizer: Tokenizer
    in_place: bool

    @cached_property
    def optional(self) -> frozenset[str]:
        """Names of the optional inputs of the graph that writes."""
        return frozenset(slot.name for slot in self.manifest.input_slots(self.manifest.graph))

    @cached_property
    def runs_rows(self) -> bool:
        """Whether texts of unequal length may be rows of one run; it is tried, with some tokens."""
        return self.in_place and rows_agree(self.session, self.manifest)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Tokens of ``text``; with ``special`` also those that the tokenizer puts around a text.

        Raises DataError for text with a lone surrogate, which no tokenizer reads, ArtefactError for a
        tokenizer that fails.
        """
        try:
            with tokenizing(f"{self.folder / TOKENIZER} fails", REFETCH):
                return list(self.tokenizer.encode(text, add_special_tokens=special).ids)
        except (UnicodeEncodeError, TypeError):
            raise DataError("the text is not valid Unicode", "send it as UTF-8") from None

    def prompt(self, text: str) -> list[int]:
        """Tokens of a text that is to be read. Raises as :meth:`encode`."""
        return self.encode(text)


@dataclass(frozen=True, kw_only=True)
class DecoderBase(WritingBase):
    """A decoder that was checked and opened.

    ``template``: Jinja that makes a prompt of a chat, None for a base that knows none.
    """

    manifest: DecoderManifest
    template: str | None

    def prompt(self, text: str) -> list[int]:
        """The same; an empty text begins anew, if the base has a token that begins texts."""
        begin = self.manifest.begin
        return self.encode(text) or ([] if begin is None else [begin])

    @classmethod
    def open(cls, folder: Path, *, threads: int = 0, verify: bool = True) -> DecoderBase:
        """Open a decoder's folder.

        Args:
            folder: what ``fedge base build`` wrote.
            threads: of the session within an operator; 0 lets ONNX Runtime choose.
            verify: compare the sha256 of graph, tokenizer and template with the manifest first.

        Raises ArtefactError when a file is missing, damaged or does not fit the manifest.
        """
        manifest = read_decoder_manifest(folder)
        check_graph(folder, manifest, verify=verify)
        session = open_session(folder / manifest.graph.file, threads=threads, one_by_one=True)
        _check_contract(session, manifest, folder)
        verify_slots(session, manifest.input_slots(manifest.graph), folder)
        return cls(
            folder=folder,
            manifest=manifest,
            session=session,
            tokenizer=whole_tokenizer(folder, manifest, verify=verify),
            template=_template(folder, manifest, verify=verify),
            in_place=writes_in_place(session, manifest),
        )


def read_decoder_manifest(folder: Path) -> DecoderManifest:
    """The manifest of a decoder's folder. Raises ArtefactError."""
    text = manifest_text(folder)
    if is_seq2seq(text):
        raise ArtefactError(
            f"{folder} is a base that turns a text into another; it knows neither chats nor prompts",
            "use `fedge edge generate`",
        )
    if not is_decoder(text):
        raise ArtefactError(
            f"{folder} is not a base that writes text",
            "take one that was built from a decoder; `fedge edge infer` answers with others, and `fedge edge "
            "draw` with one that draws",
        )
    return parse_decoder_manifest(text, source=str(folder / MANIFEST_NAME))


def whole_tokenizer(folder: Path, manifest: WritingManifest, *, verify: bool) -> Tokenizer:
    """The base's tokenizer; what does not fit is refused, not cut. Raises ArtefactError."""
    entry = manifest.files[TOKENIZER]
    check_file(folder / TOKENIZER, entry.sha256, size=entry.bytes, verify=verify)
    tokenizer = open_tokenizer(folder / TOKENIZER)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _template(folder: Path, manifest: DecoderManifest, *, verify: bool) -> str | None:
    entry = manifest.files.get(CHAT_TEMPLATE)
    if entry is None:
        return None
    path = folder / CHAT_TEMPLATE
    check_file(path, entry.sha256, size=entry.bytes, verify=verify)
    try:
        return read_regular_text(path, most=MOST_TEMPLATE)
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path}: not a template that can be read", REFETCH) from None


def _check_contract(session: Any, manifest: DecoderManifest, folder: Path) -> None:
    """Inputs and outputs are those of `protocol.decoder_manifest`, of the manifest's sizes."""
    inputs, outputs = cache_contract(session, manifest)
    verify_contract(session, inputs, outputs, folder)


def cache_contract(session: Any, manifest: WritingManifest) -> tuple[Values, Values]:
    """Inputs and outputs, (type, shape) by name, of a graph that writes over a cache."""
    names = manifest.cache_names()
    cache: Shape = (FREE, manifest.kv_heads, FREE, manifest.head_size)
    inputs: Values = {
        IDS: (INT64, (FREE, FREE)),
        MASK: (INT64, (FREE, FREE)),
        **{name: (FLOAT, cache) for name, _ in names},
    }
    # Bases built before logits were the last token's alone give them of every new one.
    last = any(value.name == LOGITS and value.shape[1:2] == [1] for value in session.get_outputs())
    outputs: Values = {
        LOGITS: (FLOAT, (FREE, 1 if last else FREE, manifest.vocab_size)),
        **{name: (FLOAT, cache) for _, name in names},
    }
    return inputs, outputs


def verify_contract(session: Any, inputs: Values, outputs: Values, folder: Path) -> None:
    """A graph takes and gives exactly these. Raises ArtefactError that names the first difference."""
    for wanted, nodes in ((inputs, session.get_inputs()), (outputs, session.get_outputs())):
        present = {node.name: node for node in nodes}
        for name in sorted(wanted.keys() | present.keys()):
            if name not in present or name not in wanted or not _fits(present[name], *wanted[name]):
                raise ArtefactError(
                    f"{folder}: the graph is not the manifest's; first difference: {name}", REFETCH
                )


def _fits(node: Any, kind: str, shape: Shape) -> bool:
    """Whether an input or output has this type and exactly these sizes, open ones where they are free."""
    return (
        node.type == kind
        and len(node.shape) == len(shape)
        and all(
            not isinstance(got, int) if want == FREE else got == want
            for got, want in zip(node.shape, shape, strict=True)
        )
    )
