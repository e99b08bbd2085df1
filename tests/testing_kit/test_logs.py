"""Logs captured by the test kit: what is kept, what is found by facts, and that all is as before."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from trionode._util.log import Log
from trionode.testing import capture_logs

if TYPE_CHECKING:
    from trionode.testing import CapturedLogs


def test_records_are_found_by_logger_and_facts() -> None:
    """Those below a logger, too, but not one whose name merely begins so."""
    with capture_logs() as logs:
        Log("area.part").info("one %d", 1, peer="a@b", generation=3)
        Log("area").debug("two", peer="b@b", generation=3)
        logging.getLogger("areal").error("three")
    one = {"logger": "area.part", "level": "INFO", "message": "one 1", "peer": "a@b", "generation": 3}
    assert logs.facts(peer="a@b") == [one]
    assert [facts["message"] for facts in logs.facts("area", generation=3)] == ["one 1", "two"]
    assert logs.facts("areal") == [{"logger": "areal", "level": "ERROR", "message": "three"}]
    assert logs.facts(peer="c@b") == []
    assert len(logs.records) == 3


def test_logging_is_as_it_was_afterwards() -> None:
    """Its level and its handlers, whatever the block raises."""
    root = logging.getLogger()
    before = root.level, list(root.handlers)
    try:
        with capture_logs():
            assert root.level == logging.DEBUG
            raise ZeroDivisionError
    except ZeroDivisionError:
        assert (root.level, list(root.handlers)) == before


def test_the_fixture_has_what_is_logged(captured_logs: CapturedLogs) -> None:
    """In this test."""
    logging.getLogger("shop").warning("sold out")
    assert [record.name for record in captured_logs.records] == ["shop"]
