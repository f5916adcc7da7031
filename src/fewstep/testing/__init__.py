"""For the tests of others, without torch: a fake engine for apps, the rules of a mode for backends.

    with fewstep.testing.fake() as engine:
        ...  # here fewstep.generate, agenerate and load check as ever, and draw at once

    fewstep.testing.check_backend(RECIPE)

The last raises `AssertionError` with a list of the rules that a recipe breaks.
"""

from fewstep.testing.conformance import check_backend, problems
from fewstep.testing.fake import FakeEngine, FakeStep, fake

__all__ = ["FakeEngine", "FakeStep", "check_backend", "fake", "problems"]
