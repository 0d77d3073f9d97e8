"""Two parts of processors that transformers has with torchvision only, for images and with Pillow and torch alone.

Under their own names, so that what they save is what transformers reads.
"""

from collections.abc import Mapping
from typing import Any

import torch
from PIL.Image import Resampling
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoImageProcessor, Molmo2Config, ProcessorMixin
from transformers.image_utils import SizeDict
from transformers.models.molmo2.image_processing_molmo2 import Molmo2ImageProcessor as _Molmo2ImageProcessor


class PixtralProcessor(ProcessorMixin):
    """Text and images of Mistral 3: every image row's tokens end in a break token, the last row's in an end token.

    Transformers' class asks for torchvision because its module imports a function from the torchvision half of the
    image processor, which has a Pillow half too.
    """

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        patch_size: int = 16,
        spatial_merge_size: int = 1,
        chat_template: str | None = None,
        image_token: str = "[IMG]",
        image_break_token: str = "[IMG_BREAK]",
        image_end_token: str = "[IMG_END]",
        **_: Any,
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)
        self.patch_size = patch_size
        self.spatial_merge_size = spatial_merge_size
        self.image_token, self.image_break_token, self.image_end_token = image_token, image_break_token, image_end_token
        self.image_token_ids = tokenizer.convert_tokens_to_ids([image_token, image_break_token, image_end_token])
        self.image_token_id = self.image_token_ids[0]

    @property
    def _side(self) -> int:
        """Of the square that one token stands for, pixels."""
        return self.patch_size * self.spatial_merge_size

    def _process_images(self, images: Any, **kwargs: Any) -> Any:
        return super()._process_images(images, **kwargs | {"patch_size": self._side})

    def replace_image_token(self, image_inputs: Mapping[str, Any], image_idx: int, **_: Any) -> str:
        """What stands in a prompt for an image."""
        height, width = (int(side) // self._side for side in image_inputs["image_sizes"][image_idx])
        rows = [self.image_token * width] * height
        return self.image_break_token.join(rows) + self.image_end_token

    @property
    def model_input_names(self) -> list[str]:
        """Of the tensors that a call returns."""
        return [*self.tokenizer.model_input_names, *self.image_processor.model_input_names, "image_sizes"]


class Molmo2ImageProcessor(_Molmo2ImageProcessor):
    """Transformers' own, which asks torchvision for two functions: one is torch's own, the other is two operations."""

    def resize(self, image: Tensor, size: SizeDict, resample: Any = None, antialias: bool = True, **_: Any) -> Tensor:
        """Raises ValueError for another filter than bilinear and bicubic."""
        modes = {None: "bilinear", Resampling.BILINEAR: "bilinear", Resampling.BICUBIC: "bicubic"}
        if resample not in modes:
            raise ValueError(f"resample is {resample!r}; images of Molmo 2 are resized bilinearly or bicubically")
        height_width: Any = (size.height, size.width)
        if image.shape[-2:] == height_width:
            return image
        return F.interpolate(image, height_width, mode=modes[resample], align_corners=False, antialias=antialias)

    def normalize(self, image: Tensor, mean: Any, std: Any, **_: Any) -> Tensor:  # type: ignore[override]
        """Channels first; ``mean`` and ``std`` are of each channel."""
        channels = [torch.as_tensor(value, dtype=image.dtype).view(-1, 1, 1) for value in (mean, std)]
        return (image - channels[0]) / channels[1]


# For both, since a class that is missing may not stay registered beside another.
_BACKENDS: dict[str, type] = dict.fromkeys(("pil", "torchvision"), Molmo2ImageProcessor)
AutoImageProcessor.register(Molmo2Config, image_processor_classes=_BACKENDS, exist_ok=True)
