"""Which parameters are trained, which of them decay, and by which share of the learning rate each learns.

Only matrices and kernels decay. Biases, norms, tokens, embeddings, tables of positions and layer scales do not: decay
would pull them to a meaning.
"""

from types import MethodType
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvNd  # pyright: ignore[reportPrivateUsage] the public name of any convolution

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone

_DECAYS = (nn.Linear, nn.Bilinear, _ConvNd)
_NEVER = (nn.Embedding, nn.EmbeddingBag)


def parameter_groups(module: nn.Module, *, layer_decay: float | None = None) -> list[dict[str, Any]]:
    """Groups for AdamW, of the parameters that want a gradient: those that decay, then the others.

    layer_decay: with it a pair of groups for each share of the learning rate ("lr_share"), the smallest first.
    """
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decaying = _ids_that_decay(module)
    shares = _lr_shares(module, layer_decay) if layer_decay is not None else {}
    of_share: dict[float, list[nn.Parameter]] = {}
    for _, parameter in trained:
        of_share.setdefault(shares.get(id(parameter), 1.0), []).append(parameter)
    groups: list[dict[str, Any]] = []
    for share in sorted(of_share):
        extra = {} if layer_decay is None else {"lr_share": share}
        matrices = [p for p in of_share[share] if id(p) in decaying]
        others = [p for p in of_share[share] if id(p) not in decaying]
        groups += [
            {"params": matrices, "decays": True, **extra},
            {"params": others, "decays": False, "weight_decay": 0.0, **extra},
        ]
    return groups


def freeze(module: nn.Module, names: tuple[str, ...]) -> None:
    """The parts of these dotted names get no gradient and stay in evaluation mode.

    A name is of a module or a parameter: backbone, backbone.patch_embed. InputError for one that does not exist or has
    nothing to train, naming those that do, and where nothing would be left.
    """
    for name in names:
        held = [p for own, p in module.named_parameters() if own == name or own.startswith(f"{name}.")]
        if not any(parameter.requires_grad for parameter in held):
            found = "a part that is not trained anyway" if held else "none"
            raise InputError(
                f"training.frozen: a trained part expected, {name}: {found} found; parts: "
                f"{', '.join(_parts_near(module, name))}"
            )
        for parameter in held:
            parameter.requires_grad_(False)
    if names and not any(parameter.requires_grad for parameter in module.parameters()):
        raise InputError(f"training.frozen: {', '.join(names)}: a part left to train expected, none found")
    for name, part in module.named_modules():
        if any(name == one or name.startswith(f"{one}.") for one in names):
            part.eval()
            part.train = MethodType(_stays_in_evaluation, part)


def _stays_in_evaluation(part: nn.Module, mode: bool = True) -> nn.Module:
    """In place of `train`: a part that learns nothing drops nothing, and its norms' moments stay."""
    del mode
    return nn.Module.train(part, False)


def _parts_near(module: nn.Module, name: str) -> list[str]:
    """Names of trained parts inside the deepest part that `name` gets right."""
    prefix, node = "", module
    for word in name.split("."):
        inner = dict(node.named_children()).get(word)
        if inner is None or not any(p.requires_grad for p in inner.parameters()):
            break
        prefix, node = f"{prefix}{word}.", inner
    names = [own.partition(".")[0] for own, p in node.named_parameters() if p.requires_grad]
    return [prefix + own for own in dict.fromkeys(names)]


def _ids_that_decay(module: nn.Module) -> set[int]:
    """Of the matrices of linear maps and the kernels of convolutions; a matrix that is an embedding too does not."""
    parts = list(module.modules())
    matrices = {id(part.weight) for part in parts if isinstance(part, _DECAYS)}
    return matrices - {id(part.weight) for part in parts if isinstance(part, _NEVER)}


def _lr_shares(module: nn.Module, decay: float) -> dict[int, float]:
    """id of a backbone's parameter -> its share of the learning rate; 1 for all that is not here (arXiv 2106.08254).

    Of L blocks, block i (from 0) has decay^(L - i), what comes before the first decay^(L + 1), what comes after the
    last 1. What is between blocks (downsampling) belongs to the one after it. A backbone registers its parts in the
    order in which it runs them.
    """
    shares: dict[int, float] = {}
    for backbone in (part for part in module.modules() if isinstance(part, Backbone)):
        blocks = backbone.block_list()
        number = {id(p): index for index, block in enumerate(blocks, start=1) for p in block.parameters()}
        reached = 0
        for parameter in backbone.parameters():
            if id(parameter) in number:
                reached = number[id(parameter)]
                layer = reached
            else:
                layer = reached + 1 if reached else 0
            shares[id(parameter)] = decay ** (len(blocks) + 1 - layer)
    return shares
