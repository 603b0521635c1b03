from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from torch import nn

from base_model.quant_linear import QuantLinear, dequantise, refuse_merge
from protocol import codes as reference


def layer(
    bits: int = 4, *, rows: int = 24, width: int = 40, bias: bool = True, seed: int = 0
) -> QuantLinear:
    rng = np.random.default_rng(seed)
    packed, scales = reference.quantise(
        rng.normal(size=(rows, width)).astype("f"), bits=bits, block=32
    )
    return QuantLinear(
        torch.from_numpy(packed),
        torch.from_numpy(scales),
        bits=bits,
        in_features=width,
        bias=torch.from_numpy(rng.normal(size=rows).astype("f")) if bias else None,
    )


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantise_is_the_protocol_bit_for_bit(bits: int) -> None:
    made = layer(bits)
    expected = reference.dequantise(
        made.codes.numpy(), made.scales.numpy(), bits=bits, in_features=40
    )
    assert (made.weight.numpy() == expected).all()


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("bits", [4, 8])
def test_output_and_gradients_are_those_of_a_linear(bits: int, keep: bool) -> None:
    made = layer(bits)
    made.keep_expanded = keep
    made.bias.requires_grad_(True)
    twin = nn.Linear(40, 24)
    twin.load_state_dict({"weight": made.weight, "bias": made.bias.detach()})
    x = torch.randn(2, 3, 40, requires_grad=True)
    other = x.detach().clone().requires_grad_(True)
    made(x).square().sum().backward()
    twin(other).square().sum().backward()
    assert torch.allclose(x.grad, other.grad, atol=1e-4)
    assert torch.allclose(made.bias.grad, twin.bias.grad, atol=1e-4)


def test_gradcheck_in_double() -> None:
    made = layer(4, rows=3, width=32)
    made.matmul_dtype = torch.float64
    x = torch.randn(2, 32, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(made, (x,))


def test_two_layers_of_one_shape_and_two_threads_do_not_disturb_each_other() -> None:
    one, two = layer(seed=1), layer(seed=2)
    x = torch.randn(5, 40)
    expected = x @ one.weight.T + one.bias, x @ two.weight.T + two.bias
    wrong: list[int] = []

    def work(made: QuantLinear, index: int) -> None:
        for _ in range(50):
            if not torch.allclose(made(x), expected[index], atol=1e-5):
                wrong.append(index)

    threads = [threading.Thread(target=work, args=(made, i)) for i, made in enumerate((one, two))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_scales_survive_casts_and_the_weight_is_not_written_to() -> None:
    made = layer()
    before = made.scales.clone()
    made.to(torch.bfloat16)
    made.half()
    assert made.scales.dtype == torch.float32
    assert (made.scales == before).all()
    for write in (
        lambda: made.weight.zero_(),
        lambda: made.weight.data.copy_(torch.zeros(24, 40)),
        lambda: setattr(made.weight, "data", torch.zeros(24, 40)),
        lambda: made.weight.__setitem__(0, 0.0),
        lambda: made.weight.data.__iadd__(1.0),
    ):
        with pytest.raises(RuntimeError, match="codes cannot be written to"):
            write()
    assert made.weight.abs().sum() > 0
    assert type(made.weight * 2) is torch.Tensor


@pytest.mark.parametrize(
    "init",
    [
        *(True, "gaussian", "orthogonal"),
        *("pissa", "pissa_niter_2", "olora", "loftq", "corda", "eva", "lora_ga"),
    ],
)
def test_an_init_of_lora_starts_at_the_base_or_is_refused(init: object) -> None:
    """PEFT's inits that take a part out of the weight would start elsewhere: codes do not move."""
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    net, x = Net(), torch.randn(3, 40)
    expected = net(x)
    try:
        model = get_peft_model(
            net,
            LoraConfig(r=2, target_modules=["inner"], init_lora_weights=init),  # type: ignore[arg-type]
        )
    except (RuntimeError, ValueError, ImportError, AttributeError):
        assert init not in (True, "gaussian", "orthogonal")
        return
    assert (model(x) - expected).abs().max() <= 1e-6


def test_scratch_gives_the_same_bits_as_a_fresh_tensor() -> None:
    made = layer()
    out = torch.full((24, 2, 32), 9.0)
    kwargs = {"bits": 4, "in_features": 40, "dtype": torch.float32}
    fresh = dequantise(made.codes, made.scales, **kwargs)
    assert (dequantise(made.codes, made.scales, out=out, **kwargs) == fresh).all()


def test_merging_is_refused() -> None:
    from peft import LoraConfig, get_peft_model

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = layer()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.inner(x)

    model = get_peft_model(Net(), LoraConfig(r=2, target_modules=["inner"]))
    refuse_merge(model)
    with pytest.raises(RuntimeError, match="cannot be merged"):
        model.merge_and_unload()
