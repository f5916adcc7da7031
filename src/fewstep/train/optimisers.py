"""AdamW, or Muon for matrices with AdamW for the rest.

Muon makes each matrix's momentum orthogonal (Jordan et al. 2024, "Muon: an optimizer for hidden layers in
neural networks"), which learns what is rare as fast as what is frequent: here, thousands of names that
are each seen once in a pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

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
            self._parts["muon"] = torch.optim.Muon(
                _parameter_groups(flat, paces), weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )

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


def _parameter_groups(named: Mapping[str, Tensor], paces: Mapping[str, float]) -> list[dict[str, Any]]:
    """The parameters of each network, with its pace."""
    networks: dict[str, list[Tensor]] = {}
    for key, p in named.items():
        networks.setdefault(key.split(".", 1)[0], []).append(p)
    return [{"params": own, "pace": paces.get(network, 1.0)} for network, own in networks.items()]


def _is_hidden_matrix(key: str, p: Tensor) -> bool:
    return p.ndim >= 2 and not any(name in key for name in OUTER)
