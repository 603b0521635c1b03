"""Which engine trains: what the plan says, or what this machine is fast at. (docs/adr/0041)"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from client.engine.interface import Engine
from protocol.errors import MachineError
from protocol.plan import Plan
from protocol.recipe import Recipe
from protocol.rules import Parts

if TYPE_CHECKING:
    from client.opened_base import OpenedBase

ENGINES = 4  # kept in one process; the one not used for longest is let go
DRIVERS = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # without one of them torch need not be asked
Key = tuple[object, ...]


def engine_for(
    recipe: Recipe,
    base: OpenedBase,
    *,
    threads: int = 0,
    programs: Path | None = None,
    parts: Iterable[Parts] | None = None,
    expand_mib: int = 0,
) -> Engine:
    """The process's engine for adapters of ``recipe``; made at the first call.

    Args:
        recipe: whose adapter is trained.
        base: verified, and the plan's.
        threads: 0 leaves it to the engine.
        programs: where programs are kept when they cannot be beside the base.
        parts: what is trained, instead of what the plan's rounds train.
        expand_mib: MiB that frozen weights, expanded once to floats, may take; none where the plan bounds
            ``local.memory``. Of ONNX Runtime alone.

    Raises ArtefactError for a base that has no program, MachineError when the engine is not installed,
    PlanError when ``local.memory`` is too little for this base.
    """
    plan = recipe.plan
    kind = chosen(plan)
    sets = None if parts is None else tuple(parts)
    key: Key = (
        *(kind, str(base.folder), base.manifest.fingerprint, plan.adapter_settings, recipe.layout),
        *(plan.task.kind, plan.task.pairs, plan.rule.name, plan.base.program),
        *(plan.local.precision, plan.local.memory, plan.task.longest, sets, threads, expand_mib),
    )
    with _lock:
        if key not in _engines:
            while len(_engines) >= ENGINES:
                _engines.popitem(last=False)
            _engines[key] = _made(kind, recipe, base, threads, programs, sets, expand_mib)
        _engines.move_to_end(key)
        return _engines[key]


def chosen(plan: Plan) -> Literal["onnx", "torch"]:
    """The plan's engine; ``auto`` is torch where it is installed and finds CUDA, else ONNX Runtime."""
    if plan.local.engine != "auto":
        return plan.local.engine
    return "torch" if _cuda() else "onnx"


@lru_cache(maxsize=1)
def _cuda() -> bool:
    if not any(path.exists() for path in DRIVERS) or not _installed():
        return False
    import torch

    return bool(torch.cuda.is_available())


def _installed() -> bool:
    return all(find_spec(name) is not None for name in ("torch", "transformers", "peft"))


def _made(
    kind: str,
    recipe: Recipe,
    base: OpenedBase,
    threads: int,
    programs: Path | None,
    sets: tuple[Parts, ...] | None,
    expand_mib: int,
) -> Engine:
    if kind == "torch":
        if not _installed():
            raise MachineError(
                "`local.engine` is torch, which is not installed here",
                "pip install -c constraints.txt '.[client-torch]', or agree on engine = \"auto\"",
            )
        from client.engine.torch_engine import TorchEngine

        return TorchEngine(base.folder, recipe, threads=threads)
    from base_model.programs.folder import program_for
    from base_model.programs.footprint import MIB, way_of
    from client.engine.onnx_engine import OnnxEngine

    way = way_of(recipe)
    cache = base.program_cache(programs)
    program = program_for(base.folder, recipe, cache=cache, parts=sets)
    expand = 0 if recipe.plan.local.memory else expand_mib * MIB
    return OnnxEngine(program, base.folder, recipe.layout, threads=threads, way=way, expand=expand)


_engines: OrderedDict[Key, Engine] = OrderedDict()
_lock = threading.Lock()


def forget() -> None:
    """Close every engine; for processes that go on to something else."""
    with _lock:
        _engines.clear()
