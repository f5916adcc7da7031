"""A saved picture drawn again from its own file, and whether it is the same."""

from fewstep.reproduction.comparison import Compared, Difference
from fewstep.reproduction.replaying import Replay, replay

__all__ = ["Compared", "Difference", "Replay", "replay"]
