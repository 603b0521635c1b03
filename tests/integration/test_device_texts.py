"""A device whose base writes text: it serves while releases come and go, as one that answers with labels."""

from __future__ import annotations

import gc
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import openai
import pytest
from click import ClickException
from openai import OpenAI
from uvicorn.server import Server

from edge_runtime import agent
from edge_runtime.backends.writing import WritingBackend, open_writing
from edge_runtime.decoder.commands import Opened
from edge_runtime.decoder.generation import Request, Step, Text
from edge_runtime.decoder.http.app import TextApp
from edge_runtime.decoder.http.followed import DeviceTexts
from edge_runtime.decoder.http.forms import Completion, parse_asked
from edge_runtime.decoder.together import Together, Writing
from edge_runtime.following import Follower
from edge_runtime.http_server import settings_of
from edge_runtime.settings import Device
from edge_runtime.store import Store, read_state
from fedge.main import cli
from protocol.errors import ArtefactError, DeliveryError, FedgeError
from tests.delivery_world import World, now, update
from tests.device_kinds import DeviceKind, decoder_kind, tokens_under
from tests.integration.test_delivery_http import Quiet
from tests.text_server import until

ROOT = Path(__file__).resolve().parent.parent.parent
PROMPT = "hello"
GREEDY: dict[str, Any] = {"model": "home", "prompt": PROMPT, "temperature": 0, "max_tokens": 30}


@pytest.fixture(scope="module")
def kind(tmp_path_factory: pytest.TempPathFactory) -> DeviceKind:
    return decoder_kind(tmp_path_factory.mktemp("texts"))


@pytest.fixture(scope="module")
def backend(kind: DeviceKind) -> WritingBackend:
    return open_writing(kind.base, threads=1)


@pytest.fixture
def world(kind: DeviceKind, tmp_path: Path) -> World:
    return kind.world(tmp_path / "world")


@pytest.fixture
def lenient(world: World) -> World:
    """Its devices take the other release too, so that it can be seen which of both has written."""
    path = world.folder / "probe.json"
    rows = [{"text": PROMPT, "contains": letter} for letter in "abcdefghijklmnopqrstuvwxyz"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rows": rows, "least_correct": 1}))
    return world


def written(backend: WritingBackend, folder: Path) -> str:
    """What a device writes behind `PROMPT` under a release."""
    return tokens_under(backend, folder, backend.writer.base.prompt(PROMPT), 30)[1]


@contextmanager
def listening(service: DeviceTexts) -> Iterator[str]:
    config = settings_of(TextApp(service))
    config.port = 0
    server = Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    assert until(lambda: server.started)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        service.end()
        server.should_exit = True
        thread.join(20)


def client_of(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=20)


def two_releases(world: World) -> tuple[Device, list[str]]:
    device, offers = world.device(), []
    for which in ("bad", "good"):
        offers.append(world.publish(which).id)
        update(device)
    return device, offers


def test_a_text_ends_with_the_release_that_it_began_with(
    lenient: World, backend: WritingBackend, kind: DeviceKind
) -> None:
    device, offers = two_releases(lenient)
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=2)
    texts = {name: written(backend, folder) for name, folder in kind.adapters.items()}
    assert texts["good"] != texts["bad"]
    asked = parse_asked(Completion, json.dumps(GREEDY).encode())
    prepared = service.prepare(asked)
    steps = [next(prepared.steps), next(prepared.steps)]
    waiting = service.prepare(asked)  # what was asked for is what is written, also a turn later
    agent.roll_back(device, "tests", now())
    service.follower.follow()
    steps += list(prepared.steps)
    late = service.prepare(asked)
    # Spaces at the beginning are kept where a text joins another.
    assert text_of(steps) == text_of(waiting.steps) == texts["good"].strip()
    assert text_of(late.steps) == texts["bad"].strip()
    assert [one.facts["release"] for one in (prepared, waiting, late)] == [
        offers[1],
        offers[1],
        offers[0],
    ]
    service.end()


def text_of(steps: Iterable[Step | None]) -> str:
    return "".join(step.text for step in steps if step is not None).strip()


def test_answers_over_http_name_their_release(lenient: World, backend: WritingBackend) -> None:
    device, offers = two_releases(lenient)
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=2)
    with listening(service) as url:
        client = client_of(url)
        chunks = list(client.completions.create(**GREEDY, stream=True))
        assert {chunk.release for chunk in chunks} == {offers[1]}  # type: ignore[attr-defined]
        agent.roll_back(device, "tests", now())
        service.follower.follow()
        late = client.completions.create(**GREEDY)
    assert (late.release, late.seq) == (offers[0], 1)  # type: ignore[attr-defined]


def test_swaps_under_load_fail_no_text_and_mix_none(
    lenient: World, backend: WritingBackend, kind: DeviceKind
) -> None:
    device, offers = two_releases(lenient)
    expected = {
        offer: written(backend, kind.adapters[name]).strip()
        for offer, name in zip(offers, ("bad", "good"), strict=True)
    }
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=4)
    stop, answers, faults = threading.Event(), [], []
    with listening(service) as url:

        def ask() -> None:
            client = client_of(url)
            while not stop.is_set():
                try:
                    answer = client.completions.create(**GREEDY)
                except openai.APIError as error:
                    faults.append(repr(error))
                    return
                answers.append((answer.release, answer.choices[0].text.strip()))  # type: ignore[attr-defined]

        askers = [threading.Thread(target=ask) for _ in range(3)]
        for asker in askers:
            asker.start()
        for number in range(30):
            with Store(device.store) as store:
                store.activate(offers[number % 2])
            service.follower.follow()
            assert until(partial(came, answers, faults, len(answers)))
        stop.set()
        for asker in askers:
            asker.join()
    assert (faults, service.follower.swaps, service.follower.failures) == ([], 31, 0)
    assert set(answers) == set(expected.items())


def came(answers: list[Any], faults: list[str], before: int) -> bool:
    return len(answers) > before or bool(faults)


def test_a_release_that_fails_while_it_writes_is_left(
    lenient: World, backend: WritingBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, offers = two_releases(lenient)
    service = DeviceTexts(device, backend, clock=lambda: 0.0, queue=2)
    real, bad = service.writer.text, service.follower.serving.adapter

    def failing(prompt: Any, request: Request, adapter: Any) -> Text:
        def steps() -> Iterator[Step | None]:
            yield from itertools.islice(real(prompt, request, adapter).steps, 3)
            if adapter is bad:
                raise ArtefactError("as a graph that does not run", "tests")

        return Text(steps=steps())

    monkeypatch.setattr(service.writer, "text", failing)
    asked = parse_asked(Completion, json.dumps(GREEDY).encode())
    for _ in range(device.faults):
        assert service.health()["release"] == offers[1]
        with pytest.raises(ArtefactError):
            list(service.prepare(asked).steps)
    assert service.health()["release"] == read_state(device.store).current == offers[0]
    assert len(list(service.prepare(asked).steps)) == 3
    service.end()


def test_texts_of_a_release_are_read_together(lenient: World, backend: WritingBackend) -> None:
    """Whoever watches a text's steps hands on the logits that were read for it elsewhere."""
    device, _ = two_releases(lenient)
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=2)
    asked = parse_asked(Completion, json.dumps(GREEDY).encode())
    texts = [service.prepare(asked) for _ in range(5)]
    writing = [Writing(text.steps, text.cache) for text in texts]
    read = list[int]()

    class Counted(Together):
        def _read(self, texts: Any) -> Any:
            sent = super()._read(texts)
            read.append(len(sent))
            return sent

    together = Counted(service.writer.base)
    for step in list(service.prepare(asked).steps)[:4]:
        assert together.advance(writing) == [step] * 5
    assert read == [0, 5, 5, 5]  # behind the prompt each reads with the others
    service.end()


def test_the_release_in_use_is_the_one_model(lenient: World, backend: WritingBackend) -> None:
    device, offers = two_releases(lenient)
    service = DeviceTexts(device, backend, clock=time.monotonic, queue=2)
    with listening(service) as url:
        client = client_of(url)
        (model,) = client.models.list()
        assert (model.id, model.release) == ("home", offers[1])  # type: ignore[attr-defined]
        with pytest.raises(openai.NotFoundError):  # a base alone has passed no probe
            client.completions.create(model="tiny", prompt=PROMPT)
        with Store(device.store) as store:
            store.withdraw(read_state(device.store).installed)
        service.follower.follow()
        assert list(client.models.list()) == []
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(**GREEDY)
        assert (caught.value.status_code, caught.value.code) == (503, "serve.empty")
    assert service.health()["status"] == "empty"


def test_a_turn_of_a_chat_is_written_under_the_release_of_then(
    lenient: World, backend: WritingBackend, kind: DeviceKind
) -> None:
    device, _ = two_releases(lenient)
    opened = Opened(backend.writer, Follower(device, backend.load, clock=time.monotonic))
    prompt = backend.writer.base.prompt(PROMPT)
    begin = partial(backend.writer.generate, prompt, Request(adapter="adapter", max_tokens=30))
    texts = [text_of(opened.steps(begin))]
    agent.roll_back(device, "tests", now())
    texts.append(text_of(opened.steps(begin)))
    agent.roll_back(device, "again", now())
    assert texts == [written(backend, kind.adapters[name]).strip() for name in ("good", "bad")]
    with pytest.raises(DeliveryError, match=r"serve\.empty"):
        opened.steps(begin)


def fedge(*arguments: object, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "fedge", *map(str, arguments)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def test_processes_update_serve_and_write_over_http(
    lenient: World, backend: WritingBackend, kind: DeviceKind
) -> None:
    """A repository on a static server, an agent's process per update, a service's that follows."""
    handler = partial(Quiet, directory=str(lenient.folder / "repo"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        device = lenient.device(repository=f"http://127.0.0.1:{server.server_port}")
        settings = lenient.folder / "kiosk-1.toml"
        lenient.publish("bad")
        assert "release 1 in use" in fedge("edge", "update", settings)
        texts = {name: written(backend, folder) for name, folder in kind.adapters.items()}
        command = [sys.executable, "-c", WATCHED, "edge", "serve", str(settings), "--port", "0"]
        with subprocess.Popen([*command, "--json"], cwd=ROOT, stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                said = json.loads(process.stdout.readline())
                assert said["models"] == ["home"]
                client = client_of(said["url"])
                first = client.completions.create(**GREEDY)
                lenient.publish("good")
                fedge("edge", "update", settings)
                assert until(
                    lambda: client.models.list().data[0].seq == 2  # type: ignore[attr-defined]
                )
                second = client.completions.create(**GREEDY)
            finally:
                process.send_signal(signal.SIGTERM)
            loaded = set(process.stdout.read().decode().split())
            assert process.wait(20) == 0
        server.shutdown()
    assert [answer.choices[0].text.strip() for answer in (first, second)] == [
        texts["bad"].strip(),
        texts["good"].strip(),
    ]
    assert "uvicorn" in loaded
    assert not loaded & {"tuf", "securesystemslib", "torch", "flwr", "transformers", "onnx"}
    asked = ("edge", "generate", PROMPT, "--device", settings, "--max-tokens", 30, "--json")
    assert json.loads(fedge(*asked))["text"] == texts["good"]
    assert read_state(device.store).failed == {}


WATCHED = """
import sys
from fedge.main import main
try:
    main(sys.argv[1:])
finally:
    print(*sorted({name.partition(".")[0] for name in sys.modules}), flush=True)
"""


def refused_to(*arguments: object) -> BaseException:
    with pytest.raises((FedgeError, ClickException)) as caught:
        cli.main(args=["edge", *map(str, arguments)], prog_name="fedge", standalone_mode=False)
    gc.enable()  # as a process that is to serve starts without
    return caught.value


def test_what_such_a_device_refuses(world: World) -> None:
    device = world.device()
    world.publish()
    update(device)
    settings = world.folder / "kiosk-1.toml"
    assert "base that writes text" in str(refused_to("infer", "a", "--device", settings))
    assert "--top" in str(refused_to("serve", settings, "--top", 2))
    assert "--base" in str(refused_to("generate", "a"))
    assert "--base" in str(refused_to("generate", "a", "--device", settings, "--base", "b"))
    assert "--threads" in str(refused_to("generate", "a", "--device", settings, "--threads", 2))
    rows = world.folder / "rows.jsonl"
    rows.write_text(json.dumps({"text": "a", "label": "b"}) + "\n")
    assert "personal.text" in str(refused_to("train", settings, "--data", rows))
    agent.roll_back(device, "tests", now())
    assert "serve.empty" in str(refused_to("generate", "a", "--device", settings))
