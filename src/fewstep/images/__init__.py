"""Pictures given by the user: opened safely, upright, whatever their form, as PIL images and tensors.

`open_image` and `open_mask` are the one door: for image=, mask=, the pictures of ControlNets and
IP-Adapters, and those to train on. What they cannot keep, or had to guess, they say.
"""

from fewstep.images.arrays import Array, byte_tensor, image_to_tensor, mask_to_tensor
from fewstep.images.decode import FORMATS, MAX_PIXELS, SUFFIXES, OpenedImage
from fewstep.images.opening import PATH_KEY, open_image, open_mask
from fewstep.images.pixel_modes import FACTS_KEY

__all__ = [
    "FACTS_KEY", "FORMATS", "MAX_PIXELS", "PATH_KEY", "SUFFIXES", "Array", "OpenedImage", "byte_tensor",
    "image_to_tensor", "mask_to_tensor", "open_image", "open_mask",
]  # fmt: skip
