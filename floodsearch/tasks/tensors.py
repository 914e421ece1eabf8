"""Tensors from what people have: lists, arrays, and data sets of samples with a label each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset


def tensor_of(values: Any, what: str) -> Tensor:
    """Return a tensor (n, ...) as it is, and an array or nested lists as a tensor of their values.

    Args:
        values: numbers of Python are taken as torch's float or as int64, arrays keep their type.
        what: these are, for the message.

    Raises:
        ValueError: if that is none of these.
    """
    if isinstance(values, Tensor) and values.ndim:
        return values
    if isinstance(values, Mapping | str) or not hasattr(values, "__len__"):
        raise ValueError(
            f"{what} must be a tensor, an array or a list, but are a {type(values).__name__}; put them into "
            "one tensor, or let inputs be row numbers from which `prepare` makes what the model takes"
        )
    try:
        if hasattr(values, "__array__") and not isinstance(values, Tensor):
            return torch.from_numpy(np.array(values))  # a copy: the array stays the user's own
        tensors = [torch.as_tensor(value) for value in values]
        return torch.stack(tensors) if tensors else torch.empty(0)
    except (ValueError, TypeError, RuntimeError) as error:
        raise ValueError(f"{what} do not fit into one tensor: {str(error).splitlines()[0]}") from None


def samples_of(part: Any, what: str) -> tuple[Any, ...]:
    """Return inputs and labels of a pair, or of (input, label) samples.

    Args:
        part: inputs and labels, or a list of samples, or a data set of torch with a length.
        what: it is, for the message.

    Raises:
        ValueError: if that is none of these.
    """
    if isinstance(part, TensorDataset):
        part = part.tensors
    elif _has_samples(part):
        part = tuple(zip(*(part[row] for row in range(len(part))), strict=True))
        if not part:
            raise ValueError(f"{what} has no samples")
    if isinstance(part, tuple | list) and len(part) in (2, 3):
        return tuple(part)
    instead = "; give its data set" if isinstance(part, DataLoader) else ""
    raise ValueError(
        f"{what} must be a Split, a data set of (input, label) samples or a pair (inputs, labels), "
        f"but is a {type(part).__name__}{instead}"
    )


def _has_samples(part: Any) -> bool:
    if isinstance(part, list):
        return all(isinstance(sample, tuple) for sample in part)
    return isinstance(part, Dataset) and not isinstance(part, IterableDataset) and hasattr(part, "__len__")
