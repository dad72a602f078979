"""The page on adding data: every contract, and every part of one, that it shows can be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from feature_eng.contract import Contract, to_contract
from foundation.settings import read_yaml

PAGE = Path(__file__).parents[2] / "docs" / "adding_data.md"


def shown_contracts(folder: Path) -> list[Contract]:
    """The page's contract, and what each part makes of it."""
    parts: list[dict[str, Any]] = []
    for text in re.findall(r"^```yaml\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE):
        (folder / "part.yml").write_text(text)
        parts.append(read_yaml(folder / "part.yml"))
    return [to_contract(parts[0]), *(to_contract({**parts[0], **part}) for part in parts[1:])]


def test_every_contract_on_the_page_can_be_read(tmp_path: Path) -> None:
    contracts = shown_contracts(tmp_path)
    assert len(contracts) >= 4
    tasks = next(contract.tasks for contract in contracts if "spent" in contract.tasks)
    assert tasks["cart"].known_after_column == "dwell_seconds"
    assert tasks["rated"].scenarios == ("home", "product")
    sampled = next(contract for contract in contracts if contract.sampling is not None)
    assert sampled.kept_negatives == (0.1, 0.1, 0.1, 0.1, 1.0)
    dated = next(contract.split for contract in contracts if contract.split.method == "dates")
    assert dated.gap == 86_400
    assert dated.spans["train"] == (1_649_347_200, 1_650_556_799)
