"""What a blend promises, over every method on bases that sort and bases that write: sums by the definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from base_model.decoder.build import build_decoder
from base_model.decoder.sources import decoder_source
from base_model.frozen_linears import stored_linears
from base_model.release import published_of, read_peft
from base_model.verify import read_manifest
from edge_runtime.adapter import load_adapter, read_tensors
from edge_runtime.base import EdgeBase
from edge_runtime.blends.making import Share, blend
from edge_runtime.decoder.adapters import DecoderAdapter, adapter_of, load_decoder_adapter
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.cache import Cache
from edge_runtime.runtime import EdgeRuntime
from edge_runtime.seq2seq.base import Seq2SeqBase, memory_of
from edge_runtime.single import SingleService
from protocol.errors import ArtefactError, DataError
from protocol.manifest import BaseManifest
from protocol.methods import METHODS
from protocol.peft_format import EDGE_FILE, Published, to_edge
from tests.contracts.test_methods_that_write import IDS, WRITING, settings_of
from tests.device_kinds import overwritten, released_text, seq2seq_kind
from tests.methods import SORTING
from tests.tiny_model import TEXTS
from tests.unit.base_model.decoder.models import write_decoder

Tensors = Mapping[str, Any]
SOFT = {"prompt", "prefix"}
MIXED = {"hybrid"}  # summed as far as its members are
WHOLE = {"dora"}  # a scale and a shift of one linear: summed with weight 1, beside others, alone
SUMMED = [name for name in SORTING if name not in SOFT | MIXED | WHOLE]
WRITTEN = [name for name in WRITING if name not in SOFT | MIXED]
assert set(SUMMED) | set(WRITTEN) | SOFT | MIXED | WHOLE == set(METHODS)


def by_definition(manifest: BaseManifest, parts: list[tuple[float, Tensors]]) -> dict[str, Any]:
    """Whole matrices as changes of linears, beside the identity: nothing of factors is left.

    A linear that scales its input gives a part's change the input of that part, not the sum's.
    """
    tensors: dict[str, Any] = {}
    for linear in manifest.linears:
        down, up, scale = (linear.path + end for end in (".lora_A", ".lora_B", ".scale"))
        if not any(down in part for _, part in parts):
            continue
        change = np.zeros((linear.in_features, linear.out_features))
        for weight, part in parts:
            if down in part:
                own = part[down].astype(np.float64) @ part[up].astype(np.float64)
                reads = part.get(scale, 1.0) if linear.narrows else 1.0
                change += weight * (np.diag(np.broadcast_to(reads, len(own))) @ own)
        if linear.narrows:
            sums = 1 + sum(w * (part[scale] - 1.0) for w, part in parts if scale in part)
            change = change / np.broadcast_to(sums, len(change))[:, None]
        wide = linear.out_features > linear.in_features
        tensors[down] = np.eye(linear.in_features) if wide else change
        tensors[up] = change if wide else np.eye(linear.out_features)
    for name in {name for _, part in parts for name in part}:
        if ".lora_" in name:
            continue
        if ".bottleneck_" in name:  # whichever unit comes first
            up = name.endswith("_up")
            own = [(w if up else 1.0) * part[name] for w, part in reversed(parts) if name in part]
            tensors[name] = np.concatenate(own, axis=0 if up else -1)
        elif name.endswith(".scale"):
            tensors[name] = 1 + sum(w * (part[name] - 1.0) for w, part in parts if name in part)
        else:
            tensors[name] = sum(w * part[name] for w, part in parts if name in part)
    return {name: np.asarray(value, np.float32) for name, value in tensors.items()}


def near(expected: Any, logits: Any) -> bool:
    return bool(np.abs(logits - expected).max() <= 2e-4 * np.abs(expected).max())


@pytest.fixture(scope="module")
def sorting(
    tiny_base: Path, write_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Path]:
    """Writes adapters for devices by method and seed, without the parity that a release asks for."""
    folder = tmp_path_factory.mktemp("sorting")

    def make(method: str, seed: int) -> Path:
        path = folder / f"{method}-{seed}"
        if not path.exists():
            write_adapter(path, method=method, seed=seed)
            linears = stored_linears(tiny_base, read_manifest(tiny_base))
            slots = to_edge(read_peft(path), published=published_of(path), linears=linears)
            overwritten(path, slots)
        return path

    return make


@pytest.fixture(scope="module")
def runtime(tiny_base: Path) -> EdgeRuntime:
    return EdgeRuntime(EdgeBase.open(tiny_base, threads=1))


def raw_logits(base: EdgeBase, tensors: Tensors) -> Any:
    feeds = base.batch(TEXTS, max_length=16)
    return base.session.run([base.manifest.graph.output], {**feeds, **tensors})[0]


def blended_logits(runtime: EdgeRuntime, folder: Path) -> Any:
    runtime.activate(folder)
    return runtime.logits(TEXTS)


@pytest.mark.parametrize("name", SUMMED)
def test_a_blend_on_a_base_that_sorts_is_the_sum(
    tiny_base: Path, tmp_path: Path, sorting: Callable[..., Path], runtime: EdgeRuntime, name: str
) -> None:
    """Of two of one method, with a negative weight; and of this method and LoRA."""
    for number, weighted in enumerate(
        (
            [(sorting(name, 1), 1.6), (sorting(name, 2), -0.6)],
            [(sorting(name, 1), 0.75), (sorting("lora", 2), 0.25)],
        )
    ):
        out = tmp_path / str(number)
        blend(out, tiny_base, [Share(folder=folder, weight=w) for folder, w in weighted])
        parts = [(w, read_tensors(folder / EDGE_FILE)) for folder, w in weighted]
        expected = raw_logits(runtime.base, by_definition(runtime.base.manifest, parts))
        logits = blended_logits(runtime, out)
        assert near(expected, logits)
        assert not near(raw_logits(runtime.base, parts[0][1]), logits)


@pytest.mark.parametrize("name", SUMMED)
def test_a_blend_of_one_adapter_answers_as_it_does(
    tiny_base: Path, tmp_path: Path, sorting: Callable[..., Path], runtime: EdgeRuntime, name: str
) -> None:
    """To the bit; and what is taken away again leaves no trace but of rounding."""
    folder, other = sorting(name, 1), sorting(name, 2)
    blend(tmp_path / "one", tiny_base, [Share(folder=folder, weight=1.0)])
    own = blended_logits(runtime, folder)
    assert np.array_equal(blended_logits(runtime, tmp_path / "one"), own)
    away = [
        Share(folder=folder, weight=1.0),
        Share(folder=other, weight=2.0),
        Share(folder=other, weight=-2.0),
    ]
    blend(tmp_path / "away", tiny_base, away)
    assert near(own, blended_logits(runtime, tmp_path / "away"))


def test_rows_that_are_turned_are_summed_with_weight_1_alone(
    tiny_base: Path, tmp_path: Path, sorting: Callable[..., Path], runtime: EdgeRuntime
) -> None:
    """DoRA's shift gives back the bias that its scale takes: other weights would change the bias."""
    dora, lora, ia3, bias = (sorting(name, 1) for name in ("dora", "lora", "ia3", "bias"))
    blend(tmp_path / "one", tiny_base, [Share(folder=dora, weight=1.0)])
    own = blended_logits(runtime, dora)
    assert np.array_equal(blended_logits(runtime, tmp_path / "one"), own)

    weighted = [(dora, 1.0), (lora, 0.75), (sorting("lora", 2), -0.75)]
    blend(tmp_path / "more", tiny_base, [Share(folder=folder, weight=w) for folder, w in weighted])
    parts = [(w, read_tensors(folder / EDGE_FILE)) for folder, w in weighted]
    expected = raw_logits(runtime.base, by_definition(runtime.base.manifest, parts))
    logits = blended_logits(runtime, tmp_path / "more")
    assert near(expected, logits)
    assert not near(own, logits)

    for refused in (
        [(dora, 0.75), (lora, 0.25)],
        [(dora, 0.5), (sorting("dora", 2), 0.5)],
        [(dora, 1.0), (bias, 0.5), (bias, -0.5)],
        [(ia3, 0.5), (bias, 0.5)],
    ):
        shares = [Share(folder=folder, weight=w) for folder, w in refused]
        with pytest.raises(
            DataError, match=r"the linear \S+ would have a scale and a shift"
        ) as said:
            blend(tmp_path / "no", tiny_base, shares)
        assert str(refused[0][0]) in said.value.cause
        assert "weight 1" in said.value.remedy
        assert not (tmp_path / "no").exists()


def test_a_temperature_stays_with_the_one_adapter_that_it_was_fitted_to(
    tiny_base: Path, tmp_path: Path, released: dict[str, Path]
) -> None:
    """A released adapter, with its probabilities: what `fedge edge infer` says is the same."""
    import shutil

    from edge_runtime.calibrating import calibrate_release

    path = shutil.copytree(released["a"], tmp_path / "a")
    calibrate_release(path, tiny_base, TEXTS, [0, 1, 2, 0, 1])
    blend(tmp_path / "one", tiny_base, [Share(folder=path, weight=1.0)])
    mine, own = (SingleService(tiny_base, folder) for folder in (tmp_path / "one", path))
    assert mine.classify(TEXTS).predictions == own.classify(TEXTS).predictions
    assert "no log vouches" in mine.warning
    assert mine.classify(TEXTS).release is None
    two = [Share(folder=path, weight=0.5), Share(folder=released["b"], weight=0.5)]
    note, _ = blend(tmp_path / "two", tiny_base, two)
    assert note.calibration is None


@pytest.fixture(scope="module", params=["llama", "qwen3"])
def writer(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    folder = tmp_path_factory.mktemp(request.param)
    source = decoder_source(str(write_decoder(folder / "source", request.param)))
    build_decoder(source, bits=4, out=folder / "base")
    return DecoderBase.open(folder / "base", threads=1)


def written(folder: Path, writer: DecoderBase, name: str, seed: int) -> Path:
    """The release of a random adapter of a method."""
    method, settings, rng = METHODS[name], settings_of(name), np.random.default_rng(seed)
    specs = list(method.specs(settings, writer.manifest))
    tensors = {s.name: rng.normal(0, 0.2, s.shape).astype(np.float32) for s in specs}
    plain = method.published(tensors, list(method.published_specs(specs, writer.manifest)))
    slots = to_edge(plain, published=Published.by(settings))
    return released_text(folder / f"{name}-{seed}", writer.folder, slots)


def text_logits(writer: DecoderBase, adapter: DecoderAdapter | None = None) -> Any:
    return Cache(writer, adapter).follow(IDS)


@pytest.mark.parametrize("name", WRITTEN)
def test_a_blend_on_a_base_that_writes_is_the_sum(
    writer: DecoderBase, tmp_path: Path, name: str
) -> None:
    """Whatever the weights sum to; of one adapter it is this one, and (1, -1) is the base."""
    one, two = (written(tmp_path, writer, name, seed) for seed in (1, 2))
    lora = written(tmp_path / "other", writer, "lora", 3)
    weighted = [(one, 0.7), (two, -0.4), (lora, 1.3)]
    blend(tmp_path / "sum", writer.folder, [Share(folder=f, weight=w) for f, w in weighted])
    parts = [(w, read_tensors(folder / EDGE_FILE)) for folder, w in weighted]
    expected = adapter_of(by_definition(writer.manifest, parts), writer, source="definition")
    logits = text_logits(writer, load_decoder_adapter(tmp_path / "sum", writer))
    assert near(text_logits(writer, expected), logits)
    assert not near(text_logits(writer), logits)

    blend(tmp_path / "one", writer.folder, [Share(folder=one, weight=1.0)])
    own = text_logits(writer, load_decoder_adapter(one, writer))
    again = text_logits(writer, load_decoder_adapter(tmp_path / "one", writer))
    assert np.array_equal(own, again)

    nothing = [Share(folder=one, weight=1.0), Share(folder=one, weight=-1.0)]
    blend(tmp_path / "none", writer.folder, nothing)
    without = text_logits(writer, load_decoder_adapter(tmp_path / "none", writer))
    assert np.array_equal(without, text_logits(writer))


@pytest.mark.parametrize("name", sorted(SOFT))
def test_what_has_no_sum_is_refused_by_what_it_is(
    writer: DecoderBase, tmp_path: Path, name: str
) -> None:
    soft, lora = (written(tmp_path, writer, kind, 1) for kind in (name, "lora"))
    shares = [Share(folder=lora, weight=0.5), Share(folder=soft, weight=0.5)]
    with pytest.raises(ArtefactError, match=rf"a (soft )?{name} cannot be blended") as refused:
        blend(tmp_path / "out", writer.folder, shares)
    assert "use this adapter alone" in refused.value.remedy
    assert not (tmp_path / "out").exists()


def test_both_graphs_of_a_translating_base_are_blended(tmp_path: Path) -> None:
    """Logits of the sum by definition, of what is read and of what is written."""
    kind = seq2seq_kind(tmp_path)
    base = Seq2SeqBase.open(kind.base, threads=1)

    def logits(adapter: DecoderAdapter | None) -> Any:
        memory = memory_of(base.reader, base.manifest, IDS, adapter.values if adapter else {})
        return Cache(base, adapter, memory).follow([base.manifest.start, 4, 9])

    weighted = [(kind.adapters["good"], 0.75), (kind.adapters["bad"], -0.5)]
    blend(tmp_path / "out", kind.base, [Share(folder=f, weight=w) for f, w in weighted])
    parts = [(w, read_tensors(folder / EDGE_FILE)) for folder, w in weighted]
    expected = adapter_of(by_definition(base.manifest, parts), base, source="definition")
    under = logits(load_decoder_adapter(tmp_path / "out", base))
    assert near(logits(expected), under)
    assert not near(logits(None), under)


def test_numbers_are_the_weighted_means(
    tiny_base: Path, tmp_path: Path, write_adapter: Callable[..., Path], runtime: EdgeRuntime
) -> None:
    """Heads alone, so that an answer is linear in them; another range is refused."""
    folders = []
    for seed, high in ((1, 30.0), (2, 30.0), (3, 31.0)):
        task = {"kind": "regression", "low": -10.0, "high": high, "max_length": 16}
        folder = write_adapter(tmp_path / str(seed), method="head", seed=seed, task=task)
        overwritten(folder, to_edge(read_peft(folder), published=published_of(folder)))
        folders.append(folder)
    one, two, other = folders
    blend(
        tmp_path / "out",
        tiny_base,
        [Share(folder=one, weight=1.25), Share(folder=two, weight=-0.25)],
    )
    expected = 1.25 * blended_logits(runtime, one) - 0.25 * blended_logits(runtime, two)
    assert near(expected, blended_logits(runtime, tmp_path / "out"))
    with pytest.raises(DataError, match="their numbers are of another range"):
        blend(
            tmp_path / "no",
            tiny_base,
            [Share(folder=one, weight=0.5), Share(folder=other, weight=0.5)],
        )


def test_more_rank_than_a_linear_has_is_written_as_the_matrix(
    tiny_base: Path, tmp_path: Path, sorting: Callable[..., Path], runtime: EdgeRuntime
) -> None:
    """Ten adapters of rank 4 on linears of 32: a device would refuse rank 40."""
    weighted = [(sorting("lora", seed), 0.1) for seed in range(10, 20)]
    _, tensors = blend(
        tmp_path / "ten", tiny_base, [Share(folder=f, weight=w) for f, w in weighted]
    )
    linears = {linear.path: linear for linear in read_manifest(tiny_base).linears}
    for path, linear in linears.items():
        least = min(linear.in_features, linear.out_features)
        assert tensors[f"{path}.lora_A"].shape == (linear.in_features, least)
    parts = [(w, read_tensors(folder / EDGE_FILE)) for folder, w in weighted]
    expected = raw_logits(runtime.base, by_definition(runtime.base.manifest, parts))
    assert near(expected, blended_logits(runtime, tmp_path / "ten"))
    assert isinstance(load_adapter(tmp_path / "ten", runtime.base).keep, ort.LoraAdapter)
