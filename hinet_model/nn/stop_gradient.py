"""Stop gradient: the one way in which a model lets a value pass and its gradient not.

Papers ask for it here and there. A gradient that stops anywhere else is a fault, and can be told apart: with
this function replaced by the identity every gradient of every model equals a finite difference.
"""

from __future__ import annotations

from torch import Tensor


def stop_gradient(value: Tensor) -> Tensor:
    """The same value, through which no gradient passes."""
    return value.detach()
