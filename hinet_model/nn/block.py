"""Block: a module of parts, each of which draws its own parameters."""

from __future__ import annotations

import torch
from torch import nn


class Block(nn.Module):
    """A module whose parameters are all those of its parts.

    One that has parameters beside them, or starts them otherwise, says so in a ``reset_parameters`` of its own.
    """

    def reset_parameters(self, generator: torch.Generator) -> None:
        """Draw all parameters anew from ``generator`` alone: part by part, in the order in which they were made."""
        for part in self.children():
            for one in part if isinstance(part, nn.ModuleList) else (part,):
                one.reset_parameters(generator)  # type: ignore[operator]
