"""The base of the networks in `NETWORKS`: each remembers how it was made, so that a checkpoint can say it."""

import inspect
from typing import Any, Self

from torch import nn


class Network(nn.Module):
    """A network F(x, c_noise, label) that is built as `Network(shape, *, classes=0, heads=1, **options)`.

    Attributes:
        options: The options that it was given, by name, without `shape`, `classes` and `heads`.
    """

    options: dict[str, Any]

    def __new__(cls, *args: Any, **options: Any) -> Self:
        net = super().__new__(cls)
        given = inspect.signature(cls.__init__).bind_partial(net, *args, **options).arguments
        known = {key: value for key, value in given.items() if key not in ("self", "shape", "classes", "heads")}
        net.__dict__["options"] = known
        return net
