"""Blocks that models are built of: plain torch, sized by plain integers, no configuration."""
