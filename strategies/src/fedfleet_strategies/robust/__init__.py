"""Rules that hold when some devices lie. Each goes into a strategy's `rule` slot: `FedAdam(rule=MultiKrum(2, 5))`.

One paper, one module. What belongs to the fold and not to a paper is in `fedfleet_strategies.each`. Whom a rule left
out is told by the strategy's `explain`, and counted in the metrics as `fedfleet.left-out`.
"""

from fedfleet_strategies.robust.bucketing import Bucketing
from fedfleet_strategies.robust.bulyan import Bulyan
from fedfleet_strategies.robust.centred_clipping import CentredClipping
from fedfleet_strategies.robust.fltrust import Trust
from fedfleet_strategies.robust.geometric_median import GeometricMedian
from fedfleet_strategies.robust.krum import Krum, MultiKrum
from fedfleet_strategies.robust.median import Median
from fedfleet_strategies.robust.norm_clipping import NormClipping
from fedfleet_strategies.robust.trimmed_mean import TrimmedMean

__all__ = [
    "Bucketing",
    "Bulyan",
    "CentredClipping",
    "GeometricMedian",
    "Krum",
    "Median",
    "MultiKrum",
    "NormClipping",
    "TrimmedMean",
    "Trust",
]
