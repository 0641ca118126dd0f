"""Networks from outside Dux behind Dux's interface; their classes are not changed."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from spaces import BadInput
from spaces.errors import brief, shown
from trainers.depths import own_function
from trainers.families.family import Network, Normalize
from trainers.families.taps import find_places

_OLD_NORMS = ("WeightNorm", "SpectralNorm")
"""PyTorch's hooks that compute a weight before each call."""


class OwnNetwork(Network):
    """A user's network, with normalisation in front of it and taps in it; otherwise as its author wrote it.

    Its ReLUs no longer compute in place, which changes no number: the values before them are features, too.
    """

    def __init__(
        self,
        network: nn.Module,
        image_shape: tuple[int, int, int],
        classes: int,
        *,
        called: str,
        taps: Iterable[str] | None = None,
        reordered: bool = False,
    ) -> None:
        """`network` itself is taken, not a copy; it is run once.

        Args:
            network: takes images (B, C, H, W) that are normalised, and puts out logits (B, classes).
            image_shape: (C, H, W) of the images.
            classes: how many there are.
            called: what the network is called in errors.
            taps: names of modules of `network` whose outputs are its features, from shallow to deep; left out, they are
                found (`find_taps`).
            reordered: whether its classes may come in another order than the data's (`set_order`).

        Raises:
            BadInput: it is no module, has no weights, does not take such images or does not put out a logit a class; or
                there is no module of a tap's name.
        """
        super().__init__()
        if not isinstance(network, nn.Module):
            raise BadInput(f"{called} must be a torch.nn.Module, but is {shown(network)}")
        if next(network.parameters(), None) is None:
            raise BadInput(f"{called} must have weights, but {type(network).__name__} has none")
        if extra := [name for name, value in network.state_dict().items() if not isinstance(value, Tensor)]:
            raise BadInput(f"{called} must have a state of tensors alone, but `{extra[0]}` is not one")
        names = None if taps is None else tuple(taps)
        modules = dict(network.named_modules())
        for name, module in modules.items():
            if any(type(hook).__name__ in _OLD_NORMS for hook in module._forward_pre_hooks.values()):
                raise BadInput(
                    f"{called} must have layers that can be copied, but `{name}` has torch.nn.utils.weight_norm or "
                    "spectral_norm; use those of torch.nn.utils.parametrizations, or remove_weight_norm before you save"
                )
        for name in names or ():
            if not name or name not in modules:
                raise BadInput(f"{called}: a tap must be the name of one of its modules, but got {shown(name)}")
        for module in network.modules():
            if isinstance(module, nn.ReLU):
                module.inplace = False
        c, h, w = image_shape
        try:
            places = find_places(network, image_shape, names)
        except Exception as error:  # a user's network may raise anything
            raise BadInput(
                f"{called} must take images (B, {c}, {h}, {w}), but {brief(error)}; try it in Python"
            ) from None
        if places.outputs != (2, classes):
            given = "no tensor" if places.outputs is None else f"{places.outputs}"
            raise BadInput(f"{called} must put out logits (B, {classes}), but puts out {given} for two images")
        self.called = called
        self.normalize = Normalize(c)
        self.network = network
        self.order: Tensor | None
        self.register_buffer("order", torch.arange(classes) if reordered else None)
        self.taps = tuple(f"network.{name}" for name in places.taps)
        self.activations = tuple(name and f"network.{name}" for name in places.activations)
        self.heads = tuple(f"network.{name}" for name in places.heads)

    def logits(self, images: Tensor) -> Tensor:
        """images: (B, C, H, W) in [0, 1]; returns logits (B, classes)."""
        logits = self.network(self.normalize(images))
        if not isinstance(logits, Tensor):  # in eval mode it was
            raise BadInput(
                f"{self.called} must put out logits in training, too, but puts out {type(logits).__name__}; turn its "
                "auxiliary outputs off"
            )
        return logits if self.order is None else logits[:, self.order]

    def set_order(self, order: Sequence[int]) -> None:
        """order: of each class of the data, which output of the network is its."""
        assert self.order is not None
        self.order.copy_(torch.tensor(order))


def own_network(reference: str, width: float, image_shape: tuple[int, int, int], classes: int) -> OwnNetwork:
    """The network made by the user's function `package.module:function`, always for real: on torch's `meta` device,
    constants that it computes would be lost.

    Args:
        reference: the function; it is called with the keyword arguments `width`, `num_classes` and `in_channels`.
        width: multiplies the network's channels, as the function interprets it.
        image_shape: (C, H, W).
        classes: number of logits.

    Raises:
        BadInput: there is no such function, or it does not return a network for such images and classes.
    """
    function = own_function(reference)
    with torch.device("cpu"):
        try:
            network = function(width=width, num_classes=classes, in_channels=image_shape[0])
        except (BadInput, KeyboardInterrupt):
            raise
        except BaseException as error:  # it may be a script that exits
            raise BadInput(
                f"`family: {reference}` must be a function(width, num_classes, in_channels) that runs, but "
                f"{brief(error)}; try it in Python"
            ) from None
        return OwnNetwork(network, image_shape, classes, called=f"what `{reference}` returns")
