"""Files of tensors are whole; weights have a name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fewstep.train import outputs


def test_a_write_that_fails_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "new" / "a.safetensors"
    outputs.write_tensors({"a": torch.eye(3).T[:, :2]}, path)

    def full(_tensors: object, scratch: Path, metadata: object) -> None:
        scratch.write_bytes(b"half")
        raise OSError(28, "No space left on device", metadata)

    monkeypatch.setattr(outputs, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        outputs.write_tensors({"a": torch.zeros(3, 2)}, path)
    assert torch.equal(load_file(path)["a"], torch.eye(3)[:, :2])


def test_a_digest_is_of_every_bit() -> None:
    network = nn.Linear(3, 2)
    before = outputs.network_digest(network)
    with torch.no_grad():
        network.bias[1] = network.bias[1].nextafter(torch.tensor(9.0))
    assert outputs.network_digest(network) != before
