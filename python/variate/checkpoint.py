"""Checkpoints: named tensors and JSON metadata in one safetensors file. No pickle."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ._optional import require

__all__ = ["Checkpoint", "CheckpointError", "load", "pack", "save", "unpack", "write_whole"]

_FORMAT = "variate-checkpoint-1"


class CheckpointError(ValueError):
    """The file is damaged, is no checkpoint, or belongs to another model."""


class Checkpoint(NamedTuple):
    """What :func:`load` returns: tensors by name, on the CPU, and the metadata."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]


def write_whole(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file whole or not at all: readers, and a crash, see the old file or the new one."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")  # same folder, so that the rename is atomic
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # the rename itself must survive a power cut
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Save named tensors and JSON metadata, whole or not at all.

    Args:
        path: the file; its folder must exist.
        tensors: any dtype that safetensors has, on any device; tied tensors are written once each.
        metadata: what ``json`` can write.

    Raises:
        TypeError: a value is not a tensor, or the metadata is not JSON.
    """
    for name, tensor in tensors.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"tensors[{name!r}]: expected a tensor, got {type(tensor).__name__}")
    text = json.dumps(dict(metadata))
    plain = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    record = {"metadata": dict(metadata), "sha256": _checksum(plain, text)}
    data = require("safetensors.torch").save(plain, metadata={_FORMAT: json.dumps(record)})
    write_whole(path, data)


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Load what :func:`save` wrote.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is truncated or damaged, or is not a checkpoint of this package.
    """
    path = Path(path)
    with open(path, "rb") as file:  # FileNotFoundError and PermissionError speak for themselves
        looks_right = file.read(9)[8:] == b"{"
    safetensors = require("safetensors")
    try:
        with safetensors.safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except safetensors.SafetensorError as error:
        cause = "is truncated or damaged" if looks_right else "is not a safetensors file"
        raise CheckpointError(f"{path} {cause} ({error})") from None
    if _FORMAT not in header:
        raise CheckpointError(f"{path} is a safetensors file, but not a checkpoint written by variate")
    record = json.loads(header[_FORMAT])
    if record["sha256"] != _checksum(tensors, json.dumps(record["metadata"])):
        raise CheckpointError(f"{path} is damaged: its contents are not those that were written")
    return Checkpoint(tensors, record["metadata"])


def _checksum(tensors: Mapping[str, Tensor], text: str) -> str:
    """SHA-256 of the metadata and of every tensor's name, dtype, shape and bytes."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def changes(saved: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Which settings of a saved run are others here; empty if all are the same."""
    differing = [name for name in saved.keys() | here if saved.get(name) != here.get(name)]
    return ", ".join(f"{name} {saved.get(name)!r}, here {here.get(name)!r}" for name in sorted(differing))


def pack(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """``model.<name>``: the state dict; ``optimizer.<entry>.<name>``: the optimizer's state per parameter.

    Hyperparameters such as the learning rate are not state: they belong to whoever builds the optimizer.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for entry, value in optimizer.state.get(parameter, {}).items():
            if not isinstance(value, Tensor):
                raise TypeError(f"optimizer: expected tensors as state, got {type(value).__name__} for {entry!r}")
            tensors[f"optimizer.{entry}.{name}"] = value
    return tensors


def unpack(
    tensors: Mapping[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None = None,
    source: str | os.PathLike[str] = "checkpoint",
) -> None:
    """Put what :func:`pack` gave back into a model and its optimizer; all is checked before anything changes.

    Raises:
        CheckpointError: names or shapes are those of another model; ``source`` is what the message calls it.
    """
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    own = model.state_dict()
    problems = [f"{name} is missing" for name in own if name not in state]
    problems += [f"{name} is not in this model" for name in state if name not in own]
    problems += [
        f"{name} has shape {tuple(state[name].shape)}, here {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parameters = dict(model.named_parameters())
    slots: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if key.startswith("optimizer."):
            _, entry, name = key.split(".", 2)
            slots.setdefault(name, {})[entry] = tensor
            if name in parameters and tensor.dim() and tensor.shape != parameters[name].shape:
                problems.append(f"the optimizer's {entry} of {name} has shape {tuple(tensor.shape)}")
    if problems:
        more = f", and {len(problems) - 4} more" if len(problems) > 4 else ""
        raise CheckpointError(f"{source} is of another model: " + "; ".join(problems[:4]) + more)
    model.load_state_dict(state)
    if optimizer is not None:
        described = optimizer.state_dict()
        order = {parameter: name for name, parameter in parameters.items()}
        names = [order[parameter] for group in optimizer.param_groups for parameter in group["params"]]
        described["state"] = {index: slots[name] for index, name in enumerate(names) if name in slots}
        optimizer.load_state_dict(described)
