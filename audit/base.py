"""A base of the auditor's own against the run's manifest: what the fingerprint does not cover. (P-1.3)"""

from __future__ import annotations

from pathlib import Path

from audit.published import REMEDY, Run
from protocol.errors import ArtefactError, ProofError
from protocol.manifest import MANIFEST_NAME
from storage.regular import sha256_of


def check_base(run: Run, base: Path) -> None:
    """Manifest and files of ``base`` are those of the run. Raises ProofError, ArtefactError."""
    published = run.source.read(MANIFEST_NAME)
    try:
        if (base / MANIFEST_NAME).read_bytes() != published:
            raise ProofError(f"{MANIFEST_NAME} is not that of {base}", REMEDY)
        for name, entry in sorted(run.manifest.files.items()):
            path = base / name
            if not path.is_file() or path.stat().st_size != entry.bytes:
                raise ArtefactError(f"{path} is not as long as the manifest says", REMEDY)
            if sha256_of(path, size=entry.bytes) != entry.sha256:
                raise ArtefactError(f"{path} is not the file of the manifest", REMEDY)
    except OSError as error:
        raise ArtefactError(
            f"{base} cannot be read: {error.strerror}", "name a base's folder: --base"
        ) from None
