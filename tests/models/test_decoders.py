"""Decoders: those of smp bit by bit; what the atrous pyramid and the plain up-sampling look at."""

from __future__ import annotations

import pytest
import segmentation_models_pytorch as smp
import torch
from kinds import outputs
from torch import Tensor, nn

from skinmtl.models.decoders import DECODERS, AtrousUnet, Upsampling
from skinmtl.models.multitask_net import MultiTaskNet

OF_SMP = {
    "unet": smp.Unet,
    "deeplabv3plus": smp.DeepLabV3Plus,
    "deeplabv3": smp.DeepLabV3,
    "unetplusplus": smp.UnetPlusPlus,
    "fpn": smp.FPN,
}


def own(seed: int, arch: str, encoder: str) -> nn.Module:
    torch.manual_seed(seed)
    return MultiTaskNet(arch, encoder, outputs=outputs(["seg"]), size=(64, 64))  # type: ignore[arg-type]


@pytest.mark.parametrize("arch", OF_SMP)
def test_a_decoder_of_smp_is_built_as_smp_builds_it_to_the_bit(arch: str) -> None:
    torch.manual_seed(3)
    model = OF_SMP[arch]("resnet18", encoder_weights=None, classes=1).eval()
    network = own(3, arch, "resnet18").eval()
    expected = {name.replace("segmentation_head", "mask_head"): tensor for name, tensor in model.state_dict().items()}
    found = network.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    image = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    logits = network(image)["seg"]
    assert torch.equal(logits, model((image - network.mean) / network.std))
    nn.init.xavier_uniform_(model.segmentation_head[0].weight)  # the control: another draw is another network
    assert not torch.equal(found["mask_head.0.weight"], expected["mask_head.0.weight"])
    assert not torch.equal(logits, model((image - network.mean) / network.std))


@pytest.mark.parametrize("arch", ["unet", "unetplusplus"])
def test_after_vgg_two_convolutions_come_before_the_decoder_as_in_smp(arch: str) -> None:
    with torch.device("meta"):  # names and shapes alone
        model = OF_SMP[arch]("vgg11", encoder_weights=None)
        decoder, _ = DECODERS[arch].build(model.encoder, model.encoder.out_channels, 1)
        other, _ = DECODERS[arch].build(nn.Identity(), model.encoder.out_channels, 1)
    shapes = {name: tensor.shape for name, tensor in model.decoder.state_dict().items()}
    assert {name: tensor.shape for name, tensor in decoder.state_dict().items()} == shapes
    assert other.state_dict().keys() < shapes.keys()


def features_of(channels: list[int], side: int) -> list[Tensor]:
    """Feature maps of noise, each half the size of the one before."""
    torch.manual_seed(0)
    return [torch.randn(1, c, side >> i, side >> i, requires_grad=True) for i, c in enumerate(channels)]


def reach(decoder: nn.Module, features: list[Tensor]) -> list[Tensor | None]:
    """How the top left pixel of a decoder's map moves with each place of each feature map."""
    corner = decoder.eval()(features)[..., 0, 0].sum()
    return list(torch.autograd.grad(corner, features, allow_unused=True))


def test_through_the_pyramid_a_pixel_sees_the_whole_image() -> None:
    channels = [3, 8, 8]
    features = features_of(channels, 64)  # the coarsest 16 x 16
    near, far = (reach(make, features)[-1] for make in (DECODERS["unet"].make(channels, False), AtrousUnet(channels)))
    assert near is not None and far is not None
    assert near[..., -1, -1].abs().max() == 0, "the control: a U-Net's own convolutions do not reach that far"
    assert far[..., -1, -1].abs().max() > 0


def test_the_pyramid_trains_on_a_batch_of_one_image() -> None:
    image = torch.zeros(1, 3, 64, 64, dtype=torch.uint8)
    own(0, "resnet_unet_deeplab", "resnet18")(image)["seg"].mean().backward()
    with pytest.raises(ValueError, match="more than 1 value per channel"):  # the control: smp's pyramid as it is
        own(0, "deeplabv3", "resnet18")(image)


def test_up_sampling_has_no_skip_connection() -> None:
    channels = [3, 4, 6, 8]
    features = features_of(channels, 32)
    _, *finer, coarsest = reach(Upsampling(channels), features)
    assert all(gradient is None for gradient in finer) and coarsest is not None and coarsest.abs().max() > 0
    _, *finer, coarsest = reach(DECODERS["unet"].make(channels, False), features)
    assert all(gradient is not None and gradient.abs().max() > 0 for gradient in [*finer, coarsest]), "the control"


def test_up_sampling_comes_back_to_odd_sizes() -> None:
    features = [torch.zeros(2, c, *side) for c, side in zip([3, 4, 6], [(47, 94), (23, 47), (11, 23)], strict=True)]
    assert Upsampling([3, 4, 6])(features).shape == (2, 16, 47, 94)
