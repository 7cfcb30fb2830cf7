"""A full disk under TensorBoard, whose own thread writes: one error, at the next call or the last."""

import errno
import os
import threading
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_train.reports.run_log import RunLog

ROW = {"step": 1, "loss": 1.0, "images_per_s": 1.0, "data_wait": 0.0, "alarms": [], "sources": {}}


def log_in(folder: Path) -> RunLog:
    return RunLog(folder, num_steps=9, start=0, tensorboard=True, pixels=((0, 0, 0), (1, 1, 1)))


def write_until_it_is_known(log: RunLog) -> None:
    for _ in range(1000):
        log.write(ROW | {"sources": {"a": {"share": 0.5, "target": 0.5}}})


def test_a_full_disk_is_one_error_and_no_thread_prints_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from tensorboard.summary.writer.record_writer import RecordWriter

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = log_in(tmp_path)
    monkeypatch.setattr(RecordWriter, "write", full)
    before = log._thread_hook
    with pytest.raises(InputError, match=r"tensorboard: cannot be written: No space left on device; make room"):
        write_until_it_is_known(log)
    with pytest.raises(InputError, match="No space left"):
        log.close()
    assert threading.excepthook is before
    assert "Traceback" not in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "tensorboard").write_text("a file in its place")
    with pytest.raises(InputError, match="tensorboard: cannot be written"):
        log_in(tmp_path)
