"""Lightning's Trainer and a MixtureDataset: what was trained on, and where a checkpoint continues.

Lightning fetches a batch ahead where it does not know how long an epoch is, can skip one that it fetched, and saves a
StatefulDataLoader's state as of what it fetched. The callback sees each batch after its step, so none of that counts.
"""

import importlib
import importlib.util
import sys
from typing import Any

from hjepa_shards.errors import InputError
from hjepa_train.data.torch_dataset import MixtureDataset


def lightning_callback(dataset: MixtureDataset) -> Any:
    """For `Trainer(callbacks=[lightning_callback(dataset)])`, with the dataset that the training loader has.

    Each epoch, `fit` and resumed run continues after the batch that was trained on last, whatever bounds an epoch and
    with any number of workers; checkpoints hold the dataset's state. InputError where Lightning is not installed.
    """

    class MixtureCallback(_callback_class()):
        @property
        def state_key(self) -> str:
            return "hjepa_train.MixtureDataset"

        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
            dataset.position.always_told()

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            dataset.after(batch)

        def state_dict(self) -> dict[str, Any]:
            return dataset.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            dataset.load_state_dict(state_dict)
            dataset.position.pin()

    return MixtureCallback()


def _callback_class() -> Any:
    """Of the package in use: it is published under two names."""
    names = ["lightning.pytorch", "pytorch_lightning"]
    for name in sorted(names, key=lambda name: name not in sys.modules):
        if importlib.util.find_spec(name.partition(".")[0]):
            return importlib.import_module(name).Callback
    raise InputError("lightning_callback: Lightning expected, not installed; pip install lightning")
