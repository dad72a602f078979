"""The page shows what was found, says what was not, asks nothing of any network, and can be read by all."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import pytest
from evaluations import cell, evaluation

from hinet_model.lifecycle.evaluation import CHALLENGER, Evaluation
from hinet_model.lifecycle.judging.judgements import Judgement
from hinet_model.lifecycle.judging.measures import Measure
from hinet_model.lifecycle.promotion import decide
from hinet_model.models.gate_usage import GateUsage
from hinet_model.report import page
from hinet_model.report.model_facts import ModelFacts
from hinet_model.report.run_facts import RunFacts

STYLE = Path(page.__file__).with_name("templates") / "style.css"
EVIL = '<b onclick="x()">&\'é日本</b>'
CURVES = {
    "roc": [[0.0, 0.0], [0.2, 0.7], [1.0, 1.0]],
    "reliability": [[0.1, 0.12, 40.0], [0.6, 0.5, 40.0]],
    "scores": [[0.01, 30.0, 2.0], [0.2, 20.0, 8.0], [0.5, 10.0, 30.0]],
}
VOID = {"meta", "link", "br", "hr", "img", "input", "line", "circle", "rect", "polyline"}


def judged(name: str, auc: float, champion: float | None = None) -> Judgement:
    """A cell with curves and an interval."""
    one = cell(name, auc, champion)
    own = {**one.measures[CHALLENGER], "auc": Measure(auc, auc - 0.02, auc + 0.02, 0.01, "delong")}
    return replace(
        one,
        measures={**one.measures, CHALLENGER: own},
        differences={key: replace(value, low=-0.003, high=0.009) for key, value in one.differences.items()},
        curves=dict.fromkeys(one.measures, CURVES),
    )


def findings(judged_evaluation: Evaluation | None = None, **changed: object) -> page.Findings:
    """All that a page can show, with a scenario of a bad name."""
    found = judged_evaluation or evaluation(
        [judged("young/click", 0.75, 0.74), judged(f"{EVIL.replace('/', '')}/click", 0.72, 0.73)],
        champion="1",
    )
    scenarios = [one.scenario for one in found.cells]
    run = RunFacts(
        curves={(one.scenario, one.task): [(1.0, 0.6), (2.0, 0.7)] for one in found.cells},
        loss=[(1.0, 0.6), (2.0, 0.5)],
        costs=[("training", "41 s")],
        lineage=[("git_sha", "abc"), ("note", EVIL)],
        settings=[("training.epochs", "2")],
        split_rows={"train": [70] * len(scenarios), "test": [10] * len(scenarios)},
    )
    model = ModelFacts(
        scenarios,
        1234567,
        [[0.0, 1.0], [1.0, 0.0]],
        [GateUsage("young", "task_layer.gates", "click", 500, (0.97, 0.02, 0.01), 0.2)],
    )
    data = page.DataFacts(
        [SimpleNamespace(table="ratings", taken=100, kept=94, rejected={EVIL: 6})],
        drift=[("nulls", EVIL, "-", "0.125", "beyond its limit")],
    )
    given = {
        "evaluation": found, "decision": decide(found), "policy": "the default policy", "margin": 0.01,
        "run": run, "model": model, "data": data,
    }  # fmt: skip
    return page.Findings(**{**given, **changed})  # type: ignore[arg-type]


class Reader(HTMLParser):
    """Reads a page, holding it to well-formedness."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"never closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("td", "th", "tr", "li", "dt", "dd"):
            self.text += " "
        assert len(dict(attrs)) == len(attrs), f"{tag} says an attribute twice: {attrs}"
        self.elements.append((tag, {key: value or "" for key, value in attrs}))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID, tag
        self.elements.append((tag, {key: value or "" for key, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        """Attributes of every element of this name."""
        return [attributes for name, attributes in self.elements if name == tag]


def empty() -> page.Findings:
    """What is left where nothing was recorded."""
    bare = evaluation([cell("young/click", None)])
    return page.Findings(bare, decide(bare), "the default policy", 0.01)


@pytest.fixture(params=["whole", "first", "empty"])
def text(request: pytest.FixtureRequest) -> str:
    """Pages with a champion, without one, and with hardly anything."""
    if request.param == "whole":
        return page.render(findings())
    if request.param == "first":
        return page.render(findings(evaluation([judged("young/click", 0.75), judged("old/click", 0.7)])))
    return page.render(empty())


def test_a_page_asks_nothing_of_any_network(text: str) -> None:
    read = Reader(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & {
        tag for tag, _ in read.elements
    }
    for tag, attributes in read.elements:
        for name, value in attributes.items():
            assert name not in ("src", "srcset", "xlink:href", "action", "background", "data"), (tag, name)
            assert name != "href" or value.startswith("#"), (tag, value)
            assert "url(" not in value
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert "prefers-color-scheme: dark" in style[1]
    assert not re.search(r"url\(|@import|@font-face|https?:", style[1])
    (policy,) = [
        one["content"] for one in read.all("meta") if one.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy == "default-src 'none'; style-src 'unsafe-inline'"


def test_a_page_can_be_read_by_keyboard_and_screen_reader(text: str) -> None:
    read = Reader(text)
    assert text.startswith("<!DOCTYPE html>")
    assert read.all("html") == [{"lang": "en"}]
    headings = [int(tag[1]) for tag, _ in read.elements if re.fullmatch(r"h[1-6]", tag)]
    assert headings.count(1) == 1
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(headings))
    assert len(read.all("th")) > 10
    assert all(attributes.get("scope") in ("col", "row") for attributes in read.all("th"))
    assert len(read.all("table")) == len(read.all("caption")) > 1
    drawn = [
        (attributes.get("role") == "img" and len(attributes.get("aria-label", "")) > 10)
        or attributes.get("aria-hidden") == "true"
        for attributes in read.all("svg")
    ]  # fmt: skip
    assert all(drawn)
    identities = [attributes["id"] for _, attributes in read.elements if "id" in attributes]
    assert len(identities) == len(set(identities))
    targets = [attributes["href"][1:] for attributes in read.all("a")]
    assert set(targets) <= set(identities)
    assert read.all("a")[0] == {"class": "skip", "href": "#verdict"}
    labelled = [one["aria-labelledby"] for one in read.all("section")]
    assert set(labelled) <= set(identities)
    for region in [one for one in read.all("div") if one.get("class") == "scroll"]:
        assert region["tabindex"] == "0", "what scrolls must be reached by keys"
        assert region["role"] == "region"
        assert region["aria-label"]


def test_names_from_outside_are_text_and_nothing_else() -> None:
    text = page.render(findings())
    read = Reader(text)
    assert not read.all("b")
    assert EVIL.replace("/", "") in read.text
    assert f"{EVIL}: 6" in read.text
    assert not any("onclick" in attributes for _, attributes in read.elements)


def test_the_verdict_comes_first_and_names_what_speaks_against() -> None:
    found = evaluation([judged("young/click", 0.75, 0.74), judged("old/click", 0.70, 0.76)], champion="1")
    decision = decide(found)
    assert not decision.promote
    read = Reader(page.render(findings(found)))
    assert read.text.index("Would not be promoted") < read.text.index("Metrics with their intervals")
    assert decision.reasons[0] in read.text
    accepted = Reader(page.render(findings(evaluation([judged("young/click", 0.75)]), model=None)))
    assert "Would be promoted" in accepted.text


def test_every_cell_is_shown_with_its_interval_and_its_change() -> None:
    text = " ".join(Reader(page.render(findings())).text.split())
    assert "young click 0.7500 0.7300 to 0.7700 0.7400 +0.0100 −0.0030 to +0.0090 10,000 4,000 500" in text
    labels = [one["aria-label"] for one in Reader(page.render(findings())).all("svg") if "aria-label" in one]
    assert "ROC curve of scenario young, task click. AUC: challenger 0.7500, champion 0.7400." in labels
    assert any(
        label.startswith("Validation AUC of scenario young, task click, over 2 epochs") for label in labels
    )
    assert "1 of them give an expert less than a tenth" in text
    assert "young click task_layer.gates 500 0.200 2, 3" in text
    assert "ratings 100 94 6" in text


def test_what_is_missing_says_so_in_a_line() -> None:
    text = Reader(page.render(empty())).text
    for line in (
        "The evaluation holds no ROC curve",
        "The evaluation holds no reliability curve.",
        "The evaluation holds no score distribution.",
        "The model was not looked into.",
        "The run has recorded no validation.",
        "Raw and rejected rows: not recorded.",
        "Rows by split: the run has not recorded them.",
        "Drift: the build has recorded none.",
        "The version bears no lineage.",
        "The run has recorded no cost.",
        "The run has recorded no settings.",
    ):
        assert line in text, line
    without = findings(model=ModelFacts(["young", "old"], 10, None, ()))
    text = Reader(page.render(without)).text
    assert "The model has no table of scenario attention." in text
    assert "The model has no gates." in text


def test_a_page_of_many_cells_draws_the_refused_ones_and_the_largest() -> None:
    cells = [judged(f"s{number}/click", 0.75, 0.74) for number in range(40)]
    cells[7] = replace(judged("s7/click", 0.6, 0.74), rows=4000, positives=1500)
    found = evaluation(cells, champion="1")
    drawn = page.render(findings(found, model=None))
    labels = [one["aria-label"] for one in Reader(drawn).all("svg") if "aria-label" in one]
    rocs = [label for label in labels if label.startswith("ROC curve")]
    assert len(rocs) == page.MOST_CHARTS
    assert any("scenario s7," in label for label in rocs)
    assert "24 of 40 cells are drawn" in drawn


def test_many_scenarios_list_whom_they_listen_to_most() -> None:
    names = [f"s{number}" for number in range(page.READABLE_ATTENTION + 1)]
    table = [
        [0.5 if (row + 1) % len(names) == column else 0.01 for column in range(len(names))]
        for row in range(len(names))
    ]
    text = Reader(page.render(findings(model=ModelFacts(names, 1, table, ())))).text
    assert "s1 0.50, " in text


@pytest.mark.parametrize("model", ["main.models.hinet", "a/b", "../x", "Ü"])
def test_a_page_has_a_name_that_stays_in_its_folder(model: str) -> None:
    name = page.file_name(model, "3")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+-3\.html", name)
    assert Path("reports", name).resolve().parent == Path("reports").resolve()


def _colours(block: str) -> dict[str, tuple[float, ...]]:
    found = {}
    for name, value in re.findall(r"--([\w-]+): #([0-9a-f]{6}|[0-9a-f]{3});", block):
        digits = value if len(value) == 6 else "".join(2 * digit for digit in value)
        found[name] = tuple(int(part, 16) / 255 for part in re.findall("..", digits))
    (heat,) = re.findall(r"--heat: (\d+) (\d+) (\d+)", block)
    # The heaviest cell of the heat map lets half of the page through.
    found["heat"] = tuple(
        0.5 * int(one) / 255 + 0.5 * back for one, back in zip(heat, found["page"], strict=True)
    )
    return found


def _contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    def luminance(colour: tuple[float, ...]) -> float:
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in colour]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_text_and_lines_stand_out_from_what_is_behind_them() -> None:
    """WCAG 2, level AA: 4.5 for text, 3 for graphics, in each of the page's colour schemes."""
    blocks = re.findall(r":root \{(.*?)\}", STYLE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(blocks) == 3, "light, dark, print"
    for block in blocks:
        colours = _colours(block)
        pairs = [
            (text, back) for text in ("text", "faint") for back in ("page", "raised", "good-back", "bad-back")
        ]
        pairs += [("link", "page"), ("good", "page"), ("bad", "page"), ("warn", "page"), ("text", "heat")]
        pairs += [("good", "good-back"), ("bad", "bad-back")]
        for text, back in pairs:
            assert _contrast(colours[text], colours[back]) >= 4.5, (text, back, block)
        for line in ("challenger", "champion", "uncalibrated", "negatives", "positives"):
            assert _contrast(colours[line], colours["page"]) >= 3, (line, block)


def requests_of(file: Path, scratch: Path) -> tuple[str, set[str]]:
    """What Chromium makes of a page, and the URLs that the page asks for.

    The browser asks for its own updates, page or no page; what a page asks for has an origin. No name is resolved.
    """
    log = scratch / f"{file.stem}.json"
    command = ["chromium", "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
               "--disable-component-update", "--disable-sync", "--no-first-run", "--dump-dom",
               "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
               f"--user-data-dir={scratch / file.stem}", f"--log-net-log={log}"]  # fmt: skip
    done = subprocess.run([*command, file.as_uri()], capture_output=True, text=True, timeout=120, check=True)
    content = json.loads(log.read_text(encoding="utf-8"))
    started = content["constants"]["logEventTypes"]["URL_REQUEST_START_JOB"]
    asked = [one.get("params", {}) for one in content["events"] if one["type"] == started]
    return done.stdout, {one["url"] for one in asked if "url" in one and one["initiator"] != "not an origin"}


@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium: apt-get install chromium")
def test_a_browser_that_shows_the_page_asks_for_nothing_else(tmp_path: Path) -> None:
    text = page.render(findings())
    quiet, loud = tmp_path / "quiet.html", tmp_path / "loud.html"
    quiet.write_text(text, encoding="utf-8")
    open_page = re.sub("<meta http-equiv.*?>", "", text).replace(
        "<main>", '<main><img src="http://127.0.0.1:9/x"><img src="https://example.com/y">'
    )
    loud.write_text(open_page, encoding="utf-8")
    shown, asked = requests_of(quiet, tmp_path)
    assert "small, version 2" in shown
    assert asked == set()
    _, asked = requests_of(loud, tmp_path)
    assert asked == {"http://127.0.0.1:9/x", "https://example.com/y"}, "the log would have shown a request"
