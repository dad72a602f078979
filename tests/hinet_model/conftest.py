"""Fixtures of the model's tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from hinet_model.nn.native import library


@pytest.fixture(scope="module", params=["compiled", "plain"])
def experts(request: pytest.FixtureRequest) -> Iterator[str]:
    """Both ways in which a CPU computes routed experts, one after the other."""
    kind: str = request.param
    with pytest.MonkeyPatch.context() as patch:
        if kind == "plain":
            patch.setattr(library, "available", lambda: False)
        elif not library.available():
            pytest.skip("the library cannot be compiled here")
        yield kind
