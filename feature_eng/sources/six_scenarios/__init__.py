"""A made log of restaurant recommendations, with the truth beside it (docs/six_scenarios.md)."""
