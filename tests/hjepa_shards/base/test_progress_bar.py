"""Progress bars: one line of any terminal each, with numbers that people can read, and none that are not known."""

import io
import re
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace

import pytest
from rich.console import Console
from rich.progress import Progress

from hjepa_shards.base import progress_bar as module
from hjepa_shards.base.progress_bar import Advance, Words, clock, fit, progress_bar, rate, shortened
from hjepa_shards.errors import InputError

LONG = "verify /mnt/storage/of/the/whole/group/data/shards/imagenet100/train"
Show = Callable[..., str]


@pytest.fixture
def show(monkeypatch: pytest.MonkeyPatch) -> Show:
    """What is in a terminal of some columns after (seconds since the last, done, in all, bytes) were received."""

    def shown(unit: str, width: int, heard: list[tuple[float, int, int, int]], name: str = LONG) -> str:
        now, said = [100.0], io.StringIO()
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(module, "Progress", partial(Progress, get_time=lambda: now[0]))
        monkeypatch.setattr(module, "console", Console(file=said, width=width, color_system=None))
        with progress_bar(unit) as start:
            advance: Advance = start(name)
            for passed_s, done, total, num_bytes in heard:
                now[0] += passed_s
                advance(done, total, num_bytes)
        (line,) = said.getvalue().splitlines()
        return line.rstrip()

    return shown


@pytest.mark.parametrize("width", [40, 60, 80, 100, 200])
@pytest.mark.parametrize("unit", ["images", "bytes", "shards"])
def test_a_bar_is_one_line_of_its_terminal(show: Show, unit: str, width: int) -> None:
    whole = 1_281_167
    running = [(0.0, 0, whole, 0), *((60.0, done, whole, 300_000 * done) for done in range(50_000, 600_000, 50_000))]
    for heard in (running, [*running, (60.0, whole, whole, 300_000 * whole)]):
        line = show(unit, width, heard)
        assert len(line) <= width
        assert "━" in line
        assert ("100%" if unit == "bytes" else "1,281,167/1,281,167") in line or heard is running


def test_a_wide_terminal_shows_all_and_a_narrow_one_what_matters_most(show: Show) -> None:
    heard = [(0.0, 0, 1000, 0), *((1.0, 50 * n, 1000, 5_000_000 * n) for n in range(1, 11))]
    wide = show("images", 120, heard)
    assert wide.endswith(" 500/1,000 50 images/s 5 MB/s 0:00:10 left")
    assert wide.startswith("verify /mnt/storage/")
    assert show("images", 60, heard).endswith(" 500/1,000 50 images/s 0:00:10 left")
    assert show("images", 48, heard).endswith(" 500/1,000 0:00:10 left")
    assert show("images", 36, heard).endswith(" 500/1,000")


def test_a_full_bar_says_how_fast_it_was_and_how_long_it_took(show: Show) -> None:
    steps = [(0.0, 0, 8192, 0), *((2.0, 1024 * n, 8192, 3_000_000 * n) for n in range(1, 9))]
    assert show("images", 100, steps).endswith(" 8,192/8,192 512 images/s 1.5 MB/s in 0:00:16")
    assert show("bytes", 100, [(0.0, 0, 10**9, 0), (0.5, 10**9, 10**9, 0)]).endswith(" 100% 2 GB/s in 0.5 s")


@pytest.mark.parametrize(
    "heard",
    [
        [(0.0, 0, 10, 0)],
        [(0.0, 10, 10, 0)],
        [(0.0, 0, 0, 0)],
        [(0.0, 7, 10, 0), (5.0, 7, 10, 0)],
        [(0.0, 0, 10**6, 0), (1e-6, 10**6, 10**6, 10**12)],
    ],
)
def test_what_is_not_known_yet_is_not_shown(show: Show, heard: list[tuple[float, int, int, int]]) -> None:
    """Nothing was done yet, or by an earlier run, or in no time at all."""
    for unit in ("images", "bytes"):
        assert re.search(r"/s|left|-:|in 0|e\+| 0\.0", show(unit, 100, heard, "digits")) is None


def test_a_slow_bar_has_a_speed_too(show: Show) -> None:
    line = show("images", 120, [(0.0, 0, 100, 0), (40.0, 1, 100, 0), (25.0, 2, 100, 0)])
    assert re.search(r" 2/100 0\.0\d+ images/s ", line)
    assert [rate(speed) for speed in (0.0, 0.0312, 0.5, 9.96, 12.4, 1_234_567.0)] == [
        "0",
        "0.031",
        "0.5",
        "10",
        "12",
        "1,234,567",
    ]


def test_words_go_by_their_rank_and_a_long_name_loses_its_middle() -> None:
    words = [Words("now"), Words("first to go", 9), Words("later", 2), Words("also later", 2)]
    assert fit("name", words, 80) == ("name", ["now", "first to go", "later", "also later"], 40)
    name, shown, bar = fit("name", words, 40)
    assert (name, shown) == ("name", ["now", "later", "also later"])
    assert len(name) + 1 + bar + 1 + len(" ".join(shown)) == 40
    assert fit("name", words, 16)[1] == ["now"]
    assert fit("", words[:1], 20) == ("", ["now"], 16)
    assert shortened("abcdefghij", 7) == "ab…ghij"
    assert [clock(seconds) for seconds in (0, 59.6, 3_599, 100_000)] == ["0:00:00", "0:01:00", "0:59:59", "27:46:40"]


def test_an_error_before_the_first_step_leaves_no_line(capsys: pytest.CaptureFixture[str]) -> None:
    def failing() -> None:
        with progress_bar("images") as start:
            start("digits")
            raise InputError("no such folder")

    with pytest.raises(InputError):
        failing()
    assert capsys.readouterr() == ("", "")
