"""The base of an experiment: built once, found again, never mistaken for another."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from base_model.places import locate
from base_model.verify import read_manifest
from protocol.errors import ArtefactError, FedgeError, MachineError
from simulations.base_cache import _check_pin, ready_base
from simulations.base_origin import origin_of
from simulations.experiment import BaseSource, load_experiment
from simulations.prepare import prepare
from simulations.progress import NoProgress
from tests.unit.base_model.sources import CONTAINERS, listed, write_source


def ready(source: BaseSource, folder: Path) -> Path:
    return ready_base(
        source,
        task="sequence-classification",
        folder=folder,
        cache=folder / ".bases",
        progress=NoProgress(),
    )


@pytest.mark.slow
def test_it_is_built_once_and_pinned_by_its_weights(tiny_source: Path, tmp_path: Path) -> None:
    weights = hashlib.sha256((tiny_source / "model.safetensors").read_bytes()).hexdigest()
    with pytest.raises(ArtefactError, match="not the pinned one"):
        ready(BaseSource(source=str(tiny_source), sha256="0" * 64), tmp_path)
    assert not (tmp_path / ".bases").exists()
    built = ready(BaseSource(source=str(tiny_source)), tmp_path)
    written = (built / "manifest.json").stat().st_mtime_ns
    assert ready(BaseSource(source=str(tiny_source), sha256=weights), tmp_path) == built
    assert (built / "manifest.json").stat().st_mtime_ns == written
    names = {path.name for path in (tmp_path / ".bases").iterdir()}
    assert names == {built.name, f".{built.name}.lock"}


@pytest.mark.parametrize(
    ("source", "kind"),
    [
        ("package:no_such_package_at_all/model", MachineError),
        ("./no-such-folder", ArtefactError),
        (".", ArtefactError),  # a folder, but without a model
    ],
)
def test_a_source_that_is_not_there(source: str, kind: type[FedgeError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        ready(BaseSource(source=source), tmp_path)
    assert caught.value.remedy


def digest_of(source: Path) -> str:
    return locate(str(source)).digest()


SMALL = (
    "config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "1_Pooling/config.json",
    "modules.json",
)


@pytest.mark.parametrize("container", CONTAINERS)
def test_the_key_covers_every_file_that_a_base_depends_on(tmp_path: Path, container: str) -> None:
    source = locate(
        CONTAINERS[container](listed(write_source(tmp_path / "source", pooling="mean")))
    )
    before, used = source.digest(), source.used_files()
    names = {str(path.relative_to(source.root)) for path in used}
    for name in SMALL:
        assert any(each.endswith(name) for each in names), (name, names)
    for path in used:
        data = path.read_bytes()
        path.write_bytes(data + b" ")
        assert source.digest() != before, path
        path.write_bytes(data)
    assert source.digest() == before
    (source.root / "README.md").write_text("another text")
    assert source.digest() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("added_tokens.json", "{}"),
        ("special_tokens_map.json", "{}"),
        ("vocab.txt", "a"),
        ("sentence_bert_config.json", "{}"),
        ("1_Pooling/config.json", '{"pooling_mode": "mean"}'),
    ],
)
def test_a_file_that_is_new_makes_another_key(tmp_path: Path, name: str, text: str) -> None:
    source = write_source(tmp_path / "source")
    before = digest_of(source)
    (source / name).parent.mkdir(exist_ok=True)
    (source / name).write_text(text)
    assert digest_of(source) != before


@pytest.mark.slow
def test_a_mended_pooling_or_tokenizer_and_another_setting_give_another_base(
    tmp_path: Path,
) -> None:
    source = write_source(tmp_path / "source", pooling="mean")
    entry = BaseSource(source="source")
    first = ready(entry, tmp_path)
    assert ready(entry, tmp_path) == first
    asked = ready(BaseSource(source="source", pooling="cls"), tmp_path)
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode": "cls"}')
    mended = ready(entry, tmp_path)
    assert len({first, asked, mended}) == 3
    poolings = [read_manifest(base).pooling for base in (first, asked, mended)]
    assert poolings == ["mean", "cls", "cls"]


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_container_can_be_pinned(tmp_path: Path, container: str) -> None:
    source = CONTAINERS[container](write_source(tmp_path / "source", pooling="mean"))
    weights = locate(source).weights_digest()
    with pytest.raises(ArtefactError, match="not the pinned one"):
        ready(BaseSource(source=source, sha256="0" * 64), tmp_path)
    pinned = BaseSource(source=source, sha256=weights)
    _check_pin(pinned, origin_of(pinned, "sequence-classification", tmp_path))


def test_a_base_that_is_built_is_named_by_its_folder(tiny_base: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(tiny_base, tmp_path / "bases" / "mine")
    assert ready(BaseSource(folder="bases/mine"), tmp_path) == copy
    assert not (tmp_path / ".bases").exists()
    (copy / "tokenizer.json").write_text("{}")
    with pytest.raises(ArtefactError, match="tokenizer"):
        ready(BaseSource(folder="bases/mine"), tmp_path)
    with pytest.raises(ArtefactError, match="is not a base"):
        ready(BaseSource(folder="bases/other"), tmp_path)


@pytest.mark.parametrize(
    "table",
    [
        {},
        {"source": "a", "folder": "b"},
        {"folder": "b", "bits": 8},
        {"folder": "b", "pooling": "mean"},
        {"folder": "b", "sha256": "0" * 64},
        {"source": "a", "pooling": "max"},
    ],
)
def test_a_base_has_one_origin(table: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BaseSource.model_validate(table)


def test_a_run_on_a_built_base_is_prepared_and_taken_up_again(
    tiny_base: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_base, tmp_path / "elsewhere" / "mine")
    file = tmp_path / "experiment.toml"
    file.write_text(
        'format = 1\nname = "x"\n[base]\nfolder = "elsewhere/mine"\n[data]\n'
        'generator = "home-commands"\n[plan]\nrounds = 1\n'
    )
    out = tmp_path / "runs" / "first"
    prepared = [
        prepare(load_experiment(file), out, resume=resume, progress=NoProgress())
        for resume in (False, True)
    ]
    assert {each.base.resolve() for each in prepared} == {tmp_path / "elsewhere" / "mine"}
    assert prepared[1].manifest == read_manifest(tiny_base)
    marker = (out / "experiment.json").read_text()
    assert str(tmp_path) not in marker
    assert not (tmp_path / "runs" / ".bases").exists()
