"""What the user did, or what happened to the item, before a row and only before it."""

from feature_eng.behaviour.matching import check_told
from feature_eng.behaviour.step import with_behaviour

__all__ = ["check_told", "with_behaviour"]
