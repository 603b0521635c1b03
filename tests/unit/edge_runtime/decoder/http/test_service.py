"""What the server asks: prompts in turns, names of adapters, files that are loaded again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.decoder import cache
from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.generation import Request
from edge_runtime.decoder.http.forms import ApiError, Asked, ChatCompletion, Completion, parse_asked
from edge_runtime.decoder.http.service import TextService
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.errors import ArtefactError, DataError
from tests.tiny_decoder import CONTEXT, lora, prefix, soft_prompt, write_tiny_decoder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> DecoderBase:
    folder = write_tiny_decoder(tmp_path_factory.mktemp("service") / "tiny")
    return DecoderBase.open(folder, threads=1)


@pytest.fixture
def service(base: DecoderBase) -> Iterator[TextService]:
    service = TextService(base, {}, queue=1)
    service.replace("a", lora(2))
    yield service
    service.end()


def completion(**other: object) -> Asked:
    asked = {"model": "a", "prompt": "hello", "temperature": 0, **other}
    return parse_asked(Completion, json.dumps(asked).encode())


@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 40])
def test_a_long_prompt_is_read_in_turns(
    service: TextService, base: DecoderBase, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(cache, "PIECE", 8)
    prompt = [7 + at % 30 for at in range(length)]
    expected = list(
        service.generator.generate(prompt, Request(adapter="a", max_tokens=5, joins=True))
    )
    prepared = service.prepare(completion(prompt=prompt, max_tokens=5))
    turns = list(prepared.steps)
    empty = (length - 1) // 8
    assert turns == [None] * empty + expected
    assert prepared.prompt_tokens == length


def test_a_prompt_of_an_adapter_counts_in_the_context(service: TextService) -> None:
    service.replace("a", soft_prompt(3) | prefix(3))
    room = CONTEXT - 5 - 3
    expected = list(
        service.generator.generate([7] * 9, Request(adapter="a", max_tokens=5, joins=True))
    )
    assert list(service.prepare(completion(prompt=[7] * 9, max_tokens=5)).steps) == expected
    assert len(list(service.prepare(completion(prompt=[7] * room)).steps)) == 1
    with pytest.raises(ApiError) as refused:
        service.prepare(completion(prompt=[7] * (room + 1)))
    assert refused.value.document["error"]["code"] == "context_length_exceeded"
    assert f"{room} at most" in str(refused.value)
    service.prepare(completion(model="tiny", prompt=[7] * (room + 1)))


def test_a_text_keeps_the_adapter_that_was_there_when_it_was_asked_for(
    service: TextService, base: DecoderBase
) -> None:
    expected = list(service.prepare(completion()).steps)
    steps = service.prepare(completion()).steps
    begun = [next(steps), next(steps)]
    late = service.prepare(completion()).steps
    service.replace("a", lora(3))
    assert begun + list(steps) == expected
    assert list(late) == expected
    assert list(service.prepare(completion()).steps) != expected


@pytest.mark.parametrize("name", ["", "tiny", ".a", "a/b", "a b", "a\n", "é", "x" * 65])
def test_names_that_no_adapter_has(service: TextService, name: str) -> None:
    with pytest.raises(DataError, match="cannot be called"):
        service.replace(name, lora(1))
    assert service.names == ("tiny", "a")


def test_what_does_not_fit_leaves_the_old_one(
    service: TextService, base: DecoderBase, tmp_path: Path
) -> None:
    expected = list(service.prepare(completion()).steps)
    with pytest.raises(ArtefactError):
        service.replace("a", {"nowhere.lora_A": next(iter(lora(1).values()))})
    with pytest.raises(ArtefactError):
        service.replace("b", tmp_path / "missing.onnx_adapter")
    assert service.names == ("tiny", "a")
    assert list(service.prepare(completion()).steps) == expected


def test_loading_again_names_no_path(base: DecoderBase, tmp_path: Path) -> None:
    files = {name: tmp_path / f"{name}.onnx_adapter" for name in ("a", "b", "c")}
    for seed, path in enumerate(files.values()):
        write_edge_adapter(lora(seed), path)
    service = TextService(base, files, queue=0)
    files["a"].unlink()
    files["b"].write_bytes(b"")
    outcome = service.reload()
    assert [bool(fault) for fault in outcome.values()] == [True, True, False]
    assert str(tmp_path) not in str(outcome)
    assert service.names == ("tiny", "a", "b", "c")
    service.end()


def test_a_folder_of_an_odd_name_is_called_base(tmp_path: Path) -> None:
    folder = write_tiny_decoder(tmp_path / "no name at all")
    service = TextService(DecoderBase.open(folder, threads=1), {}, queue=0)
    assert service.names == ("base",)
    service.end()


def test_null_is_as_good_as_nothing() -> None:
    names = [name for name in ChatCompletion.model_fields if name not in ("model", "messages")]
    body: dict[str, object] = {"model": "a", "messages": [{"role": "user", "content": "x"}]}
    asked = parse_asked(ChatCompletion, json.dumps(body | dict.fromkeys(names)).encode())
    assert asked == parse_asked(ChatCompletion, json.dumps(body).encode())


def test_a_misspelling_names_the_nearest() -> None:
    with pytest.raises(ApiError, match="`max_tokens`"):
        completion(max_token=3)
