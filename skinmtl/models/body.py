"""What a network offers to the tasks whose heads it holds."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from skinmtl.models.decoders import DECODERS
from skinmtl.models.heads import Head


class MapHead(nn.Module):
    """A decoder and the convolution behind it: from feature maps to logits of every pixel."""

    def __init__(self, decoder: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.decoder, self.last = decoder, last

    def forward(self, features: Sequence[Tensor], mask: Tensor | None = None) -> Tensor:
        """(B, C, H, W) logits, from feature maps, the coarsest last."""
        logits: Tensor = self.last(self.decoder(features))
        return logits


@dataclass(frozen=True)
class Body:
    """The encoder that all tasks share, and the two ways from it to logits that a network's config chooses.

    Attributes:
        encoder: the encoder.
        channels: of its feature maps, the image's own first.
        arch: the name of the decoder.
        pooling: the head for a row of numbers, not connected.
    """

    encoder: nn.Module
    channels: Sequence[int]
    arch: str
    pooling: Head

    def decoder(self, outputs: int) -> MapHead:
        """A new decoder with a head of `outputs` logits for every pixel, called with all feature maps."""
        return MapHead(*DECODERS[self.arch].build(self.encoder, self.channels, outputs))

    def pooled(self, outputs: int) -> Head:
        """A new head of `outputs` logits for an image, called with the coarsest features."""
        head = copy.deepcopy(self.pooling)
        head.connect(self.channels[-1], outputs)
        return head


class Output(Protocol):
    """What a network has to know of a task, to hold its head; `skinmtl.tasks.base.Task` says more of each."""

    @property
    def name(self) -> str:
        """Its key in the logits."""

    @property
    def dense(self) -> bool:
        """Whether its logits are a map of the image."""

    @property
    def outputs(self) -> int:
        """How many logits, of an image or of each pixel."""

    def head(self, body: Body) -> nn.Module:
        """The head, called with all feature maps where it is dense, else with the coarsest; and with the mask."""

    def parts(self, head: nn.Module) -> Mapping[str, nn.Module]:
        """The head's modules, by the names under which the network keeps them."""
