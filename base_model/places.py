"""Where a source lies: one model has many ways of naming and of lying, and is one base in all of them.

A folder, a Hub id, a folder of the Hub's cache, or a folder in an installed package; in it plain
transformers files, or sentence-transformers' folders, new (encoder at the top) or old (`0_Transformer`).
"""

from __future__ import annotations

import hashlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from base_model.checkpoint import weight_files
from base_model.source_files import check_file, first_line, read_json
from protocol.errors import ArtefactError, MachineError
from storage.regular import sha256_of

PACKAGE = "package:"
CONFIG, MODULES = "config.json", "modules.json"
POOLING_FOLDER = "1_Pooling"
# Of a Hub repository: what a base can be made of. Other formats of the weights are large.
WANTED = ["*.json", "*.txt", "*.model", "*.jinja"]
WEIGHTS = ["*.safetensors"], ["*.bin"]
FOREIGN = ["onnx/*", "openvino/*", "coreml/*"]
REMEDY = "name a Hugging Face model folder, or a .gguf file of a model that writes text"


@dataclass(frozen=True, kw_only=True)
class Place:
    """A source on this machine.

    ``name`` is what the user wrote; ``root`` the source's folder, ``model`` the one in it with the
    encoder; ``pooling`` the file of sentence-transformers' pooling, if there is one; ``after`` the kinds
    of sentence-transformers' modules that come after the pooling.
    """

    name: str
    root: Path
    model: Path
    pooling: Path | None
    after: tuple[str, ...]

    def used_files(self) -> list[Path]:
        """Every file that a base can depend on, sorted. Raises ArtefactError without weights."""
        texts = {path for kind in WANTED for path in self.model.glob(kind) if path.is_file()}
        texts |= {path for path in self.root.glob("*.json") if path.is_file()}
        texts |= {self.pooling} if self.pooling else set()
        return sorted({*texts, *weight_files(self.model)})

    def digest(self) -> str:
        """Over the names and bytes of :meth:`used_files`, hex."""
        lines = (f"{p.relative_to(self.root)} {sha256_of(p)}\n" for p in self.used_files())
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def weights_digest(self) -> str:
        """sha256 of the file with the weights; of several, of the lines ``name sha256``."""
        files = [path for path in weight_files(self.model) if path.suffix != ".json"]
        if len(files) == 1:
            return sha256_of(files[0])
        lines = (f"{path.name} {sha256_of(path)}\n" for path in files)
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def locate(source: str, *, beside: Path | None = None) -> Place:
    """The place of ``source``; a relative folder starts at ``beside``.

    A folder comes before a Hub id of the same name. Raises MachineError for a package or Hub id that
    is not to be had, ArtefactError for what is no model.
    """
    if source.startswith(PACKAGE):
        return _place(source, _of_package(source))
    folder = (beside or Path()) / Path(source).expanduser()
    if folder.is_dir():
        return _place(source, _of_cache(folder))
    if folder.exists():
        raise ArtefactError(f"{source}: this is a file", REMEDY)
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        raise ArtefactError(f"{source}: there is no such folder", REMEDY)
    return _place(source, _of_hub(source))


def locate_file(source: str, *, beside: Path | None = None) -> Path:
    """A model that is one file, also of a package. Raises as :func:`locate`."""
    if not source.startswith(PACKAGE):
        path = (beside or Path()) / Path(source).expanduser()
        if path.is_dir():
            raise ArtefactError(f"{source}: this is a folder", "name the file in it")
        if not path.exists():
            raise ArtefactError(f"{source}: there is no such file", "correct the path")
        return path
    root, inner = _in_package(source)
    if not (root / inner).is_file():
        raise ArtefactError(f"the package of {source} has no file `{inner}`", "correct the source")
    return root / inner


def _of_package(source: str) -> Path:
    root, inner = _in_package(source)
    if not (root / inner).is_dir():
        module = source.removeprefix(PACKAGE).partition("/")[0]
        raise ArtefactError(f"the package `{module}` has no folder `{inner}`", "correct the source")
    return root / inner


def _in_package(source: str) -> tuple[Path, str]:
    """(the folder of an installed package, the path in it)."""
    module, _, inner = source.removeprefix(PACKAGE).partition("/")
    try:
        spec = importlib.util.find_spec(module)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise MachineError(
            f"the package `{module}` is not installed",
            "install it (fedge's own example: pip install -c constraints.txt '.[demo]')",
        )
    return Path(next(iter(spec.submodule_search_locations))), inner


def _of_cache(folder: Path) -> Path:
    """A folder `models--owner--name` of the Hub's cache stands for its snapshot."""
    snapshots = folder / "snapshots"
    if (folder / CONFIG).exists() or not snapshots.is_dir():
        return folder
    reference = folder / "refs" / "main"
    if reference.is_file():
        return snapshots / reference.read_text("utf-8", errors="replace").strip()
    there = sorted(path for path in snapshots.iterdir() if path.is_dir())
    if len(there) != 1:
        raise ArtefactError(f"{folder} has {len(there)} snapshots", "name one of them")
    return there[0]


def _of_hub(source: str) -> Path:
    """The snapshot of a Hub id, fetched where the Hub can be reached."""
    from huggingface_hub import snapshot_download

    try:
        for weights in WEIGHTS:
            patterns = [*WANTED, *weights]
            folder = Path(
                snapshot_download(source, allow_patterns=patterns, ignore_patterns=FOREIGN)
            )
            if any(folder.glob(f"**/{weights[0]}")):
                break
    except Exception as error:  # the client's and its transport's, without a common base
        raise MachineError(
            f"{source}: there is no such folder, and the Hub does not give it: {first_line(error)}",
            "correct the name, sign in with `hf auth login`, or download it where there is a network",
        ) from None
    return folder


def _place(name: str, root: Path) -> Place:
    # The encoder's own folder stands for the source that it is a part of.
    if root.name.startswith("0_") and (root.parent / MODULES).is_file():
        root = root.parent
    if (root / MODULES).is_file():
        return _by_modules(name, root)
    model = root
    if not (root / CONFIG).is_file():
        inner = sorted(path.parent for path in root.glob(f"0_*/{CONFIG}"))
        if len(inner) != 1:
            raise ArtefactError(f"{name}: there is no {CONFIG}{_instead(root)}", REMEDY)
        model = inner[0]
    pooling = root / POOLING_FOLDER / CONFIG
    if not pooling.parent.is_dir():
        return Place(name=name, root=root, model=model, pooling=None, after=())
    return Place(name=name, root=root, model=model, pooling=pooling, after=())


def _by_modules(name: str, root: Path) -> Place:
    """sentence-transformers' list: the encoder, its pooling, and what comes after."""
    modules = read_json(root / MODULES)
    try:
        kinds = [(str(m["type"]).rsplit(".", 1)[-1], root / _inside(m["path"])) for m in modules]
    except (TypeError, KeyError, ValueError):
        raise ArtefactError(
            f"{root / MODULES} is no list of modules", "fetch the source again"
        ) from None
    if not kinds or kinds[0][0] != "Transformer":
        first = kinds[0][0] if kinds else "nothing"
        raise ArtefactError(
            f"{root / MODULES}: the source begins with {first}, not with a Transformer",
            "name the folder of an encoder",
        )
    if not (kinds[0][1] / CONFIG).is_file():
        raise ArtefactError(f"{name}: there is no {kinds[0][1] / CONFIG}", REMEDY)
    poolings = [path for kind, path in kinds if kind == "Pooling"]
    after = tuple(kind for kind, _ in kinds[1:] if kind != "Pooling")
    if len(poolings) > 1:
        raise ArtefactError(f"{root / MODULES} lists several poolings", "pass --pooling")
    pooling = poolings[0] / CONFIG if poolings else None
    return Place(name=name, root=root, model=kinds[0][1], pooling=pooling, after=after)


def _inside(path: Any) -> str:
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
        raise ValueError("not a folder of the source")
    return path


def _instead(folder: Path) -> str:
    there = sorted(
        path.name for path in folder.iterdir() if path.suffix in (".json", ".safetensors")
    )
    return f" (there is {', '.join(there[:4])})" if there else ""


def check_texts(place: Place) -> None:
    """The source's small files are whole, before a large one is read. Raises ArtefactError."""
    for path in place.used_files():
        check_file(path)
