"""`fewstep bench`: what this machine does with fewstep, against diffusers on the same files."""

from fewstep.bench.suites import SUITES, Settings, measure
from fewstep.bench.timing import Difference, Row, Timing

__all__ = ["SUITES", "Difference", "Row", "Settings", "Timing", "measure"]
