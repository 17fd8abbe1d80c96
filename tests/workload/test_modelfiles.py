"""A trained model is written under the module's own names, and read again."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hiertrain.cli.main import main
from hiertrain.training.evaluation import accuracy, trained_model
from hiertrain.training.settings import training_settings
from hiertrain.training.single_process import train_on_one_process
from hiertrain.values import InputError
from hiertrain.workload.architectures import build_model
from hiertrain.workload.chain_model import chain_from_module
from hiertrain.workload.datasets import Dataset
from hiertrain.workload.modelfiles import WEIGHTS, load_model, save_model
from hiertrain.workload.spec import ModelSettings, Training
from hiertrain.workload.torchvision_ops import torchvision
from hiertrain.workload.weights import flatten_weights

LENET = ModelSettings(name="lenet5", sample_shape=(1, 32, 32))


def training_of(model: ModelSettings) -> Training:
    return Training(model=model, dataset="digits", batch_size=8, iterations=5, snapshot_every=5, data_folder="/data")


def small_data() -> Dataset:
    generator = torch.Generator().manual_seed(1)
    samples = torch.randint(256, (16, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(16) % 10
    return Dataset("small", 10, samples, labels, samples[:8], labels[:8])


@pytest.mark.parametrize(
    ("name", "options"),
    [("squeezenet1_1", {}), ("shufflenet_v2_x0_5", {}), ("googlenet", {"init_weights": False})],
    ids=["without buffers", "BatchNorm", "heads that only training uses"],
)
def test_the_plain_module_loads_what_was_trained(
    tmp_path: Path, name: str, options: dict[str, float | int | bool]
) -> None:
    data = small_data()
    spec = ModelSettings(name=name, sample_shape=data.sample_shape, options=options)
    training = training_settings(spec, data, 8, iterations=1, seed=1)
    model = trained_model(training, train_on_one_process(training, data).snapshots[1], data)
    path = save_model(model, training, tmp_path / "new" / WEIGHTS)
    plain = torchvision.models.get_model(name, num_classes=10, **options)
    tensors = load_file(path)
    assert {key: (value.shape, value.dtype) for key, value in tensors.items()} == {
        key: (value.shape, value.dtype) for key, value in plain.state_dict().items()
    }
    plain.load_state_dict(tensors, strict=True)
    again, settings, saved = load_model(tmp_path / "new")
    with torch.no_grad():
        wanted = model.eval()(data.test_samples)
        assert torch.equal(plain.eval()(data.test_samples / 255), wanted)
        assert torch.equal(again.eval()(data.test_samples), wanted)
    assert settings == training
    assert (saved.iterations, saved.statistics) == (1, True)


def test_tied_weights_are_there_under_both_names_and_other_buffers_are_not(tmp_path: Path) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.register_buffer("shift", torch.ones(4), persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(torch.relu(self.first(x.flatten(1)) + self.shift))

    module = Tied()
    model = chain_from_module(module, "tied", (1, 2, 2), 4)
    flatten_weights(model, range(1, model.chain.depth))  # as every worker does: then all share one storage
    with torch.no_grad():
        next(iter(model.parameters())).add_(1)
    tensors = load_file(save_model(model, training_of(LENET), tmp_path / WEIGHTS))
    assert tensors.keys() == module.state_dict().keys()
    module.load_state_dict(tensors, strict=True)
    samples = torch.randint(256, (3, 1, 2, 2), dtype=torch.uint8)
    assert torch.equal(module(samples / 255), model(samples))


def test_a_folder_may_have_the_name_of_a_file_of_weights(tmp_path: Path) -> None:
    folder = tmp_path / "first.safetensors"
    path = save_model(build_model(**dict(LENET)), training_of(LENET), folder / WEIGHTS)
    assert load_model(folder)[2] == load_model(path)[2]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    return save_model(build_model(**dict(LENET)), training_of(LENET), tmp_path / WEIGHTS)


def test_settings_stand_beside_the_weights_without_the_machines_own(saved: Path) -> None:
    settings = json.loads(saved.with_name("model.json").read_text())
    assert (settings["model"]["name"], settings["iterations"], settings["data_folder"]) == ("lenet5", 5, None)
    assert [path.name for path in sorted(saved.parent.iterdir())] == ["model.json", "model.safetensors"]


@pytest.mark.parametrize("where", ["folder", "file"])
def test_evaluate_prints_the_accuracy(saved: Path, where: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evaluate", str(saved if where == "file" else saved.parent)]) == 0
    out = capsys.readouterr().out
    assert out.startswith("lenet5 after 5 iterations with digits: test accuracy 0.")
    assert out.endswith(" (359 samples)\n")


def test_evaluate_completes_a_model_without_statistics(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = small_data()
    monkeypatch.setattr("hiertrain.workload.datasets.load_dataset", lambda *_: data)
    spec = ModelSettings(name="shufflenet_v2_x0_5", sample_shape=data.sample_shape)
    training = training_settings(spec, data, 8, iterations=2)
    weights = train_on_one_process(training, data).snapshots[2]
    right = trained_model(training, weights, data)
    model = build_model(**dict(training.model))
    model.load_state_dict({**model.state_dict(), **dict(right.named_parameters())})
    path = save_model(model, training, tmp_path / WEIGHTS, 1, statistics=False)
    assert main(["evaluate", str(path)]) == 0
    first = capsys.readouterr().out.splitlines()
    assert "from training samples, in the file too" in first[0]
    assert f"after 1 iterations with small: test accuracy {accuracy(right, data):.4f} (8 samples)" in first[1]
    assert main(["evaluate", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == first[1:]
    restored = load_file(path)
    assert all(torch.equal(value, restored[name]) for name, value in right.module_state.items())


def rewrite(path: Path, change: dict[str, Tensor | None], about: dict[str, str] | None = None) -> None:
    tensors = {name: value for name, value in {**load_file(path), **change}.items() if value is not None}
    saved = {"hiertrain": '{"iterations": 5, "statistics": true}'} if about is None else about
    save_file(tensors, path, saved)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conv1.bias": None}, "does not fit lenet5: 'conv1.bias' is in lenet5, not in .*model.safetensors"),
        ({"conv9.bias": torch.ones(6)}, "does not fit lenet5: 'conv9.bias' is in .*model.safetensors, not in lenet5"),
        ({"conv1.bias": torch.ones(7)}, r"'conv1.bias' is float32 \[7\]; must be float32 \[6\]"),
        ({"conv1.bias": torch.ones(6).double()}, r"'conv1.bias' is float64 \[6\]; must be float32 \[6\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused(saved: Path, change: dict[str, Tensor | None], message: str) -> None:
    rewrite(saved, change)
    with pytest.raises(InputError, match=message):
        load_model(saved)


def test_files_of_another_kind_are_refused_in_one_line(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def refusal(path: Path) -> str:
        assert main(["evaluate", str(path)]) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "nowhere: must be a file of safetensors, and is none" in refusal(saved.parent / "nowhere")
    assert "model.json: not a file of safetensors" in refusal(saved.with_name("model.json"))
    rewrite(saved, {}, {"format": "pt"})
    assert "does not say how far it was trained; must be written by hiertrain" in refusal(saved)
    rewrite(saved, {})
    saved.with_name("model.json").unlink()
    assert "model.json: No such file" in refusal(saved)
