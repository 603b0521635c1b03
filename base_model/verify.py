"""Compare a base folder with its manifest, and its tensors with the fingerprint; no torch is loaded."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from base_model.media_read import reads
from base_model.source_files import read_object
from base_model.weights_file import REBUILD, WEIGHTS, tensor_entries
from protocol.errors import ArtefactError
from protocol.manifest import CONFIG, MANIFEST_NAME, TOKENIZER, Manifest, parse_manifest
from protocol.manifests import AnyManifest, parse_any_manifest
from protocol.media_manifest import MediaManifest
from protocol.panics import tokenizing
from storage.regular import read_regular_text, sha256_of


def read_encoder_manifest(folder: Path) -> Manifest:
    """``manifest.json`` of a base that reads texts. Raises ArtefactError, also for one that writes them."""
    return parse_manifest(_text(folder), source=str(folder / MANIFEST_NAME))


def read_manifest(folder: Path) -> AnyManifest:
    """``manifest.json`` of a base folder, whichever task it is for. Raises ArtefactError."""
    return parse_any_manifest(_text(folder), source=str(folder / MANIFEST_NAME))


def _text(folder: Path) -> str:
    path = folder / MANIFEST_NAME
    try:
        return read_regular_text(path)
    except (FileNotFoundError, NotADirectoryError):
        raise ArtefactError(
            f"{folder} is not a base: there is no {MANIFEST_NAME}",
            "name the folder that `fedge base build --out` wrote",
        ) from None
    except UnicodeDecodeError:
        raise ArtefactError(f"{path} is not a text file", REBUILD) from None
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read: {error.strerror}", REBUILD) from None


def verify_encoder(folder: Path) -> Manifest:
    """:func:`verify_base` of a base that reads texts. Raises ArtefactError, also for another."""
    manifest = read_encoder_manifest(folder)
    _verify(folder, manifest)
    return manifest


def verify_base(folder: Path) -> AnyManifest:
    """Compare every file and every tensor with the manifest, and it with its fingerprint.

    Raises ArtefactError that names the first wrong one.
    """
    manifest = read_manifest(folder)
    _verify(folder, manifest)
    return manifest


def _verify(folder: Path, manifest: AnyManifest) -> None:
    for name, entry in sorted(manifest.files.items()):
        path = folder / name
        try:
            same = sha256_of(path, size=entry.bytes) == entry.sha256
        except FileNotFoundError:
            raise ArtefactError(f"{path} is missing", REBUILD) from None
        except OSError as error:
            raise ArtefactError(f"{path}: cannot be read: {error.strerror}", REBUILD) from None
        if not same:
            raise ArtefactError(
                f"{path} is not the file the manifest names (sha256 differs)", REBUILD
            )
    known = {*manifest.files, MANIFEST_NAME}
    extra = sorted(path.name for path in folder.iterdir() if path.name not in known)
    if extra:
        raise ArtefactError(f"{folder / extra[0]} is not in the manifest", "remove it, or rebuild")
    verify_tensors(folder / WEIGHTS, manifest)
    if isinstance(manifest, MediaManifest):
        _verify_read(folder / CONFIG, manifest)


def _verify_read(path: Path, manifest: MediaManifest) -> None:
    """The model of ``config.json`` reads the files that the manifest makes. Raises ArtefactError."""
    config, made, what = read_object(path), manifest.shape, manifest.MEDIUM.plural
    try:
        read = reads(config, manifest)
    except (KeyError, TypeError, ValueError):
        raise ArtefactError(f"{path} does not say what {what} are read", REBUILD) from None
    if read != made:
        raise ArtefactError(
            f"{path}: the model reads {what} of {_by(read)}, and the manifest makes {_by(made)}",
            "do not use this base",
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))


def verify_tensors(path: Path, manifest: AnyManifest) -> None:
    """The tensors in ``path`` are those of the fingerprint. Raises ArtefactError that names one."""
    entries = tensor_entries(path)
    odd = sorted(
        name
        for name in {*entries, *manifest.tensors}
        if entries.get(name) != manifest.tensors.get(name)
    )
    if odd:
        raise ArtefactError(
            f"{path}: {odd[0]} is not the tensor that the fingerprint covers",
            "do not use this base",
        )


def open_tokenizer(folder: Path) -> Tokenizer:
    """The base's tokenizer. Raises ArtefactError."""
    with tokenizing(str(folder / TOKENIZER), REBUILD):
        return Tokenizer.from_file(str(folder / TOKENIZER))
