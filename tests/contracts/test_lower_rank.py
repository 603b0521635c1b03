"""An adapter at a lower rank answers as peft does with its factors cut, and at its own as it is."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from base_model.release import open_peft
from base_model.store import open_base
from edge_runtime.adapter import load_adapter, read_tensors
from edge_runtime.base import EdgeBase
from edge_runtime.blends.making import Share, blend
from edge_runtime.commands import app
from edge_runtime.decoder.adapters import Adapters, load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.edge_adapter import write_edge_adapter
from edge_runtime.lower_rank import at_rank, rank_of
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.single import SingleService
from protocol.calibration import Calibration
from protocol.errors import ArtefactError, DataError
from protocol.peft_format import (
    CONFIG_FILE,
    EDGE_FILE,
    RELEASE_FILE,
    WEIGHTS_FILE,
    parse_release,
    render_release,
)
from tests.device_kinds import changed_note, overwritten, released_text
from tests.tiny_decoder import lora, write_tiny_decoder
from tests.tiny_model import TEXTS

RANK = 4  # of the adapter "a", on all linears
TEMPERATURE = {"nll_before": 0.5, "nll_after": 0.5, "ece_before": 0.5, "ece_after": 0.5}


@pytest.fixture(scope="module")
def runtime(tiny_base: Path) -> EdgeRuntime:
    return EdgeRuntime(EdgeBase.open(tiny_base, threads=1))


@pytest.fixture(scope="module")
def writing_base(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    return DecoderBase.open(
        write_tiny_decoder(tmp_path_factory.mktemp("writes") / "base"), threads=1
    )


def logits(runtime: EdgeRuntime, folder: Path, rank: int | None) -> Any:
    runtime.activate(folder, rank=rank)
    return runtime.logits(TEXTS)


def by_peft(base: Path, folder: Path, rank: int, out: Path) -> Any:
    """Logits of the folder with its factors cut by hand: alpha / r stays what it was."""
    shutil.copytree(folder, out)
    config = json.loads((folder / CONFIG_FILE).read_text())
    config |= {"r": rank, "lora_alpha": config["lora_alpha"] * rank / config["r"]}
    (out / CONFIG_FILE).write_text(json.dumps(config))
    cut = {}
    for name, value in load_file(folder / WEIGHTS_FILE).items():
        first = value[:rank] if name.endswith("lora_A.weight") else value
        cut[name] = value[:, :rank].copy() if name.endswith("lora_B.weight") else first.copy()
    save_file(cut, out / WEIGHTS_FILE)
    opened = open_base(base, labels=3, verify=False)
    model, answers = open_peft(opened, out), []
    for text in TEXTS:
        ids = torch.tensor([opened.tokenizer.encode(text).ids])
        with torch.no_grad():
            answers.append(model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0])
    return np.stack(answers)


@pytest.mark.parametrize("rank", range(1, RANK + 1))
def test_it_answers_as_peft_with_the_factors_cut(
    tiny_base: Path, tmp_path: Path, released: dict[str, Path], runtime: EdgeRuntime, rank: int
) -> None:
    expected = by_peft(tiny_base, released["a"], rank, tmp_path / "cut")
    cut = logits(runtime, released["a"], rank)
    assert np.abs(cut - expected).max() <= 1e-4 * np.abs(expected).max()
    whole = logits(runtime, released["a"], None)
    if rank == RANK:
        assert cut.tobytes() == whole.tobytes()
    else:
        assert np.abs(cut - whole).max() > 1e-2 * np.abs(whole).max()


def test_what_is_no_factor_stays_and_so_do_factors_of_a_lower_rank() -> None:
    rng = np.random.default_rng(1)
    shapes = {"x.lora_A": (5, 4), "x.lora_B": (4, 6), "y.lora_A": (5, 2), "y.lora_B": (2, 5)}
    shapes |= {"x.shift": (6,), "head.weight": (3, 5)}
    tensors = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    cut = at_rank(tensors, 3, source="test")
    assert rank_of(cut) == 3 < rank_of(tensors) == 4
    assert np.array_equal(cut["x.lora_A"], tensors["x.lora_A"][:, :3])
    assert np.array_equal(cut["x.lora_B"], tensors["x.lora_B"][:3])
    for name in tensors.keys() - {"x.lora_A", "x.lora_B"}:
        assert np.array_equal(cut[name], tensors[name])


@pytest.mark.parametrize(("name", "rank", "why"), [
    ("a", 5, "rank 5: .* has rank 4"),
    ("c", 1, "has no low-rank factors"),
])  # fmt: skip
def test_a_rank_that_it_has_not_is_refused(
    runtime: EdgeRuntime, released: dict[str, Path], name: str, rank: int, why: str
) -> None:
    with pytest.raises((ArtefactError, DataError), match=why) as refused:
        runtime.activate(released[name], rank=rank)
    assert refused.value.remedy


def test_a_release_is_verified_before_it_is_cut(
    tiny_base: Path, tmp_path: Path, released: dict[str, Path]
) -> None:
    """By its digest and as a whole, also in what a cut would leave out; nothing is written."""
    folder = shutil.copytree(released["a"], tmp_path / "a")
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    base = EdgeBase.open(tiny_base, threads=1)
    load_adapter(folder, base, rank=1)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    tensors = read_tensors(folder / EDGE_FILE)
    name = next(name for name in tensors if name.endswith(".lora_B"))
    tensors[name][-1, 0] = np.nan
    write_edge_adapter(tensors, folder / EDGE_FILE)
    with pytest.raises(ArtefactError, match="its sha256 is not the one named"):
        load_adapter(folder, base, rank=1)
    overwritten(folder, tensors)
    with pytest.raises(ArtefactError, match="NaN or infinity"):
        load_adapter(folder, base, rank=1)


def test_a_blend_is_not_cut(tiny_base: Path, tmp_path: Path, released: dict[str, Path]) -> None:
    out = tmp_path / "blend"
    blend(out, tiny_base, [Share(folder=released["a"], weight=1.0)])
    with pytest.raises(ArtefactError, match="its parts' ranks stand side by side"):
        load_adapter(out, EdgeBase.open(tiny_base, threads=1), rank=1)


def test_whoever_cuts_what_was_not_trained_for_it_is_told(
    tiny_base: Path, tmp_path: Path, released: dict[str, Path]
) -> None:
    """And no temperature is taken over that was fitted to other logits."""
    folder = shutil.copytree(released["a"], tmp_path / "a")
    note = parse_release((folder / RELEASE_FILE).read_text(), source="test")
    fitted = Calibration(temperature=1.5, rows=9, **TEMPERATURE)
    note = note.model_copy(update={"calibration": fitted})
    for nested in (False, True):
        (folder / RELEASE_FILE).write_bytes(
            render_release(note.model_copy(update={"nested": nested}))
        )
        assert ("nested" in json.loads((folder / RELEASE_FILE).read_text())) == nested
        cut = SingleService(tiny_base, folder, rank=2, threads=1)
        assert ("arbitrary part" in cut.warning) == (not nested)
        assert cut.health()["rank"] == 2
        assert cut.runtime.active is not None
        assert cut.runtime.active.note.calibration is None
        whole = SingleService(tiny_base, folder, rank=RANK, threads=1)
        assert whole.warning == ""
        assert whole.runtime.active is not None
        assert whole.runtime.active.note.calibration == fitted
    assert "rank" not in SingleService(tiny_base, folder, threads=1).health()
    with pytest.raises(DataError, match="there is no adapter"):
        SingleService(tiny_base, None, rank=1, threads=1)


def test_a_base_that_writes_does_the_same(writing_base: DecoderBase, tmp_path: Path) -> None:
    """A release, and a file alone, which nothing is known of."""
    tensors = lora(1)
    whole = rank_of(tensors)
    folder = released_text(tmp_path / "release", writing_base.folder, tensors)
    ids = [1, 14, 20, 22]
    own = Cache(writing_base, load_decoder_adapter(folder, writing_base)).follow(ids)
    for rank in range(1, whole + 1):
        loaded = load_decoder_adapter(folder, writing_base, rank=rank)
        cut = {
            name: value[:, :rank] if name.endswith(".lora_A") else value[:rank]
            for name, value in tensors.items()
        }
        expected = Cache(writing_base, Adapters(writing_base).put("cut", cut)).follow(ids)
        logits = Cache(writing_base, loaded).follow(ids)
        assert logits.tobytes() == expected.tobytes()
        assert (logits.tobytes() == own.tobytes()) == (rank == whole)
        assert ("arbitrary part" in loaded.caution) == (rank < whole)
    changed_note(folder, nested=True)
    assert load_decoder_adapter(folder, writing_base, rank=1).caution == ""
    alone = load_decoder_adapter(folder / EDGE_FILE, writing_base, rank=1)
    assert "arbitrary part" in alone.caution
    with pytest.raises(DataError, match=f"has rank {whole}"):
        load_decoder_adapter(folder, writing_base, rank=whole + 1)


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def test_the_commands_take_a_rank(
    tiny_base: Path, released: dict[str, Path], writing_base: DecoderBase, tmp_path: Path
) -> None:
    about = ("infer", "--base", tiny_base, "--adapter", released["a"], "--threads", 1, "--json")
    said = [json.loads(run(*about, *more, TEXTS[0]).stdout)
            for more in ((), ("--rank", RANK), ("--rank", 1))]  # fmt: skip
    assert said[0] == said[1] != said[2]
    assert "arbitrary part" in run(*about, "--rank", 1, TEXTS[0]).stderr
    folder = released_text(tmp_path / "release", writing_base.folder, lora(1))
    writes = ("generate", "--base", writing_base.folder, "--max-tokens", 3, "--threads", 1)
    cut = run(*writes, "--adapter", folder, "--rank", 1, "hello")
    assert cut.exit_code == 0
    assert "arbitrary part" in cut.stderr
    assert isinstance(run(*writes, "--rank", 1, "hello").exception, DataError)
    for arguments in (
        ("infer", "--device", tmp_path / "device.toml", "--rank", 1, "x"),
        ("serve", tmp_path / "device.toml", "--rank", 1),
        ("generate", "--device", tmp_path / "device.toml", "--rank", 1, "x"),
    ):
        refused = run(*arguments)
        assert refused.exit_code == 2
        assert "--rank" in refused.stderr
