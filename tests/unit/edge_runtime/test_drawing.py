"""A device that draws: files, seeds, bounds, and what it is asked over HTTP."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image
from typer.testing import CliRunner

from base_model.decoder.exports import export_gguf
from base_model.release import release_adapter
from edge_runtime.adapter import read_any_note
from edge_runtime.backends import draws
from edge_runtime.blends.making import Share, blend
from edge_runtime.commands import app
from edge_runtime.drawing.adapters import DrawingAdapter, load_drawing_adapter
from edge_runtime.drawing.base import DrawingBase
from edge_runtime.drawing.http_app import DrawApp
from edge_runtime.drawing.png import png
from edge_runtime.drawing.sampling import MOST_IMAGES, Wish, calls_of, drawn
from edge_runtime.drawing.service import WAITING, SingleDrawing, Turns
from protocol.denoiser_manifest import CLASSES, IMAGES, STEPS
from protocol.draws import normal
from protocol.encoding import seed_from
from protocol.errors import ArtefactError, DataError, DeliveryError
from protocol.noise import step_back
from protocol.peft_format import EDGE_FILE
from tests.asgi import asked
from tests.denoiser_models import CLASSES as COUNT
from tests.denoiser_models import LABELS, SIDE, write_drawings

TASK = {"kind": "image-generation", "labels": LABELS}


@pytest.fixture(scope="module")
def base(tiny_denoiser: Path) -> DrawingBase:
    return DrawingBase.open(tiny_denoiser, threads=1)


@pytest.fixture(scope="module")
def folder(
    tiny_denoiser: Path,
    write_adapter: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A release."""
    parent = tmp_path_factory.mktemp("drawing")
    adapter = write_adapter(parent / "adapter", base=tiny_denoiser, task=TASK, deviation=0.1)
    release_adapter(adapter, tiny_denoiser, texts=write_drawings(parent / "images", 2), bound=1e-4)
    return adapter


@pytest.fixture(scope="module")
def adapter(base: DrawingBase, folder: Path) -> DrawingAdapter:
    return load_drawing_adapter(folder, base)


@given(
    arrays.arrays(
        np.uint8,
        st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9)),
    )
)
def test_pillow_reads_the_same_image(image: np.ndarray[Any, Any]) -> None:
    with Image.open(io.BytesIO(png(image))) as opened:
        assert opened.format == "PNG"
        assert opened.mode == {1: "L", 3: "RGB"}[len(image)]
        values = np.asarray(opened).reshape(*image.shape[1:], len(image))
    assert np.array_equal(np.moveaxis(values, -1, 0), image)


@pytest.mark.slow
def test_a_seed_is_an_image(base: DrawingBase, adapter: DrawingAdapter) -> None:
    """Also of several that are drawn together; another seed, label or adapter is another image."""
    wish = Wish(label="b", images=3, steps=5, seed=7)
    calls: list[int] = []
    images = drawn(base, adapter, wish, lambda: calls.append(1))
    assert len(calls) == calls_of(base, wish) == 5
    assert (images.shape, images.dtype) == ((3, 1, SIDE, SIDE), np.uint8)
    assert drawn(base, adapter, wish).tobytes() == images.tobytes()
    alone = drawn(base, adapter, Wish(label="b", images=1, steps=5, seed=7))
    assert np.abs(alone[0].astype(int) - images[0]).max() <= 1  # of roundings
    others = [
        drawn(base, adapter, Wish(label="b", images=3, steps=5, seed=8)),
        drawn(base, adapter, Wish(label="c", images=3, steps=5, seed=7)),
        drawn(base, adapter, Wish(label="b", images=3, steps=6, seed=7)),
        drawn(base, adapter, Wish(label="b", images=3, steps=5, seed=7, guidance=3.0)),
        drawn(base, None, Wish(label="1", images=3, steps=5, seed=7)),
    ]
    assert len({images.tobytes(), *(other.tobytes() for other in others)}) == 6


@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.slow
def test_an_image_is_made_step_by_step(
    base: DrawingBase, adapter: DrawingAdapter, guidance: float
) -> None:
    """The recipe of P-1.18, written out for two steps of 40."""
    shape, schedule = base.manifest.shape, base.manifest.schedule
    image = normal(seed_from("drawing", 3, 0), shape).astype(np.float32)[None]
    for step, before in ((39, 19), (19, -1)):
        noise = [
            base.noise(
                {IMAGES: image, STEPS: np.array([step]), CLASSES: np.array([kind])}, adapter.values
            )
            for kind in (2, COUNT)
        ]
        whole = noise[1] + np.float32(guidance) * (noise[0] - noise[1])
        image = step_back(image, noise[0] if guidance == 1 else whole, step, before, schedule)
    wanted = np.round((image + 1) * 127.5).clip(0, 255).astype(np.uint8)
    image = drawn(base, adapter, Wish(label="c", steps=2, seed=3, guidance=guidance))
    assert np.array_equal(image, wanted)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"label": "bb"}, "'bb' is no label"),
        ({"images": 0}, "images is 0"),
        ({"images": MOST_IMAGES + 1}, "images is 17"),
        ({"steps": 0}, "steps is 0"),
        ({"steps": 41}, "steps is 41"),  # there are 40
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**63}, "seed is 9223372036854775808"),
        ({"seed": 10**400}, "seed is 10000"),
        ({"images": -(10**400)}, "images is -1000"),
        ({"guidance": 0.5}, "guidance is 0.5"),
        ({"guidance": float("nan")}, "guidance is nan"),
    ],
)
@pytest.mark.slow
def test_wishes_have_bounds(
    base: DrawingBase, adapter: DrawingAdapter, other: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=said):
        drawn(base, adapter, Wish(**({"label": "a"} | other)))


@pytest.mark.parametrize("label", [str(COUNT), "-1", "a", "", "1" * 20, "٣"])
@pytest.mark.slow
def test_without_an_adapter_labels_are_classes_by_number(base: DrawingBase, label: str) -> None:
    with pytest.raises(DataError, match="no class of the base"):
        drawn(base, None, Wish(label=label))


@pytest.mark.slow
def test_adapters_of_others_are_refused(
    base: DrawingBase, folder: Path, released: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(ArtefactError, match="draws no images"):
        load_drawing_adapter(released["a"], base)
    alone = load_drawing_adapter(folder / EDGE_FILE, base)
    assert alone.labels == ()
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_drawing_adapter(tmp_path / "gone.onnx_adapter", base)


@pytest.mark.slow
def test_other_bases_are_refused_with_what_answers_them(
    tiny_base: Path, tiny_denoiser: Path, folder: Path
) -> None:
    assert draws(tiny_denoiser)
    assert not draws(tiny_base)
    with pytest.raises(ArtefactError, match="not a base that draws images"):
        DrawingBase.open(tiny_base)
    with pytest.raises(ArtefactError, match="of the bases that draw images"):
        export_gguf(folder, tiny_denoiser, folder / "no.gguf")
    done = CliRunner().invoke(app, ["infer", "x.png", "--base", str(tiny_denoiser)])
    assert isinstance(done.exception, ArtefactError)
    assert done.exception.remedy == "use `fedge edge draw`"
    done = CliRunner().invoke(
        app, ["serve", "--base", str(tiny_denoiser), "--adapter", str(folder), "--top", "2"]
    )
    assert done.exit_code == 2


@pytest.mark.slow
def test_a_blend_draws_between_its_parts(base: DrawingBase, folder: Path, tmp_path: Path) -> None:
    blend(tmp_path / "blend", base.folder, [Share(folder=folder, weight=0.5)])
    mixed = load_drawing_adapter(tmp_path / "blend", base)
    assert read_any_note(tmp_path / "blend").outputs == 0
    assert mixed.caution
    assert mixed.labels == tuple(LABELS)
    whole = drawn(base, load_drawing_adapter(folder, base), Wish(label="a", steps=3))
    none = drawn(base, None, Wish(label="0", steps=3))  # the class of the same place
    half = drawn(base, mixed, Wish(label="a", steps=3))
    assert half.tobytes() not in (whole.tobytes(), none.tobytes())


@pytest.mark.slow
def test_files_are_written(base: DrawingBase, folder: Path, tmp_path: Path) -> None:
    arguments = ["draw", "a", "--base", str(base.folder), "--adapter", str(folder), "--steps", "4"]
    out = str(tmp_path / "a.png")
    done = CliRunner().invoke(app, [*arguments, "--out", out, "--images", "2", "--seed", "5"])
    assert done.exit_code == 0, done.output
    assert done.output.split() == [str(tmp_path / "a-1.png"), str(tmp_path / "a-2.png")]
    images = drawn(
        base, load_drawing_adapter(folder, base), Wish(label="a", images=2, steps=4, seed=5)
    )
    for path, image in zip(done.output.split(), images, strict=True):
        with Image.open(path) as opened:
            assert np.abs(np.asarray(opened).astype(int) - image[0]).max() <= 1
    for odd, said in (
        (["--out", str(tmp_path / "a.jpg")], "written as PNG"),
        (["--out", str(tmp_path / "gone" / "a.png")], "cannot be written"),
        (["--out", out, "--images", "99"], "images is 99"),
    ):
        done = CliRunner().invoke(app, [*arguments, *odd])
        assert said in str(done.exception)


@pytest.mark.slow
def test_a_program_asks_over_http(base: DrawingBase, folder: Path) -> None:
    service = SingleDrawing(base.folder, folder, threads=1)
    draw = DrawApp(service)
    status, document = asked(
        draw, {"label": "c", "seed": 2, "steps": 4, "images": 2}, path="/v1/draw"
    )
    assert status == 200
    assert document.keys() == {
        *("release", "seq", "label", "images", "steps", "seed", "guidance"),
    }
    assert (document["label"], document["steps"], document["guidance"]) == ("c", 4, 1.0)
    assert document["release"] == service.health()["release"]
    wanted = service.draw(Wish(label="c", seed=2, steps=4, images=2)).images
    assert [base64.b64decode(text) for text in document["images"]] == [png(x) for x in wanted]
    for odd, said in (
        ({}, "label"),
        ({"label": "z"}, "no label of what is in use"),
        ({"label": "c", "steps": 251}, "steps"),
        ({"label": "c", "steps": 41}, "steps is 41"),
        ({"label": "c", "images": 17}, "images"),
        ({"label": "c", "guidance": 21}, "guidance"),
        ({"label": "c", "guidance": True}, "guidance"),
        ({"label": "c", "guidance": "2"}, "guidance"),
        ({"label": "c", "seed": -1}, "seed"),
        ({"label": "c", "prompt": "x"}, "prompt"),
    ):
        status, document = asked(draw, odd, path="/v1/draw")
        assert status == 422
        assert said in document["error"]["cause"]
    status, document = asked(draw, {"label": "c", "guidance": 2}, path="/v1/draw")
    assert (status, document["steps"], document["guidance"]) == (200, 40, 2.0)  # all that there are
    status, document = asked(draw, {"texts": ["x"]}, path="/v1/classify")
    assert (status, document["error"]["cause"]) == (404, "POST /v1/draw or GET /health")


@pytest.mark.parametrize("how", ["left", "ended"])
@pytest.mark.slow
def test_what_nobody_waits_for_is_not_drawn_on(base: DrawingBase, how: str) -> None:
    """Neither what is drawn nor what waits, where the client leaves, or the process is told to end."""
    service = SingleDrawing(base.folder, None, threads=1)
    app, steps, replies = DrawApp(service), [0], list[Any]()
    noise = service.base.noise
    body = json.dumps({"label": "1", "steps": 40, "images": 16}).encode()

    async def asking() -> None:
        leaving = [asyncio.Event(), asyncio.Event()]
        loop = asyncio.get_running_loop()

        def slow(*arguments: Any) -> Any:
            """Held at the second step until nobody is there any more."""
            steps[0] += 1
            if steps[0] == 2:
                loop.call_soon_threadsafe(begun.set)
                assert end.wait(30)
            return noise(*arguments)

        begun, end = asyncio.Event(), threading.Event()
        object.__setattr__(service.base, "noise", slow)

        async def one(leave: asyncio.Event) -> None:
            sent = False

            async def receive() -> dict[str, Any]:
                nonlocal sent
                if sent:
                    await leave.wait()
                    return {"type": "http.disconnect"}
                sent = True
                return {"type": "http.request", "body": body}

            async def send(message: Any) -> None:
                replies.append(message)

            headers = [(b"host", b"127.0.0.1"), (b"content-type", b"application/json")]
            scope = {"path": "/v1/draw", "method": "POST", "headers": headers}
            await app(scope, receive, send)

        tasks = [asyncio.create_task(one(leave)) for leave in leaving]
        await asyncio.wait_for(begun.wait(), 30)
        for leave, task in zip(leaving, tasks, strict=True):
            leave.set() if how == "left" else task.cancel()
        await asyncio.sleep(0.01)  # what was told is heard
        end.set()
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(asking())
    assert service.draw(Wish(label="1", steps=1)).images.size == SIDE**2  # its turn is free
    assert steps[0] == 3
    assert replies == []


@pytest.mark.slow
def test_no_more_wait_than_are_let_in(base: DrawingBase) -> None:
    turns, begun, end = Turns(), threading.Event(), threading.Event()

    def slow() -> Any:
        begun.set()
        end.wait(30)

    threads = [
        threading.Thread(target=turns.take, args=(slow,), daemon=True) for _ in range(WAITING + 1)
    ]
    threads[0].start()
    assert begun.wait(30)
    for thread in threads[1:]:
        thread.start()
    for _ in range(30_000):  # until all are in
        if not turns._room._value:  # type: ignore[attr-defined]
            break
        end.wait(0.001)
    with pytest.raises(DeliveryError, match=r"serve\.busy"):
        turns.take(slow)
    service = SingleDrawing(base.folder, None, threads=1)
    service._turns = turns
    with pytest.raises(DeliveryError, match=r"serve\.busy"):
        service.draw(Wish(label="1"))
    with pytest.raises(DataError, match="no class of the base"):  # waits for nobody
        service.draw(Wish(label="x"))
    end.set()
    for thread in threads:
        thread.join(30)
    assert turns.take(lambda: np.zeros((1, 1, 1, 1), np.uint8)).size == 1
