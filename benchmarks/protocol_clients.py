"""Clients that keep the protocol of secret sums and train nothing, in a process of their own.

What :mod:`many_clients` asks: the coordinator's process, and what it measures, is the coordinator's alone.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol import PROTOCOL_VERSION, wire
from protocol.exchange import Contribution, Phase
from protocol.plan import Plan
from protocol.secagg import client
from protocol.secagg.contexts import session_id
from protocol.secagg.messages import decode_round
from protocol.secagg.primitives import Suite, memberid
from protocol.secagg.task import encoding_for, roster_root, terms_for
from protocol.secagg.witnessed import agree_by_log
from protocol.transparency.policy import policy_of
from protocol.transparency.shown import Told

UPDATES = 16  # different ones; clients share them


class Clients:
    """All clients of the round: keys, states, and the words that each of them masked."""

    def __init__(self, plan: Plan, count: int, size: int) -> None:
        self.plan, self.size = plan, size
        self.keys = [Ed25519PrivateKey.generate() for _ in range(count)]
        public = [key.public_key().public_bytes_raw() for key in self.keys]
        self.roster = {f"site-{number}": key for number, key in enumerate(public)}
        policy = policy_of(plan.audit).render() if plan.witnessed else ""
        self.policy = client.Policy(
            roster={memberid(key): key for key in public},
            minimum=plan.least_sum,
            maximum=plan.largest_sum,
            log_policy=policy,
        )
        self.states: dict[int, Any] = {}
        self.masked: dict[bytes, int] = {}
        self._terms: tuple[Any, list[Any], dict[str, Any]] | None = None

    def answer(
        self, phase: Phase, number: int, message: bytes, instruction: wire.Instruction
    ) -> bytes:
        """What the client says, as :mod:`client.secret` would let it."""
        return bytes(getattr(self, f"_{phase.value}")(number, message, instruction))

    def _advertise(self, number: int, message: bytes, instruction: wire.Instruction) -> bytes:
        self._sid = session_id(instruction.plan_digest, message[:16])
        self._seq = int.from_bytes(message[16:], "big")
        self.states[number], reply = client.advertise(
            self.keys[number], sid=self._sid, seq=self._seq, random=os.urandom
        )
        return reply

    def _share(self, number: int, message: bytes, instruction: wire.Instruction) -> bytes:
        self.states[number], reply = client.share(
            self.states[number],
            message,
            key=self.keys[number],
            policy=self.policy,
            random=os.urandom,
        )
        return reply

    def _mask(self, number: int, message: bytes, instruction: wire.Instruction) -> bytes:
        encoding, words, terms = self._of_all(len(decode_round(message)[0]), instruction)
        opened = client.open_shares(self.states[number], message, terms, policy=self.policy)
        self.masked[opened.before.before.client] = number % UPDATES
        self.states[number], reply = client.mask(
            opened,
            words[number % UPDATES].copy(),
            bits=encoding.bits,
            suite=Suite(self.plan.secrecy.suite),
            key=self.keys[number],
        )
        return reply

    def _of_all(
        self, members: int, instruction: wire.Instruction
    ) -> tuple[Any, list[Any], dict[str, Any]]:
        """What all compute alike, once; words of each of the updates."""
        if self._terms is None:
            encoding = encoding_for(self.plan, instruction, size=self.size, clients=members)
            terms = terms_for(self.plan, instruction, encoding, roster_root(self.roster))
            rng = np.random.default_rng(0)
            metrics = dict.fromkeys(self.plan.task.METRICS, 1.0)
            words = [
                encoding.words(
                    Contribution(
                        update=rng.normal(0, 0.01, self.size).astype(np.float32),
                        weight=1,
                        metrics=metrics,
                    ),
                    rng,
                    os.urandom,
                )
                for _ in range(UPDATES)
            ]
            self._terms = encoding, words, terms
        return self._terms

    def _agree(self, number: int, message: bytes, instruction: wire.Instruction) -> bytes:
        self.states[number], reply = client.agree_on_alive(
            self.states[number], message, key=self.keys[number], policy=self.policy
        )
        return reply

    def _unmask(self, number: int, message: bytes, instruction: wire.Instruction) -> bytes:
        state = self.states.pop(number)
        if self.plan.witnessed:
            shares = client.reveal(agree_by_log(state, message, policy=self.policy))
        else:
            shares = client.unmask(state, message, policy=self.policy)
        _, advert = client.advertise(
            self.keys[number], sid=self._sid, seq=self._seq + 1, random=os.urandom
        )
        return advert + shares

    def total(self, alive: list[bytes]) -> Any:
        """The sum of what these clients masked."""
        assert self._terms is not None
        counts = np.bincount([self.masked[member] for member in alive], minlength=UPDATES)
        words = np.stack(self._terms[1]).astype(np.uint64)
        return (counts.astype(np.uint64) @ words).astype(np.uint16)


def serve(pipe: Connection, document: dict[str, Any], count: int, size: int) -> None:
    """The clients' process: (phase, client, message or None for the one before, instruction) to replies."""
    clients = Clients(Plan.model_validate(document), count, size)
    pipe.send(clients.roster)
    common = b""
    while request := pipe.recv():
        phase, number, message, instruction = request
        if phase == "total":
            pipe.send(clients.total(message))
            continue
        common = common if message is None else message
        pipe.send(clients.answer(phase, number, common, instruction))
    usage = resource.getrusage(resource.RUSAGE_SELF)
    pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024))


@dataclass
class Traffic:
    """Bytes each way of one client."""

    up: int = 0
    down: int = 0


class Asked:
    """Clients behind a pipe, as an app; who is lost, and how many bytes went each way."""

    def __init__(self, plan: Plan, count: int, size: int, lost: float) -> None:
        self.plan = plan
        self.pipe, other = multiprocessing.Pipe()
        arguments = (other, plan.model_dump(), count, size)
        multiprocessing.get_context("spawn").Process(
            target=serve, args=arguments, daemon=True
        ).start()
        self.roster: dict[str, bytes] = self.pipe.recv()
        each = round(1 / lost) if lost else count + 2
        self.gone = {Phase.MASK: range(0, count, each), Phase.UNMASK: range(1, count, each)}
        self.traffic = [Traffic() for _ in range(count)]
        self._last: bytes | None = None

    def app(self) -> ClientApp:
        app = ClientApp()

        @app.query("hello")
        def hello(message: Message, context: Context) -> Message:
            said = wire.Hello(
                client=f"site-{context.node_config['partition-id']}",
                base=self.plan.base.fingerprint,
                protocol=PROTOCOL_VERSION,
            )
            content = {wire.REPLY: ConfigRecord(wire.to_record(said))}
            return Message(RecordDict(content), reply_to=message)

        for phase in Phase:
            app.train(phase.value)(lambda m, c, phase=phase: self._answer(phase, m, c))
        return app

    def _answer(self, phase: Phase, message: Message, context: Context) -> Message:
        number, content = int(context.node_config["partition-id"]), message.content
        if number in self.gone.get(phase, ()):
            raise ConnectionError("gone")
        instruction = wire.from_record(
            wire.Instruction, dict(content.config_records[wire.INSTRUCTION])
        )
        array = content.array_records[wire.SECAGG]["message"]
        again, self._last = array.data is self._last, array.data
        request = None if again else array.numpy().tobytes()
        self.pipe.send((phase, number, request, instruction))
        reply: bytes = self.pipe.recv()
        text = content.config_records.get(wire.LOG, {}).get("text", "")
        self.traffic[number].down += len(array.data) + len(str(text))
        self.traffic[number].up += len(reply)
        masked = ArrayRecord({"masked": Array(np.frombuffer(reply, np.uint8))})
        answer = RecordDict({wire.MASKED: masked})
        if phase in (Phase.ADVERTISE, Phase.UNMASK):
            memory = wire.LogText(text=Told(size=0, open=[]).encode())
            answer[wire.LOG] = ConfigRecord(wire.to_record(memory))
        return Message(answer, reply_to=message)

    def total(self, alive: list[bytes]) -> Any:
        """The sum of the words that these masked."""
        self.pipe.send(("total", 0, alive, None))
        return self.pipe.recv()

    def ended(self) -> tuple[float, int]:
        """CPU seconds and peak bytes of the clients' process, which ends."""
        self.pipe.send(None)
        seconds, peak = self.pipe.recv()
        return float(seconds), int(peak)
