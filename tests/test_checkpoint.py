"""Checkpoints: exact round trips, whole files or none, and clear errors."""

from __future__ import annotations

import os
import sys

import pytest
import torch
from torch import nn

from variate import checkpoint
from variate._optional import MissingExtra
from variate.checkpoint import CheckpointError

safetensors_torch = pytest.importorskip("safetensors.torch")


def _model(width: int = 5) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2))


def _train(model, optimizer, steps):
    for step in steps:
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_round_trip(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "float": base,
        "transposed": base.T,
        "tied": base,
        "bf16": base.bfloat16(),
        "int": torch.tensor([2**62, -1]),
        "scalar": torch.tensor(3.0, requires_grad=True),
        "empty": torch.empty(0, 3),
    }
    metadata = {"epoch": 3, "lr": 1e-3, "history": [{"loss": 1.5}], "name": 'ä "quoted"'}
    checkpoint.save(tmp_path / "a.safetensors", tensors, metadata)
    loaded = checkpoint.load(tmp_path / "a.safetensors")
    assert loaded.metadata == metadata
    assert loaded.tensors.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert torch.equal(loaded.tensors[name], tensor)
    assert os.listdir(tmp_path) == ["a.safetensors"]


def test_equal_content_gives_equal_files(tmp_path):
    for name in "ab":
        checkpoint.save(tmp_path / name, {"x": torch.ones(3), "y": torch.zeros(2)}, {"epoch": 1, "seed": 2})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("optimizer_class", [torch.optim.Adam, torch.optim.SGD])
def test_resumed_training_equals_an_uninterrupted_one(tmp_path, optimizer_class):
    def fresh():
        model = _model()
        options = {"fused": True} if optimizer_class is torch.optim.Adam else {"momentum": 0.9}
        return model, optimizer_class(model.parameters(), lr=1e-2, **options)

    straight, optimizer = fresh()
    _train(straight, optimizer, range(10))

    first, optimizer = fresh()
    _train(first, optimizer, range(4))
    checkpoint.save(tmp_path / "c", checkpoint.pack(first, optimizer), {"step": 4})
    second, optimizer = fresh()
    tensors, metadata = checkpoint.load(tmp_path / "c")
    checkpoint.unpack(tensors, second, optimizer)
    _train(second, optimizer, range(metadata["step"], 10))
    for expected, got in zip(straight.parameters(), second.parameters(), strict=True):
        assert torch.equal(expected, got)


def test_a_write_that_fails_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "c"
    checkpoint.save(path, {"x": torch.ones(2)}, {"epoch": 1})

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        checkpoint.save(path, {"x": torch.zeros(2)}, {"epoch": 2})
    assert os.listdir(tmp_path) == ["c"]
    assert checkpoint.load(path).metadata == {"epoch": 1}


@pytest.mark.parametrize("kept", [0, 5, 9, 60, 0.5, 0.99])
def test_truncated(tmp_path, kept):
    path = tmp_path / "c"
    checkpoint.save(path, checkpoint.pack(_model(), torch.optim.SGD(_model().parameters())), {"epoch": 1})
    data = path.read_bytes()
    path.write_bytes(data[: kept if isinstance(kept, int) else int(kept * len(data))])
    with pytest.raises(CheckpointError, match=r"c is (truncated or damaged|not a safetensors file)"):
        checkpoint.load(path)


def test_cut_in_the_data_is_called_truncated(tmp_path):
    checkpoint.save(tmp_path / "c", {"x": torch.ones(100)}, {})
    data = (tmp_path / "c").read_bytes()
    (tmp_path / "c").write_bytes(data[:-1])
    with pytest.raises(CheckpointError, match="truncated or damaged"):
        checkpoint.load(tmp_path / "c")


def test_not_a_checkpoint(tmp_path):
    (tmp_path / "text").write_text("this is a text file, and a longer one than the header's eight bytes")
    with pytest.raises(CheckpointError, match="not a safetensors file"):
        checkpoint.load(tmp_path / "text")
    safetensors_torch.save_file({"x": torch.ones(2)}, tmp_path / "other")
    with pytest.raises(CheckpointError, match="not a checkpoint written by variate"):
        checkpoint.load(tmp_path / "other")
    with pytest.raises(FileNotFoundError):
        checkpoint.load(tmp_path / "absent")


def test_of_another_model(tmp_path):
    small, large = _model(5), _model(7)
    optimizer = torch.optim.Adam(small.parameters())
    _train(small, optimizer, range(1))
    tensors = checkpoint.pack(small, optimizer)
    before = [parameter.clone() for parameter in large.parameters()]
    with pytest.raises(
        CheckpointError, match=r"run.st is of another model: 0\.weight has shape \(5, 4\), here \(7, 4\)"
    ):
        checkpoint.unpack(tensors, large, torch.optim.Adam(large.parameters()), source="run.st")
    assert all(torch.equal(a, b) for a, b in zip(before, large.parameters(), strict=True))
    with pytest.raises(CheckpointError, match=r"weight is missing.*0\.weight is not in this model"):
        checkpoint.unpack(tensors, nn.Linear(4, 5))


def test_wrong_types(tmp_path):
    with pytest.raises(TypeError, match=r"tensors\['x'\]: expected a tensor, got float"):
        checkpoint.save(tmp_path / "c", {"x": 1.0}, {})
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path / "c", {}, {"x": torch.ones(2)})
    assert os.listdir(tmp_path) == []


def test_a_missing_package_gives_one_clear_line(tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "safetensors"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [])
    with pytest.raises(MissingExtra, match=r'safetensors is not installed: pip install "variate\[demo\]"'):
        checkpoint.save(tmp_path / "c", {}, {})


def test_a_flipped_bit_is_found(tmp_path):
    path = tmp_path / "c"
    checkpoint.save(path, {"a": torch.arange(1000.0), "b": torch.tensor(3)}, {"epoch": 1})
    data = bytearray(path.read_bytes())
    data[-100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoint.load(path)
