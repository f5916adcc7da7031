"""`budget_ms=`: the best (mode, steps, vae) that draws within a time, by costs measured on this machine.

`costs` measures and keeps them, `quality` orders what there is, `choose` joins the two. No torch is
imported here; measuring loads engines.
"""

from fewstep.budget.choose import Choice, choose
from fewstep.budget.costs import Cost, CostStore, kept_costs

__all__ = ["Choice", "Cost", "CostStore", "choose", "kept_costs"]
