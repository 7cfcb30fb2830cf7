"""Folders for copies that a later process finds again, below the system's folder for temporary files.

Their names can be guessed, and everybody may write there: a folder of another user could hold anything.
"""

import os
import stat
import tempfile
from pathlib import Path

from hjepa_shards.errors import InputError


def scratch_folder(name: str) -> Path:
    """A folder of this user alone, below HJEPA_SCRATCH or the system's folder for temporary files; made if need be.

    InputError where it cannot be made, or where another user's folder or a link stands.
    """
    folder = Path(os.environ.get("HJEPA_SCRATCH") or tempfile.gettempdir()) / name
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise InputError(
            f"{folder}: a folder for copies cannot be made: {error.strerror or error}; name another place in "
            "HJEPA_SCRATCH"
        ) from error
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid():
        raise InputError(
            f"{folder}: a folder of your own expected, a link or another user's found; name another place in "
            "HJEPA_SCRATCH"
        )
    return folder
