"""The frozen linear layer whose weight is codes: trained through, never trained.

The bytes are MatMulNBits' (``protocol.codes``); forward and backward expand them into a scratch
buffer that is shared per thread and shape, so that a step's memory holds one expanded weight, not
one per layer. Autograd keeps the codes only. Adapters on top must not be merged: see
:func:`refuse_merge`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_local = threading.local()
# What peft does to a weight that it would change: merging, and inits that take a part out of it.
REFUSED = (
    "codes cannot be written to: serve the adapter unmerged, and start LoRA with init_lora_weights "
    'true, "gaussian" or "orthogonal" (pissa, olora and others change the base\'s weight)'
)


class ReadOnly(Tensor):
    """The values that codes stand for. Whoever writes to them is told, since nothing would change."""

    @property
    def data(self) -> Tensor:
        """Itself: what is written there is refused as well."""
        return self

    @data.setter
    def data(self, _value: Tensor) -> None:
        raise RuntimeError(REFUSED)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        in_place = name.endswith("_") and not name.endswith("__")
        if (in_place or name in IN_PLACE) and args and isinstance(args[0], ReadOnly):
            raise RuntimeError(REFUSED)
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


IN_PLACE = {"__setitem__", *(f"__i{name}__" for name in ("add", "sub", "mul", "truediv", "pow"))}


def dequantise(
    codes: Tensor,
    scales: Tensor,
    *,
    bits: int,
    in_features: int,
    dtype: torch.dtype,
    out: Tensor | None = None,
) -> Tensor:
    """The weight ``[N, K]`` in ``dtype``; bit-equal to ``protocol.codes.dequantise`` in float32.

    ``codes`` is uint8 ``[N, nblocks, block*bits/8]``, ``scales`` float32 ``[N, nblocks]``. ``out``
    is overwritten when given: ``[N, nblocks, block]``.
    """
    rows, blocks, width = codes.shape
    block = width * 8 // bits
    if out is None:
        out = torch.empty(rows, blocks, block, dtype=dtype, device=codes.device)
    if bits == 4:
        pair = out.view(rows, blocks, block // 2, 2)
        pair[..., 0] = codes & 15
        pair[..., 1] = codes >> 4
    else:
        out.copy_(codes)
    out.sub_(2 ** (bits - 1)).mul_(scales.unsqueeze(-1).to(dtype))
    return out.view(rows, -1)[:, :in_features]


def _scratch(codes: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """One buffer per thread and shape; valid until the next call with that shape."""
    pool: dict[Any, Tensor] = _local.__dict__.setdefault("pool", {})
    key = (*codes.shape[:2], codes.shape[2] * 8 // bits, dtype, codes.device)
    if key not in pool:
        pool[key] = torch.empty(key[:3], dtype=dtype, device=codes.device)
    return pool[key]


def _expanded(
    codes: Tensor, scales: Tensor, bits: int, in_features: int, dtype: torch.dtype
) -> Tensor:
    out = _scratch(codes, bits, dtype)
    return dequantise(codes, scales, bits=bits, in_features=in_features, dtype=dtype, out=out)


class _QuantMatmul(torch.autograd.Function):
    """``x @ W.T + bias`` for 2-D x, with W expanded from codes where it is needed."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        bits: int,
        in_features: int,
        dtype: torch.dtype,
        kept: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.meta = bits, in_features, dtype, x.dtype, None if bias is None else bias.dtype, kept
        weight = _expanded(codes, scales, bits, in_features, dtype) if kept is None else kept
        return F.linear(x.to(dtype), weight, None if bias is None else bias.to(dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        codes, scales = ctx.saved_tensors
        bits, in_features, dtype, x_dtype, bias_dtype, kept = ctx.meta
        for_x = for_bias = None
        if ctx.needs_input_grad[0]:
            weight = _expanded(codes, scales, bits, in_features, dtype) if kept is None else kept
            for_x = (gradient.to(dtype) @ weight).to(x_dtype)
        if ctx.needs_input_grad[3]:
            for_bias = gradient.sum(0).to(bias_dtype)
        return for_x, None, None, for_bias, None, None, None, None


class QuantLinear(nn.Linear):
    """``nn.Linear`` on codes. ``weight`` is a fresh float32 tensor, for readers only.

    The buffers are not called ``qweight``, nor the setting ``compute_dtype``: peft gives both
    names a meaning of its own. ``keep_expanded`` holds on to the expanded weight after its first
    use: the same bits, some 12 % faster on a small base, at float32's memory.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        codes: Tensor,
        scales: Tensor,
        *,
        bits: int,
        in_features: int,
        bias: Tensor | None,
        matmul_dtype: torch.dtype | None = None,
    ) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = in_features, codes.shape[0]
        self.bits, self.matmul_dtype = bits, matmul_dtype
        self.keep_expanded = False
        self._kept: Tensor | None = None
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]

    @classmethod
    def from_codes(
        cls,
        qweight: Tensor,
        scales: Tensor,
        *,
        bits: int,
        block: int,
        in_features: int,
        bias: Tensor | None,
        matmul_dtype: torch.dtype | None = None,
    ) -> QuantLinear:
        """From the tensors on disk: ``qweight`` uint8 ``[N, nblocks*block*bits/8]``."""
        codes = qweight.view(qweight.shape[0], -1, block * bits // 8)
        return cls(
            codes, scales, bits=bits, in_features=in_features, bias=bias, matmul_dtype=matmul_dtype
        )

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight ``[N, K]``, float32: a copy. Writing to it would change nothing and is refused."""
        values = dequantise(
            self.codes,
            self.scales,
            bits=self.bits,
            in_features=self.in_features,
            dtype=torch.float32,
        )
        return values.as_subclass(ReadOnly)

    def forward(self, x: Tensor) -> Tensor:  # noqa: D102
        dtype = self.matmul_dtype or x.dtype
        if self.matmul_dtype is None and torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
        flat = x.reshape(-1, self.in_features)
        y: Tensor = _QuantMatmul.apply(
            flat,
            self.codes,
            self.scales,
            self.bias,
            self.bits,
            self.in_features,
            dtype,
            self._kept_weight(dtype),
        )
        return y.reshape(*x.shape[:-1], self.out_features)

    def _kept_weight(self, dtype: torch.dtype) -> Tensor | None:
        if not self.keep_expanded:
            return None
        kept = self._kept
        if kept is None or kept.dtype != dtype or kept.device != self.codes.device:
            kept = self._kept = dequantise(
                self.codes, self.scales, bits=self.bits, in_features=self.in_features, dtype=dtype
            )
        return kept

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> QuantLinear:
        # .to(bfloat16) and .half() would round the scales: the base would be another one.
        scales = self.scales
        super()._apply(fn, recurse)
        if self.scales.dtype != torch.float32:
            self.scales = scales.to(self.scales.device)
        return self

    def extra_repr(self) -> str:  # noqa: D102
        return f"in={self.in_features}, out={self.out_features}, bits={self.bits}"


def refuse_merge(model: nn.Module) -> None:
    """Make every adapter layer over a QuantLinear refuse to merge.

    peft would edit the temporary weight: no error, no effect, other logits.
    """
    from peft.tuners.tuners_utils import BaseTunerLayer

    def refused(*_: Any, **__: Any) -> None:
        raise RuntimeError(
            "an adapter cannot be merged into a quantised base: its codes would not move; "
            "serve it unmerged"
        )

    for module in model.modules():
        if isinstance(module, BaseTunerLayer) and isinstance(module.get_base_layer(), QuantLinear):
            module.merge = refused
