"""Importing torchvision beside a CPU build of torch.

torchvision's wheel is built for CUDA: beside the CPU torch its compiled operators cannot be loaded, and ``import
torchvision`` fails because two operators that it extends do not exist. Declaring their schemas first is enough for
data sets, transforms and classification models, none of which calls them. Where the operators can be loaded nothing
is declared. All other modules import torchvision from here, and only in the functions that need it: the import takes
as long as PyTorch's own, which a worker that trains one of our models need not wait for.
"""

import importlib.util
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, FileFinder

import torch

SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}


def _load_compiled_operators() -> bool:
    """Load the library that torchvision itself would load; return whether that worked."""
    package = importlib.util.find_spec("torchvision")
    if package is None or not package.submodule_search_locations:
        raise ImportError("torchvision is not installed")
    finder = FileFinder(package.submodule_search_locations[0], (ExtensionFileLoader, EXTENSION_SUFFIXES))
    library = finder.find_spec("_C")
    if library is None or library.origin is None:
        return False
    try:
        torch.ops.load_library(library.origin)
    except OSError:  # built for another torch
        return False
    return True


def _declare_missing_operators() -> torch.library.Library | None:
    """Declare the operators without which the import fails. They live as long as the returned library."""
    if _load_compiled_operators():
        return None
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name, schema in SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)
    return library


_OPERATORS = _declare_missing_operators()

import torchvision  # noqa: E402  (only now can it be imported)

__all__ = ["torchvision"]
