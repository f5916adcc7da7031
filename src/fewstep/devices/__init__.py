"""The device manager: `probe()` looks at the machine, `place()` decides. Only here is hardware named."""

from fewstep.devices.memory import ModelSize
from fewstep.devices.place import Placement, limit_threads, place
from fewstep.devices.probe import Cpu, Cuda, Mps, Probe, probe, processor_name

__all__ = [
    "Cpu", "Cuda", "ModelSize", "Mps", "Placement", "Probe", "limit_threads", "place", "probe",
    "processor_name",
]  # fmt: skip
