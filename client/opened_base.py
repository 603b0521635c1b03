"""The base of this process: verified by hash once, with its tokenizer; no torch is loaded for it."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

from base_model.verify import open_tokenizer, verify_base
from base_model.weights_file import REBUILD
from client.settings import manifest_at
from protocol.chat.template import MOST_TEMPLATE
from protocol.decoder_manifest import CHAT_TEMPLATE
from protocol.errors import ArtefactError
from protocol.manifest import TOKENIZER
from protocol.manifests import AnyManifest
from protocol.plan import Plan
from storage.regular import read_regular_text

BASES = 2  # kept open in one process; the one not used for longest is let go
HOME = Path("~/.cache/fedge/programs")


@dataclass(frozen=True, kw_only=True)
class OpenedBase:
    """A verified base; ``tokenizer`` of one that reads texts, ``template`` of one that knows chats."""

    folder: Path
    manifest: AnyManifest
    texts: Tokenizer | None
    template: str | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """Of a base that reads texts."""
        assert self.texts is not None  # tasks of texts are illegal on other bases
        return self.texts

    def program_cache(self, state: Path | None) -> Path | None:
        """Where programs of this base are kept: beside it, in ``state``, or in this user's cache.

        None when this user has no such folder: what another user may write is not run.
        """
        beside = self.folder.with_name(f"{self.folder.name}.programs")
        folders = (beside, *([state] if state else []), HOME.expanduser())
        return next((folder for folder in folders if _usable(folder)), None)


def _usable(folder: Path) -> bool:
    """Made if need be, this user's own, and nobody else's to write to."""
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        state = folder.lstat()
    except OSError:
        return False
    own = state.st_uid == os.geteuid() and not state.st_mode & 0o022
    return own and folder.is_dir() and os.access(folder, os.W_OK)


def opened_base(plan: Plan, folder: Path) -> OpenedBase:
    """The base of ``plan`` at ``folder``; verified at the first call of a process.

    Raises ArtefactError when the folder is damaged or holds another base than the plan's.
    """
    folder = folder.resolve()
    fingerprint = manifest_at(folder).fingerprint
    if fingerprint != plan.base.fingerprint:
        raise ArtefactError(
            f"{folder}: holds base {fingerprint[:12]}…, the plan names {plan.base.fingerprint[:12]}…",
            "fetch the base that the plan names, or correct base.fingerprint",
        )
    key = (str(folder), fingerprint)
    with _lock:
        if key not in _bases:
            while len(_bases) >= BASES:
                _bases.popitem(last=False)
            manifest = verify_base(folder)
            _bases[key] = OpenedBase(
                folder=folder,
                manifest=manifest,
                texts=open_tokenizer(folder) if TOKENIZER in manifest.files else None,
                template=_template(folder, manifest),
            )
        _bases.move_to_end(key)
        return _bases[key]


def _template(folder: Path, manifest: AnyManifest) -> str | None:
    if CHAT_TEMPLATE not in manifest.files:
        return None
    path = folder / CHAT_TEMPLATE
    try:
        return read_regular_text(path, most=MOST_TEMPLATE)
    except (OSError, UnicodeDecodeError):
        raise ArtefactError(f"{path}: not a template that can be read", REBUILD) from None


_bases: OrderedDict[tuple[str, str], OpenedBase] = OrderedDict()
_lock = threading.Lock()
