"""The device manager: `probe()` looks at the machine, `place()` decides. Only here is hardware named."""

from fewstep.devices.memory import Need
from fewstep.devices.place import Placement, place
from fewstep.devices.probe import Cpu, Cuda, Mps, Probe, probe
from fewstep.devices.threads import limit_threads

__all__ = ["Cpu", "Cuda", "Mps", "Need", "Placement", "Probe", "limit_threads", "place", "probe"]
