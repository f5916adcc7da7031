"""AdamW, or Muon for matrices with AdamW for the rest.

Muon makes each matrix's momentum orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers in
neural networks"), which learns what is rare as fast as what is frequent: here, thousands of names that
are each seen once in a pass.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.devices.probe import has_bf16

# Looked up or facing pixels, not multiplied inside: Muon's authors leave these to AdamW.
OUTER = ("token_embedding", "position_embedding", "conv_in", "conv_out")


class Optimiser:
    """All learning parameters under one step, one rate and one state."""

    def __init__(
        self,
        live: Mapping[str, Tensor],
        *,
        muon: bool,
        weight_decay: float,
        paces: Mapping[str, float] = MappingProxyType({}),
    ):
        """`live`: parameters by "network.parameter"; `paces`: a network's rate as a multiple of `step`'s."""
        # Muon takes matrices only: convolutions are seen flat, in the same memory.
        flat = {
            key: nn.Parameter(p.detach().flatten(1))
            for key, p in live.items()
            if muon and _is_hidden_matrix(key, p)
        }
        self._flat: list[tuple[Tensor, nn.Parameter]] = [(live[key], twin) for key, twin in flat.items()]
        rest = {key: p for key, p in live.items() if key not in flat}
        self._parts: dict[str, torch.optim.Optimizer] = {
            "adam": torch.optim.AdamW(_parameter_groups(rest, paces), weight_decay=weight_decay, fused=True)
        }
        if flat:
            self._parts["muon"] = Muon(_parameter_groups(flat, paces), weight_decay=weight_decay)

    def step(self, rate: float) -> None:
        """One update by the gradients that are there, which are then let go."""
        for p, twin in self._flat:
            twin.grad = None if p.grad is None else p.grad.flatten(1)
        for part in self._parts.values():
            for group in part.param_groups:
                group["lr"] = rate * group["pace"]
            part.step()
            part.zero_grad()
        for p, _ in self._flat:
            p.grad = None

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The whole state, named."""
        for name, part in self._parts.items():
            for index, moments in part.state_dict()["state"].items():
                yield from ((f"{name}.{index}.{key}", value.clone()) for key, value in moments.items())

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `tensors` gave."""
        for name, part in self._parts.items():
            moments: dict[int, dict[str, Tensor]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"{name}."):
                    _, index, moment = key.split(".")
                    moments.setdefault(int(index), {})[moment] = tensor
            part.load_state_dict({"state": moments, "param_groups": part.state_dict()["param_groups"]})


class Muon(torch.optim.Optimizer):
    """Momentum made orthogonal, for matrices; as `torch.optim.Muon` at "match_rms_adamw".

    The products run in bf16 where the device has it. torch's always do: on a CPU without, that takes
    ten times as long as fp32.
    """

    def __init__(self, params: Any, *, weight_decay: float, momentum: float = 0.95):
        super().__init__(params, {"lr": 0.0, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One update, with Nesterov's momentum."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                momentum, rate, state = group["momentum"], group["lr"], self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                state["momentum_buffer"].lerp_(p.grad, 1 - momentum)
                update = orthogonalise(p.grad.lerp(state["momentum_buffer"], momentum))
                p.mul_(1 - rate * group["weight_decay"])
                # 0.2 is the size of AdamW's updates (arXiv:2502.16982, equation 4).
                p.add_(update, alpha=-rate * 0.2 * math.sqrt(max(p.shape)))


def orthogonalise(matrix: Tensor) -> Tensor:
    """Return the matrix with its singular values near 1: five Newton-Schulz steps, Jordan's coefficients."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.to(torch.bfloat16 if has_bf16(matrix.device) else torch.float32)
    x = x.T if len(matrix) > matrix.shape[1] else x
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if len(matrix) > matrix.shape[1] else x


def _parameter_groups(parameters: Mapping[str, Tensor], paces: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters of each network, with its pace."""
    networks: dict[str, list[Tensor]] = {}
    for key, p in parameters.items():
        networks.setdefault(key.split(".", 1)[0], []).append(p)
    return [{"params": tensors, "pace": paces.get(network, 1.0)} for network, tensors in networks.items()]


def _is_hidden_matrix(key: str, p: Tensor) -> bool:
    return p.ndim >= 2 and not any(name in key for name in OUTER)
