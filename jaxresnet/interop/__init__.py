"""Weights to and from others: `torch.py` maps PyTorch's state dicts to our variables and back, `weight_files.py`
converts .pth and .safetensors files and folders of this library into each other."""

from jaxresnet.interop.torch import from_torch, to_torch
from jaxresnet.interop.weight_files import convert

__all__ = ["convert", "from_torch", "to_torch"]
