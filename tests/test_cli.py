"""The command line: what it prints, what it writes, how it resumes and how it refuses."""

from __future__ import annotations

import re
from dataclasses import asdict

import pytest
import torch

import variate
from variate import checkpoint
from variate.cli import chain, demo, diffusion, images, main, memory, report
from variate.cli.digits import Digits
from variate.cli.train import Settings

pytest.importorskip("matplotlib")
pytest.importorskip("rich")
pytest.importorskip("safetensors")

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def _train(out, *more):
    return main(["train", "vae", "--out", str(out), "--batch-size", "1000", *more])


def test_help(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(command in text for command in ("info", "train", "sample", "demo", "--cmakedir"))
    with pytest.raises(SystemExit) as ended:
        main(["train", "--help"])
    assert ended.value.code == 0
    assert "dynamic" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("flag", "expected"),
    [
        ("--version", lambda: f"variate {variate.__version__}"),
        ("--cmakedir", lambda: str(variate.cmake_dir())),
        ("--includedir", lambda: str(variate.include_dir())),
        ("--libdir", lambda: str(variate.lib_dir())),
    ],
)
def test_one_line_flags(capsys, flag, expected):
    assert main([flag]) == 0
    assert capsys.readouterr().out == expected() + "\n"


def test_info_says_which_op_runs_where(capsys):
    assert main(["info"]) == 0
    lines = capsys.readouterr().out.splitlines()
    text = "\n".join(lines)
    assert torch.__version__ in text and variate.build_info()["cpu_capability"] in text
    for op, places in variate.functional.backends().items():
        assert any(line.split() == [op, *" ".join(places.values()).split()] for line in lines)


def test_resumed_run_equals_a_straight_one(tmp_path, capsys):
    assert _train(tmp_path / "straight", "--epochs", "2") == 0
    straight = capsys.readouterr().out
    assert _train(tmp_path / "parts", "--epochs", "1") == 0
    assert _train(tmp_path / "parts", "--epochs", "2") == 0
    resumed = capsys.readouterr().out
    assert "after epoch 1" in resumed and "fixed" in straight and "dynamic" in straight
    last = [line for line in straight.splitlines() if line.startswith(("epoch   2", "test ELBO"))]
    assert len(last) == 2 and all(line in resumed for line in last)
    a, b = (checkpoint.load(tmp_path / name / "checkpoint.safetensors") for name in ("straight", "parts"))
    assert a.metadata == b.metadata
    assert a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    for name in ("samples.png", "reconstructions.png"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "parts" / name).read_bytes()
        assert (tmp_path / "parts" / name).read_bytes().startswith(PNG)
    assert sorted(p.name for p in (tmp_path / "parts").iterdir()) == [
        "checkpoint.safetensors",
        "reconstructions.png",
        "samples.png",
    ]
    history = a.metadata["history"]
    assert history[-1]["validation_elbo"] > history[0]["validation_elbo"]


@pytest.mark.parametrize(
    "command",
    [
        "hvae",
        "hvae --likelihood discretized_logistic",
        "vae --likelihood normal --free-bits 0.1",
        "vae --likelihood discretized_logistic_mixture",
        "vae --samples 3",
        "vae --samples 3 --estimator dreg",
    ],
)
def test_every_model_trains_and_resumes(tmp_path, capsys, command):
    arguments = ["train", *command.split(), "--out", str(tmp_path), "--batch-size", "2000"]
    assert main([*arguments, "--epochs", "1", "--log-likelihood-samples", "0"]) == 0
    assert "log p(x)" not in capsys.readouterr().out
    assert main([*arguments, "--epochs", "2", "--log-likelihood-samples", "2"]) == 0
    assert "after epoch 1" in (text := capsys.readouterr().out)
    assert re.search(r"test log p\(x\) -[\d.]+ nats \(2 samples per digit\)", text)
    assert (tmp_path / "samples.png").read_bytes().startswith(PNG)


def test_boltzmann_machine_trains_and_resumes(tmp_path, capsys):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    for out, epochs in ((whole, ("2",)), (parts, ("1", "2"))):
        for count in epochs:
            command = ["train", "rbm", "--out", str(out), "--batch-size", "2000", "--epochs", count]
            assert main(command) == 0
    text = capsys.readouterr().out
    assert len(re.findall(r"test log p\(x\) -[\d.]+ nats .* log Z [\d.]+ \+- [\d.]+", text)) == 3
    assert text.count("epoch   1 ") == 2  # not again after the resume
    a, b = (checkpoint.load(out / "checkpoint.safetensors").tensors for out in (whole, parts))
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)
    for name in ("filters.png", "samples.png"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert (parts / name).read_bytes().startswith(PNG)
    saved = (parts / "checkpoint.safetensors").read_bytes()
    for change, named in [
        ("--batch-size 1000", "batch_size 2000, here 1000"),
        ("--batch-size 2000 --lr 0.1", "lr 0.05, here 0.1"),
        ("--batch-size 2000 --seed 1", "another --seed"),
    ]:
        assert main(["train", "rbm", "--out", str(parts), "--epochs", "3", *change.split()]) == 1
        assert f"of another run ({named})" in capsys.readouterr().err
    assert (parts / "checkpoint.safetensors").read_bytes() == saved


def test_diffusion_trains_resumes_and_samples(tmp_path, capsys, monkeypatch):
    digits = diffusion._digits
    monkeypatch.setattr(diffusion, "_digits", lambda *where: tuple(t[:100] for t in digits(*where)))
    monkeypatch.setattr(diffusion, "_STEPS", 4)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    command = ["train", "diffusion", "--batch-size", "50"]
    for out, epochs in ((whole, ("2",)), (parts, ("1", "2"))):
        for count in epochs:
            assert main([*command, "--out", str(out), "--epochs", count]) == 0
    text = capsys.readouterr().out
    assert text.count("epoch   1 ") == 2 and "after epoch 1" in text  # not again after the resume
    assert len(re.findall(r"epoch   2   train loss [\d.]+   validation loss [\d.]+", text)) == 2
    a, b = (checkpoint.load(out / "checkpoint.safetensors") for out in (whole, parts))
    assert a.metadata == b.metadata and a.tensors.keys() == b.tensors.keys()
    assert all(torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors)
    for name in ("samples.png", "denoising.png"):
        assert (parts / name).read_bytes() == (whole / name).read_bytes()
        assert (parts / name).read_bytes().startswith(PNG)
    assert main([*command, "--out", str(parts), "--epochs", "3", "--prediction", "x0"]) == 1
    assert "of another run (prediction 'v', here 'x0')" in capsys.readouterr().err
    before = (parts / "samples.png").read_bytes()
    sampled = ["sample", "diffusion", "--run", str(parts), "--count", "12", "--steps", "3"]
    for more in ([], ["--scheduler", "ddim", "--label", "3", "--guidance", "2"]):
        assert main([*sampled, *more]) == 0
        assert (parts / "samples.png").read_bytes() != before
        before = (parts / "samples.png").read_bytes()
    for more, message in [
        (["--steps", "2000"], "steps: expected at most 1000"),
        (["--scheduler", "flow_euler"], "schedule: expected a FlowSchedule"),
    ]:
        assert main([*sampled, *more]) == 1
        assert message in capsys.readouterr().err
    assert main(["sample", "diffusion", "--run", str(tmp_path / "none")]) == 1
    checkpoint.save(whole / "checkpoint.safetensors", {}, {"settings": {}})
    assert main(["sample", "diffusion", "--run", str(whole)]) == 1
    assert "is of another model" in capsys.readouterr().err


def test_refuses_settings_that_exclude_each_other(tmp_path, capsys):
    for command, message in [
        ("rbm --beta 2", "--beta: rbm does not take it"),
        ("rbm --likelihood normal", "--likelihood: rbm does not take it"),
        ("diffusion --beta 2", "--beta: diffusion does not take it"),
        ("vae --prediction v", "--prediction: vae does not take it"),
        ("rbm --log-likelihood-samples 5", "--log-likelihood-samples: rbm does not take it"),
        ("vae --estimator dreg --beta 2", "beta: expected it to be left alone with estimator='dreg'"),
        ("vae --estimator vimco", "samples: expected at least 2"),
        ("hvae --samples 2", "only vae takes them"),
    ]:
        assert main(["train", *command.split(), "--out", str(tmp_path / "run")]) == 1
        assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_refuses_a_checkpoint_that_does_not_fit(tmp_path, capsys):
    out = tmp_path / "run"
    path = out / "checkpoint.safetensors"
    assert _train(out, "--epochs", "1") == 0
    whole = path.read_bytes()
    assert _train(out, "--epochs", "2", "--beta", "2") == 1
    assert "another run (beta 1.0, here 2.0)" in capsys.readouterr().err
    path.write_bytes(whole[:1000])
    assert _train(out, "--epochs", "2") == 1
    assert "truncated or damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole[:1000]
    tensors, metadata = {"model.w": torch.ones(2)}, {"settings": {}, "history": []}
    metadata["settings"] = asdict(Settings(batch_size=1000))
    checkpoint.save(path, tensors, metadata)
    assert _train(out, "--epochs", "2") == 1
    assert "of another model" in capsys.readouterr().err
    checkpoint.save(path, tensors, {"unrelated": True})
    assert _train(out, "--epochs", "2") == 1
    assert "of another run" in capsys.readouterr().err


def test_refuses_bad_arguments(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert _train(tmp_path / "file") == 1
    assert _train(tmp_path / "run", "--device", "nonsense") == 1
    if not torch.cuda.is_available():
        assert _train(tmp_path / "run", "--device", "cuda") == 1
        assert "no CUDA device" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    for bad in [
        "--epochs 0",
        "--batch-size -1",
        "--lr 0",
        "--lr nan",
        "--beta -1",
        "--free-bits inf",
        "--seed x",
    ]:
        with pytest.raises(SystemExit) as ended:
            _train(tmp_path / "run", *bad.split())
        assert ended.value.code == 2
        assert bad.split()[0] in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, capsys):
    assert _train(tmp_path, "--epochs", "3", "--lr", "1e30") == 1
    assert "smaller --lr" in capsys.readouterr().err
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_digits_depend_on_the_seed_and_the_epoch_alone():
    one, two = Digits(3), Digits(3)
    first, again, later = one.epoch(0, 128), two.epoch(0, 128), one.epoch(1, 128)
    assert len(first) == 63 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], later[0])
    assert set(first[0].unique().tolist()) == {0.0, 1.0}
    assert torch.equal(Digits(3).fixed("test"), Digits(4).fixed("test"))
    assert not torch.equal(one.fixed("test"), one.fixed("validation"))


def test_equal_noise_gives_equal_losses():
    assert demo.agreement(seed=1, steps=50) <= 1e-5


def test_a_lattice_is_sampled_beside_the_exact_curve(tmp_path, capsys):
    command = ["sample", "ising", "--size", "64", "--temperatures", "3", "--burn-in", "300", "--sweeps", "200"]
    assert main([*command, "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "flips per nanosecond" in text and (tmp_path / "ising.png").read_bytes().startswith(PNG)
    cold = next(line for line in text.splitlines() if "1.5000" in line)
    found, exact, energy = (float(x) for x in re.findall(r"-?\d\.\d{4}", cold)[1:])
    # At 1.5 a lattice of 64 has |m| to 2e-4 and the energy to 5e-4 from 200 sweeps; ten times that is allowed.
    assert exact == 0.9865 and abs(found - exact) < 2e-3 and abs(energy + 1.9511) < 5e-3


def test_refuses_lattices_that_are_not(tmp_path, capsys):
    assert main(["sample", "ising", "--size", "63", "--out", str(tmp_path)]) == 1
    assert "--size: expected an even number" in capsys.readouterr().err
    assert main(["sample", "ising", "--device", "nonsense", "--out", str(tmp_path)]) == 1
    assert "--device: 'nonsense' is no device" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["sample", "potts"])


def test_demo(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "measure", lambda name, threads: (100.0, 10.0))
    monkeypatch.setattr(demo, "_BETAS", 20)
    monkeypatch.setattr(chain, "_REPEATS", 1)
    monkeypatch.setattr(demo, "_ELBO_TOLERANCE", 0.05)  # the demo's own is for models that have settled
    assert main(["demo", "--epochs", "2", "--out", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert "stock PyTorch" in text and "variate" in text and "ms per step" in text and "fixed" in text
    assert "two layers" in text and "log p(x)" in text and "Boltzmann" in text
    page = (tmp_path / "report.html").read_text()
    assert "denoiser" in text and "samples after 100 steps" in text
    assert page.count("data:image/png;base64,") == 10 and page.count("<svg") == 1
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", page)  # nothing is fetched
    assert "<script" not in page


def test_demo_fails_loudly(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(demo, "measure", lambda name, threads: (100.0, 10.0))
    monkeypatch.setattr(demo, "_BETAS", 20)
    monkeypatch.setattr(chain, "_REPEATS", 1)
    monkeypatch.setattr(demo, "agreement", lambda seed: float("inf"))
    assert main(["demo", "--epochs", "1", "--out", str(tmp_path)]) == 1
    streams = capsys.readouterr()
    assert "FAIL" in streams.out and "stock and fused disagree" in streams.err
    assert "failed" in (tmp_path / "report.html").read_text()


def test_peak_memory_is_measured_in_a_fresh_process():
    peak, growth = memory.measure("fused", threads=1)
    assert 50 < peak < 5000 and 0 < growth < peak


def test_grid():
    pictures = torch.arange(6.0).div(5).view(6, 1, 1).expand(6, 3, 3)
    picture = images.grid(pictures, columns=4, gap=1)
    assert picture.shape == (7, 15)
    assert picture[0, 0] == 0 and picture[4, 4] == 255 and picture[0, 3] == 128
    assert images.png(picture).startswith(PNG)


def test_report_escapes():
    page = report.page("a < b", "x & y", [report.table(["<h>"], [["<script>"]])])
    assert "<script>" not in page and "a &lt; b" in page and "x &amp; y" in page
