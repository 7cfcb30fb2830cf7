"""What a rank of a run was given: all that its numbers, or the number of messages between ranks, depend on.

Machines may differ: in where shards and run folders are, in threads, in which of its devices each has. What is at those
locations is compared by its digests, and a device by its kind.
"""

from importlib.metadata import version
from typing import Any

import torch

from hjepa_shards import DataConfig, Mixture, manifest_at, place_of
from hjepa_shards.config import flatten
from hjepa_train.evaluation.online_probes import ProbePlan
from hjepa_train.training.config import RunConfig

ADVICE = (
    "start all ranks with the same configuration, arguments, shards and versions (data.root, data.cache, run.folder "
    "and numbers of threads may differ)"
)
_OF_A_MACHINE = ("data.root", "data.cache", "data.threads", "run.folder", "training.device", "training.threads")


def rank_facts(config: RunConfig, mixture: Mixture, device: torch.device, **arguments: Any) -> dict[str, Any]:
    """Each by the name that a user knows it by.

    config: with its defaults filled in.  arguments: of `train`, which are options on the command line.
    """
    content = config.model_dump(mode="json")
    sources = {one.entry_name: one.model_dump(mode="json", exclude={"entry"}) for one in config.data.sources}
    content["data"] |= {"sources": sources}
    return {
        **{key: value for key, value in flatten(content).items() if not key.startswith(_OF_A_MACHINE)},
        **{f"--{name.replace('_', '-')}": value for name, value in arguments.items()},
        **{
            f"shards of {entry.name}": f"{entry.num_samples} samples in order {entry.order_digest}"
            for entry in mixture.entries
        },
        **{f"content of {entry.name}": entry.content_digest for entry in mixture.entries},
        "training.device": device.type,
        "version of hjepa": version("hjepa"),
        "version of torch": torch.__version__,
    }


def probe_facts(data: DataConfig, plan: ProbePlan | None) -> dict[str, str]:
    """The content of what is probed, of which each rank encodes its share. InputError where it is not there.

    plan: None where nothing is probed.
    """
    splits = ("train", plan.split) if plan else ()
    return {
        f"content of {plan.source}/{split}": manifest_at(place_of(data.root, plan.source, split)).content_digest
        for split in splits
        if plan
    }
