"""Run by a Python that has DALI: every sample of the tars in a folder as `<sha256 of the image> <text of the .cls>`."""

import hashlib
import sys
from pathlib import Path

from nvidia.dali import fn, pipeline_def

FOLDER, IMAGE, SECOND = Path(sys.argv[1]), sys.argv[2], sys.argv[3]


@pipeline_def(batch_size=1, num_threads=1, device_id=None)
def pipeline():
    paths = sorted(str(path) for path in FOLDER.glob("*.tar"))
    extensions = [IMAGE] + [SECOND] * (SECOND != "-")
    members = fn.readers.webdataset(paths=paths, ext=extensions, missing_component_behavior="error", name="reader")
    return tuple(members) if isinstance(members, (list, tuple)) else members


made = pipeline()
made.build()
for _ in range(made.epoch_size("reader")):
    image, *rest = (bytes(output.at(0)) for output in made.run())
    print(hashlib.sha256(image).hexdigest(), rest[0].hex() if rest else "-")
