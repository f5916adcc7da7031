"""torch's threads on a CPU that is not all ours."""

from __future__ import annotations

import logging

import torch

from fewstep.devices.place import Placement

_log = logging.getLogger("fewstep")


def limit_threads(placement: Placement) -> None:
    """Lower torch's threads to the cores that this process may use; never raise them.

    torch counts the machine's cores, not a container's quota, and more threads than cores wait for
    each other. The number is the whole process's, which is why only loading a model on the CPU
    changes it.
    """
    given = torch.get_num_threads()
    if placement.device.type == "cpu" and given > placement.threads:
        torch.set_num_threads(placement.threads)
        _log.info("torch had %d threads for %d cores, and now has as many", given, placement.threads)
