"""Feature maps to a mask's logits: the decoders by the name of their architecture, and the mask head behind each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from segmentation_models_pytorch.base import SegmentationHead, modules
from segmentation_models_pytorch.base.initialization import initialize_decoder, initialize_head
from segmentation_models_pytorch.decoders.deeplabv3.decoder import ASPP, DeepLabV3Decoder, DeepLabV3PlusDecoder
from segmentation_models_pytorch.decoders.fpn.decoder import FPNDecoder
from segmentation_models_pytorch.decoders.unet.decoder import UnetDecoder
from segmentation_models_pytorch.decoders.unetplusplus.decoder import UnetPlusPlusDecoder
from segmentation_models_pytorch.encoders.vgg import VGGEncoder
from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (256, 128, 64, 32, 16)  # channels of a U-Net's blocks, the coarsest first; fewer blocks take the last ones
PYRAMID = 256  # channels of DeepLab's pyramids
DROPOUT = 0.5  # behind them, as smp has it


@dataclass(frozen=True)
class Decoder:
    """How a mask comes out of an encoder's feature maps.

    Attributes:
        make: the decoder for the channels of an encoder's feature maps, the image's first; and whether two
            convolutions come before it, as smp has them in U-Nets after VGG, whose features end with a pooling.
        channels: of the map that it gives.
        multiple: number of pixels that both sides of an image have to be divisible by.
        upsampling: how many times larger the image is than that map.
        kernel: side of the mask head's convolution.
        stride: how many times smaller the encoder's coarsest map has to be; one finer than 32 is reached by dilation.
        drawn_anew: whether its first weights follow smp's rules instead of torch's.
    """

    make: Callable[[Sequence[int], bool], nn.Module]
    channels: int
    multiple: int
    upsampling: int = 1
    kernel: int = 3
    stride: int = 32
    drawn_anew: bool = True

    def build(self, encoder: nn.Module, channels: Sequence[int], classes: int) -> tuple[nn.Module, nn.Module]:
        """Decoder and mask head for an encoder and the channels of its feature maps, drawn as smp draws them."""
        decoder = self.make(channels, isinstance(encoder, VGGEncoder))
        head: nn.Module = SegmentationHead(self.channels, classes, self.kernel, upsampling=self.upsampling)
        if self.drawn_anew:
            initialize_decoder(decoder)
            initialize_head(head)
        return decoder, head


class AtrousUnet(nn.Module):
    """A U-Net's decoder whose coarsest features pass through DeepLabV3's atrous pyramid first.

    Ronneberger et al. 2015, arXiv:1505.04597; Chen et al. 2017, arXiv:1706.05587, whose rates of 6, 12 and 18 at
    stride 16 are 3, 6 and 9 at the stride of 32 that the features have here. The branch that pools the image to
    one pixel is normalised over groups of channels (Wu and He 2018, arXiv:1803.08494): over the batch it would have one
    value a channel where a batch is one image, and in small batches statistics of a few.
    """

    def __init__(self, channels: Sequence[int], rates: tuple[int, int, int] = (3, 6, 9)) -> None:
        super().__init__()
        self.pyramid = ASPP(channels[-1], PYRAMID, rates, separable=False, dropout=DROPOUT)
        pooling = self.pyramid.convs[-1]  # pool, convolution, normalisation, activation
        pooling[2] = nn.GroupNorm(32, PYRAMID)
        self.unet = _unet([*channels[:-1], PYRAMID])

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 16, H, W) from feature maps, the image first."""
        refined: Tensor = self.unet([*features[:-1], self.pyramid(features[-1])])
        return refined


class Upsampling(nn.Module):
    """The coarsest features alone, doubled and convolved up to the image's size: no skip connection.

    The encoder is all that a mask then shares with a diagnosis.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        widths = [channels[-1], *(max(WIDTHS[-1], width) for width in reversed(channels[1:-1])), WIDTHS[-1]]
        pairs = zip(widths, widths[1:], strict=False)
        self.blocks = nn.ModuleList(modules.Conv2dReLU(*pair, kernel_size=3, padding=1) for pair in pairs)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """(B, 16, H, W) from feature maps, the image first."""
        x = features[-1]
        for block, finer in zip(self.blocks, reversed(features[:-1]), strict=True):
            x = block(F.interpolate(x, finer.shape[2:], mode="nearest"))
        return x


def _unet(channels: Sequence[int], center: bool = False) -> nn.Module:
    depth = len(channels) - 1
    decoder: nn.Module = UnetDecoder(channels, WIDTHS[-depth:], depth, add_center_block=center)
    return decoder


def _unetplusplus(channels: Sequence[int], center: bool) -> nn.Module:
    depth = len(channels) - 1
    decoder: nn.Module = UnetPlusPlusDecoder(channels, WIDTHS[-depth:], depth, center=center)
    return decoder


def _deeplabv3plus(channels: Sequence[int], center: bool) -> nn.Module:
    decoder: nn.Module = DeepLabV3PlusDecoder(channels, 5, PYRAMID, (12, 24, 36), 16, True, DROPOUT)
    return decoder


def _deeplabv3(channels: Sequence[int], center: bool) -> nn.Module:
    decoder: nn.Module = DeepLabV3Decoder(channels[-1], PYRAMID, (12, 24, 36), False, DROPOUT)
    return decoder


# One line widens the choice, beside the name in the hint of MultiTaskNet's `arch`.
DECODERS = {
    "unet": Decoder(_unet, 16, multiple=1),
    "deeplabv3plus": Decoder(_deeplabv3plus, PYRAMID, multiple=16, upsampling=4, kernel=1, stride=16, drawn_anew=False),
    "deeplabv3": Decoder(_deeplabv3, PYRAMID, multiple=8, upsampling=8, kernel=1, stride=8, drawn_anew=False),
    "unetplusplus": Decoder(_unetplusplus, 16, multiple=32),
    "fpn": Decoder(lambda channels, _: FPNDecoder(list(channels)), 128, multiple=32, upsampling=4, kernel=1),
    "resnet_unet_deeplab": Decoder(lambda channels, _: AtrousUnet(channels), 16, multiple=1),
    "upsample": Decoder(lambda channels, _: Upsampling(channels), 16, multiple=1),
}
