"""`fedge edge generate` and `fedge edge chat`, as processes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from edge_runtime.decoder.base import DecoderBase
from edge_runtime.decoder.chat import chat_prompt
from edge_runtime.decoder.commands import shown
from edge_runtime.decoder.generation import Generator, Request
from edge_runtime.edge_adapter import write_edge_adapter
from protocol.chat.messages import chat_from
from protocol.errors import ArtefactError, DataError, MachineError
from tests.tiny_decoder import lora, write_tiny_decoder

ROOT = Path(__file__).resolve().parents[4]


def fedge(*arguments: str, lines: str = "", code: int = 0) -> tuple[str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "fedge", "edge", *arguments],
        cwd=ROOT,
        input=lines,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    return done.stdout, done.stderr


def test_generate_writes_what_the_base_does(decoder: DecoderBase, decoder_folder: Path) -> None:
    steps = list(Generator(decoder).generate(decoder.encode("hello"), Request(max_tokens=12)))
    text = "".join(step.text for step in steps)
    out, _ = fedge("generate", "--base", str(decoder_folder), "--max-tokens", "12", "hello")
    assert out == shown(text) + "\n"


def test_generate_as_json_with_an_adapter(
    decoder: DecoderBase, decoder_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.onnx_adapter"
    write_edge_adapter(lora(1), path)
    generator = Generator(decoder)
    generator.adapters.put("a", lora(1))
    request = Request(adapter="a", max_tokens=12, logprobs=0, stops=("zz",))
    steps = list(generator.generate(decoder.encode("hello"), request))
    options = ["--base", str(decoder_folder), "--adapter", str(path), "--max-tokens", "12"]
    out, _ = fedge("generate", *options, "--stop", "zz", "--json", "hello")
    said = json.loads(out)
    assert said["tokens"] == [step.token for step in steps]
    assert said["text"] == "".join(step.text for step in steps)
    assert said["finish"] == steps[-1].finish
    assert said["logprobs"] == pytest.approx([step.logprob for step in steps], abs=1e-4)


def test_chat_answers_line_after_line(decoder: DecoderBase, decoder_folder: Path) -> None:
    options = ["--base", str(decoder_folder), "--max-tokens", "4", "--json"]
    out, _ = fedge("chat", *options, lines="hi\n\nyou\n/quit\nnever\n")
    answers = [json.loads(line) for line in out.splitlines()]
    assert len(answers) == 2
    messages = [{"role": "user", "content": "hi"}]
    for answer, turn in zip(answers, ("you", ""), strict=True):
        prompt = chat_prompt(decoder, chat_from(messages))
        steps = list(Generator(decoder).generate(prompt, Request(max_tokens=4)))
        assert answer["tokens"] == [step.token for step in steps]
        messages.append({"role": "assistant", "content": answer["text"]})
        messages.append({"role": "user", "content": turn})


def test_errors_have_the_codes_of_their_kinds(decoder_folder: Path, tmp_path: Path) -> None:
    _, said = fedge("generate", "--base", str(decoder_folder), "a" * 99, code=DataError.exit_code)
    assert "100 tokens" in said
    plain = write_tiny_decoder(tmp_path / "plain", template=None)
    _, said = fedge("chat", "--base", str(plain), lines="hi\n", code=ArtefactError.exit_code)
    assert "no chat template" in said
    _, said = fedge("infer", "--base", str(plain), "a", code=ArtefactError.exit_code)
    assert "fedge edge generate" in said
    options = ["--base", str(tmp_path / "nowhere"), "--top-p", "0"]
    _, said = fedge("generate", *options, "a", code=DataError.exit_code)
    assert "top-p" in said


def test_nothing_that_is_written_steers_a_terminal() -> None:
    assert shown("a\n\tb\x1b[2J\u202e é😀") == "a\n\tb\\x1b[2J\\u202e é😀"


@pytest.mark.parametrize("closed", ["<&-", ">&-"])
def test_closed_input_or_output_is_no_bug(decoder_folder: Path, closed: str) -> None:
    command = [sys.executable, "-m", "fedge", "edge", "chat", "--base", str(decoder_folder)]
    options = [*command, "--max-tokens", "2"]
    done = subprocess.run(
        ["sh", "-c", f'"$@" {closed}', "sh", *options],
        cwd=ROOT,
        input="hi\n",
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no full disk at hand")
@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_full_disk_behind_the_output_is_named(decoder_folder: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "fedge", "edge", "generate", "--base", str(decoder_folder)]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*command, "--max-tokens", "2", "hi", *options],
            cwd=ROOT,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == MachineError.exit_code
    assert done.stderr.splitlines() == [
        "error: the disk cannot be written: No space left on device",
        "fix: make room",
    ]
