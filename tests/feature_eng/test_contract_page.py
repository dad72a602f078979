"""The page on adding data: contracts can be read, mistakes are seen as it says, the log is what it says."""

from __future__ import annotations

import csv
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from feature_eng.contract import Contract, ContractError, load_contract, to_contract
from feature_eng.sources.shop_log import write_shop_log
from foundation.settings import read_yaml

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "adding_data.md"
SHOP = ROOT / "conf" / "contracts" / "shop.yml"


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
    assert load_contract(SHOP) == contracts[0], "the shipped contract is the page's"


def test_each_mistake_is_seen_as_the_page_says() -> None:
    table = re.findall(r"^\| `(.*)` \| (.*) \|$", PAGE.read_text().split("## Mistakes")[1], re.MULTILINE)
    assert len(table) >= 6
    for written, seen in table:
        with pytest.raises(ContractError) as caught:
            load_contract(SHOP, [written])
        (fault,) = caught.value.faults
        assert fault.removeprefix(f"{SHOP}: ") == seen


def test_the_examples_log_holds_what_the_page_says_of_it(tmp_path: Path) -> None:
    write_shop_log(tmp_path)
    with (tmp_path / "shown.csv").open(newline="") as file:
        shown = list(csv.DictReader(file))
    contract = load_contract(SHOP)
    assert set(contract.feature_columns) | {"page", "clicked", "dwell_seconds", "shown_at"} == set(shown[0])
    keys = Counter(tuple(row[name] for name in contract.key) for row in shown)
    assert 0 < sum(times - 1 for times in keys.values()) < 0.02 * len(shown)
    pages = Counter(contract.scenario_index(row["page"]) for row in shown)
    assert set(pages) == {None, *range(5)}
    assert pages[None] == sum(row["page"] == "debug" for row in shown) < 0.05 * len(shown)
    assert any(not row["price"] for row in shown)
    orders = [json.loads(line) for line in (tmp_path / "orders.json").read_text().splitlines()]
    assert {row["user_id"] for row in shown} >= {str(order["buyer"]) for order in orders}
    assert len(orders) > 100
    with (tmp_path / "searches.csv").open(newline="") as file:
        searches = list(csv.DictReader(file))
    assert len(searches) == len({(row["user_id"], row["shown_at"]) for row in shown if row["query"]})
    assert {row["query"] for row in searches} == {row["query"] for row in shown if row["query"]}
