import json
from pathlib import Path

import pytest

from hjepa_train.evaluation import finished_probes
from hjepa_train.evaluation.finished_probes import Finished, digest


def test_parts_come_back_and_others_are_not_known(tmp_path: Path) -> None:
    path = tmp_path / "evaluated.jsonl"
    first = Finished(path)
    first.put("a", "knn", {"knn": 12.5, "dims": 96})
    first.put("a", "ridge", {"ridge": 1 / 3})
    first.put("a", "knn", {"knn": 13.5})
    again = Finished(path)
    assert again.get("a", "knn") == {"knn": 13.5}
    assert again.get("a", "ridge") == {"ridge": 1 / 3}
    assert again.get("b", "knn") is None
    assert again.get("a", "linear") is None
    assert len(path.read_text().splitlines()) == 2


def test_lines_that_cannot_be_read_are_computed_again(tmp_path: Path) -> None:
    path = tmp_path / "evaluated.jsonl"
    good = json.dumps({"key": "a", "probe": "knn", "values": {"knn": 1.0}})
    path.write_text(f'{good}\n[1]\n{{"key": "a"}}\n{good[:20]}')
    parts = Finished(path)
    assert parts.get("a", "knn") == {"knn": 1.0}
    parts.put("a", "ridge", {"ridge": 2.0})
    assert len(path.read_text().splitlines()) == 2


def test_every_fact_and_the_protocol_decide_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = {"bank": 10, "images": ["ab", "cd"]}
    assert digest(facts) == digest({"images": ["ab", "cd"], "bank": 10})
    others = [{**facts, "bank": 11}, {**facts, "images": ["cd", "ab"]}, {**facts, "more": None}]
    assert len({digest(facts), *(digest(other) for other in others)}) == 4
    before = digest(facts)
    monkeypatch.setattr(finished_probes, "PROTOCOL", finished_probes.PROTOCOL + 1)
    assert digest(facts) != before
