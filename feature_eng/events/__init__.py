"""Raw rows -> typed events. Every normalisation of raw values ends here.

No row is lost: each comes out as an event, or among the rejects with its reason.
"""

from feature_eng.events.parting import Events, to_events
from feature_eng.events.values import column, comparable, number, scenario_index_column

__all__ = ["Events", "column", "comparable", "number", "scenario_index_column", "to_events"]
