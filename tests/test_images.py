"""Image tasks: files in their true format, one tensor for all seeds, augmentation and exact forks."""

from __future__ import annotations

import collections
import dataclasses
import gzip
import hashlib
import io
import itertools
import math
import pickle
import re
import struct
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
import torch
import torchvision
from torch import Tensor, nn

from floodsearch import queue
from floodsearch.catalog import known
from floodsearch.errors import TaskError
from floodsearch.queries import answer
from floodsearch.storage.database import open_database
from floodsearch.storage.studies import put_study
from floodsearch.study.reader import parse
from floodsearch.study.spec import Spec
from floodsearch.tasks import image_sets
from floodsearch.tasks.augmentation import cropped, normalised
from floodsearch.tasks.image_sets import SOURCES, load
from floodsearch.tasks.resnet import resnet18, resnet34, resnet44
from floodsearch.tasks.task import Data, Recipe, Split, Task, build_task
from floodsearch.training.batches import batches
from floodsearch.training.cohort import Cohort
from floodsearch.training.run import Plan, Run, evaluate
from floodsearch.worker.leave import LeaveRequest
from floodsearch.worker.settings import WorkerSettings
from floodsearch.worker.work import work
from tests.device import DEVICE

CPU = torch.device("cpu")
TRAIN, TEST = 300, 40

every_set = pytest.mark.parametrize("name", SOURCES)


# --- files as their makers wrote them, but for their length ----------------------------------------------


def drawn(name: str, part: str) -> tuple[np.ndarray, np.ndarray]:
    """Return random images, (n, height, width, channels), and all labels in turn."""
    source, n = SOURCES[name], TRAIN if part == "train" else TEST
    channels, height, width = source.shape
    pixels = np.random.default_rng([len(name), n]).integers(0, 256, (n, height, width, channels))
    return pixels.astype(np.uint8), np.arange(n) % source.classes


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def write(path: Path, content: bytes) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return md5(content)


def idx(array: np.ndarray) -> bytes:
    """Return the format of yann.lecun.com/exdb/mnist, compressed."""
    header = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes())


def write_mnist(folder: Path, name: str, kind: Any, change: pytest.MonkeyPatch) -> list[Path]:
    files = []
    for part, prefix in (("train", "train"), ("test", "t10k")):
        pixels, labels = drawn(name, part)
        files += [
            (f"{prefix}-images-idx3-ubyte.gz", idx(pixels[..., 0])),
            (f"{prefix}-labels-idx1-ubyte.gz", idx(labels)),
        ]
    raw = folder / kind.__name__ / "raw"
    change.setattr(kind, "resources", [(file, write(raw / file, content)) for file, content in files])
    return [raw / file for file, _ in files]


def write_cifar(folder: Path, name: str, kind: Any, change: pytest.MonkeyPatch) -> list[Path]:
    """Write the archive of www.cs.toronto.edu/~kriz/cifar.html: pickled batches, channels first."""
    key = "labels" if name == "cifar10" else "fine_labels"
    members: dict[str, bytes] = {}
    for part, names in (("train", [one for one, _ in kind.train_list]), ("test", [kind.test_list[0][0]])):
        pixels, labels = drawn(name, part)
        rows = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
        for file, some, those in zip(
            names, np.array_split(rows, len(names)), np.array_split(labels, len(names)), strict=True
        ):
            members[file] = pickle.dumps({"data": some, key: those.tolist()}, protocol=2)
    classes = [f"class {number}" for number in range(SOURCES[name].classes)]
    members[kind.meta["filename"]] = pickle.dumps({kind.meta["key"]: classes}, protocol=2)
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as archive:
        for file, member in members.items():
            info = tarfile.TarInfo(f"{kind.base_folder}/{file}")
            info.size = len(member)
            archive.addfile(info, io.BytesIO(member))
    change.setattr(kind, "tgz_md5", write(folder / kind.filename, content.getvalue()))
    for files in ("train_list", "test_list"):
        change.setattr(kind, files, [[file, md5(members[file])] for file, _ in getattr(kind, files)])
    change.setattr(kind, "meta", {**kind.meta, "md5": md5(members[kind.meta["filename"]])})
    return [folder / kind.filename]


def write_svhn(folder: Path, name: str, kind: Any, change: pytest.MonkeyPatch) -> list[Path]:
    """Write the files of ufldl.stanford.edu/housenumbers: images last, and the digit 0 has the label 10."""
    parts, files = {}, []
    for part in ("train", "test"):
        pixels, labels = drawn(name, part)
        labels = np.where(labels == 0, 10, labels).astype(np.uint8)
        content = io.BytesIO()
        scipy.io.savemat(content, {"X": pixels.transpose(1, 2, 3, 0), "y": labels[:, None]})
        url, file, _ = kind.split_list[part]
        parts[part] = [url, file, write(folder / file, content.getvalue())]
        files.append(folder / file)
    change.setattr(kind, "split_list", parts)
    return files


def write_set(folder: Path, name: str, datasets: Any, change: pytest.MonkeyPatch) -> list[Path]:
    """Write what would be downloaded of a data set, and make torchvision expect these files."""
    kind = getattr(datasets, SOURCES[name].kind)
    writer = {"svhn": write_svhn, "cifar10": write_cifar, "cifar100": write_cifar}.get(name, write_mnist)
    return writer(folder, name, kind, change)


@pytest.fixture
def datasets(monkeypatch):
    """Give torchvision.datasets without a network, and forget what was loaded before."""

    def away(*_: Any, **__: Any) -> None:
        raise OSError("Network is unreachable")

    monkeypatch.setattr("urllib.request.urlopen", away)
    load.cache_clear()
    yield torchvision.datasets
    load.cache_clear()


@pytest.fixture
def make(datasets, tmp_path, monkeypatch):
    """Make the task of an image set whose files lie in `tmp_path`, an MLP unless another model is named."""
    written = set()

    def task(name: str, **options: Any) -> Task:
        if name not in written:
            write_set(tmp_path, name, datasets, monkeypatch)
            written.add(name)
        return build_task(name, {"data_dir": str(tmp_path), "model": "mlp", **options}, {})

    return task


def small(task: Task, name: str, **recipe: Any) -> Task:
    """Return the task with a convolution and BatchNorm as its model."""
    channels, height, _ = SOURCES[name].shape
    features = 4 * ((height - 3) // 4 + 1) ** 2

    def model() -> nn.Module:
        layers = (nn.Conv2d(channels, 4, 3, stride=4), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten())
        return nn.Sequential(*layers, nn.Linear(features, SOURCES[name].classes))

    return dataclasses.replace(task.with_recipe(recipe), model=model)


def prepared(task: Task, split: Split) -> Tensor:
    assert task.prepare is not None
    return task.prepare(split.inputs, None)


def splits(data: Data) -> list[Split]:
    return [data.train, data.validation, data.test]


# --- from files to batches -------------------------------------------------------------------------------


@every_set
def test_images_are_those_of_the_files(name, make, tmp_path):
    """Every pixel and label comes out of the true file format as it was put in, training images first."""
    make(name)
    found = load(name, str(tmp_path), download=True)
    for part, rows in (("train", slice(0, TRAIN)), ("test", slice(TRAIN, None))):
        pixels, labels = drawn(name, part)
        assert torch.equal(found.images[rows], torch.from_numpy(pixels).permute(0, 3, 1, 2))
        assert found.labels[rows].tolist() == labels.tolist()
    assert (found.train, found.images.dtype) == (TRAIN, torch.uint8)


@every_set
def test_the_model_is_given_what_torchvision_would_give_it(name, make, datasets, tmp_path):
    """Inputs of a batch are those of ToTensor and Normalize, image by image, to the bit."""
    from torchvision import transforms

    task, source = make(name), SOURCES[name]
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(source.mean, source.std)])
    data = task.data(0)
    parts = ("train", "test") if name == "svhn" else (True, False)
    for split, part, first in ((data.train, parts[0], 0), (data.test, parts[1], TRAIN)):
        theirs = getattr(datasets, source.kind)(tmp_path, part, transform=transform)
        inputs = prepared(task, split)
        for row, image, label in zip(split.inputs.tolist(), inputs, split.labels, strict=True):
            expected = theirs[row - first]
            assert torch.equal(image, expected[0])
            assert label == expected[1]


@every_set
@pytest.mark.parametrize(("augment", "validation"), [(False, 60), (True, 45)])
def test_a_fifth_is_for_validation_or_fifteen_percent_with_augmentation(name, augment, validation, make):
    """The seed shares out the training images without remainder; the test images are all the others."""
    task = make(name, augment=augment)
    once, again, other = task.data(3), task.data(3), task.data(4)
    assert [len(part.inputs) for part in splits(once)] == [TRAIN - validation, validation, TEST]
    assert torch.cat([once.train.inputs, once.validation.inputs]).sort()[0].tolist() == list(range(TRAIN))
    assert once.test.inputs.tolist() == list(range(TRAIN, TRAIN + TEST))
    for one, same, different in zip(splits(once), splits(again), splits(other), strict=True):
        assert torch.equal(one.inputs, same.inputs)
        assert one is once.test or not torch.equal(one.inputs, different.inputs)


@every_set
def test_a_wrong_label_may_be_any_other(name, make):
    """Of each split int(n * p) labels are others, of all classes; the images stay."""
    clean, noisy = make(name).data(1), make(name, label_noise=0.29).data(1)
    for before, after in zip(splits(clean), splits(noisy), strict=True):
        assert torch.equal(before.labels, after.clean_labels)
        assert torch.equal(before.inputs, after.inputs)
        assert (before.labels != after.labels).sum() == int(len(before.labels) * 29 / 100)
        assert 0 <= after.labels.min() <= after.labels.max() < SOURCES[name].classes


def test_all_seeds_and_tasks_of_a_process_share_one_tensor(make, tmp_path):
    """Memory: a run holds row numbers; the images lie on the device once, whoever asks for them."""
    first, second = make("cifar10"), make("cifar10", augment=True)
    for task in (first, second):
        for seed in (0, 1):
            run = Run(small(task, "cifar10"), Plan(epochs=1), seed=seed, level=0.0, device=CPU)
            assert all(split.inputs.shape == split.labels.shape for split in splits(task.data(seed)))
            assert {run.train.inputs.dtype, run.test.inputs.dtype} == {torch.int64}
    images = load("cifar10", str(tmp_path), download=True)
    assert images is load("cifar10", str(tmp_path), download=True)
    assert images.on(CPU) is images.on(CPU)
    assert images.on(CPU).images is images.images


# --- files that are not there ----------------------------------------------------------------------------


def refusal(task: Task) -> str:
    with pytest.raises(TaskError) as error:
        task.data(0)
    message = str(error.value)
    assert "\n" not in message
    return message


@every_set
@pytest.mark.parametrize(
    ("download", "fragments"),
    [
        (True, ("Network is unreachable", "copy the files there and set download = false")),
        (False, ("not found", "set download = true")),
    ],
)
def test_what_is_not_there_is_said_in_one_line(name, download, fragments, datasets, tmp_path):
    """Without its files a task says which data set, where, why, and what to do; building it reads nothing."""
    message = refusal(build_task(name, {"data_dir": str(tmp_path), "download": download}, {}))
    for fragment in (f"{SOURCES[name].kind} cannot be read from {tmp_path}", *fragments):
        assert fragment in message


@every_set
def test_a_damaged_file_is_said_in_one_line(name, datasets, tmp_path, monkeypatch):
    """A download that broke off is fetched again, and what is wrong is said where that fails."""
    for file in write_set(tmp_path, name, datasets, monkeypatch):
        file.write_bytes(file.read_bytes()[:-20])
    task = build_task(name, {"data_dir": str(tmp_path)}, {})
    assert "delete damaged files" in refusal(task)


def test_unpacked_files_that_do_not_fit_are_refused(make, tmp_path):
    """Files that torchvision does not check, such as those of MNIST when unpacked, are read with care."""
    make("mnist").data(0)
    labels = tmp_path / "MNIST" / "raw" / "train-labels-idx1-ubyte"
    whole = labels.read_bytes()
    for content in (whole[:-1], b"", struct.pack(">HBBI", 0, 8, 1, TRAIN - 1) + whole[8:-1]):
        labels.write_bytes(content)
        load.cache_clear()
        assert "MNIST cannot be read" in refusal(make("mnist"))


@pytest.mark.parametrize(
    "error", [RuntimeError("operator torchvision::nms does not exist"), ImportError("no")]
)
def test_a_torchvision_that_does_not_fit_is_said_in_one_line(error, make, monkeypatch):
    """Where torchvision cannot be imported beside this torch, the line names both and what to do."""

    class Broken:
        def __getattr__(self, name: str) -> None:
            raise error

    task = make("mnist")
    monkeypatch.setitem(sys.modules, "torchvision", Broken())
    message = refusal(task)
    assert message.startswith(f"torchvision does not fit torch {torch.__version__}: {type(error).__name__}")
    assert message.endswith("install both from the same place")


def test_files_are_read_without_leave_to_write(make, tmp_path, monkeypatch):
    """Data sets in a folder that others filled are read; nothing is left in it."""
    make("svhn")
    monkeypatch.setattr(image_sets.os, "access", lambda *_: False)
    before = sorted(tmp_path.iterdir())
    make("svhn").data(0)
    assert sorted(tmp_path.iterdir()) == before


def test_one_process_fetches_while_the_others_wait(make, tmp_path):
    """Files are read under a lock where they may be written, so that nobody reads half of one."""
    make("svhn")
    lock = image_sets.FileLock(tmp_path / ".floodsearch.lock")
    done = threading.Event()

    def read() -> None:
        load("svhn", str(tmp_path), download=True)
        done.set()

    with lock:
        other = threading.Thread(target=read)
        other.start()
        assert not done.wait(0.3)
    assert done.wait(60)
    other.join()


# --- augmentation ----------------------------------------------------------------------------------------


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_crop_is_a_shift_by_at_most_four_pixels_half_of_them_mirrored():
    """Each is one of the 81 shifts of an image or of its mirror image, black outside, all equally often."""
    n = 3000
    images = torch.arange(1, 2 * 5 * 6 + 1, dtype=torch.uint8).view(1, 2, 5, 6).repeat(n, 1, 1, 1)
    sides = {False: images[0], True: images[0].flip(2)}
    found: collections.Counter[tuple[bool, int, int]] = collections.Counter()
    views = {
        nn.functional.pad(image, (4,) * 4)[:, down : down + 5, right : right + 6].numpy().tobytes(): (
            mirrored,
            down,
            right,
        )
        for mirrored, image in sides.items()
        for down, right in itertools.product(range(9), repeat=2)
    }
    assert len(views) == 2 * 81
    for image in cropped(images, generator(), mirror=True):
        found[views[image.contiguous().numpy().tobytes()]] += 1
    mirrored = sum(times for (mirror, _, _), times in found.items() if mirror)
    assert abs(mirrored / n - 0.5) < 4.5 * 0.5 / math.sqrt(n)
    for axis in (1, 2):
        for shift in range(9):
            share = sum(times for view, times in found.items() if view[axis] == shift) / n
            assert abs(share - 1 / 9) < 4.5 * math.sqrt(1 / 9 * 8 / 9 / n)


def test_characters_are_not_mirrored():
    """Without mirroring each image is a shift of itself."""
    image = torch.arange(1, 61, dtype=torch.uint8).view(1, 1, 6, 10)
    views = nn.functional.pad(image, (4,) * 4).unfold(2, 6, 1).unfold(3, 10, 1).reshape(-1, 60)
    for crop in cropped(image.repeat(200, 1, 1, 1), generator(), mirror=False):
        assert (views == crop.reshape(60)).all(dim=1).any()
    assert [name for name, source in SOURCES.items() if source.mirrored] == [
        "fashion_mnist",
        "cifar10",
        "cifar100",
    ]


@every_set
def test_augmented_batches_are_those_of_seed_and_epoch(name, make):
    """The same seed and epoch give the same batches to the bit, whoever asks; others give others."""
    task = make(name, augment=True)
    train = task.data(0).train

    def epoch(seed: int, number: int) -> list[Tensor]:
        return [inputs for inputs, _ in batches(train, 100, seed, number, task.prepare)]

    once = epoch(0, 1)
    torch.rand(7)
    assert all(map(torch.equal, once, epoch(0, 1)))
    for seed, number in ((0, 2), (1, 1)):
        assert not any(map(torch.equal, once, epoch(seed, number)))


def test_the_order_is_the_same_with_and_without_augmentation(make):
    """Augmentation draws from a stream of its own: labels come in the order that they have without it."""
    task = make("cifar10", augment=True)
    train = task.data(0).train
    plain = [labels.tolist() for _, labels in batches(train, 100, 0, 3)]
    assert [labels.tolist() for _, labels in batches(train, 100, 0, 3, task.prepare)] == plain


def test_an_evaluation_never_augments(make):
    """Validation and test images are the plain ones, also of a task that augments."""
    task = small(make("cifar10", augment=True), "cifar10")
    run = Run(task, Plan(epochs=1), seed=0, level=0.0, device=CPU)
    list(run)
    found = evaluate(run.model, task, run.validation)
    with torch.no_grad():
        outputs = run.model.eval()(prepared(task, run.validation))
    assert found.accuracy == (outputs.argmax(1) == run.validation.labels).double().mean().item()
    assert found == evaluate(run.model, task, run.validation)


def test_normalising_leaves_the_images_alone():
    """The bytes that all runs share are not written to."""
    images = torch.full((2, 1, 3, 3), 255, dtype=torch.uint8)
    floats = normalised(images, torch.tensor([[[0.5]]]), torch.tensor([[[0.25]]]))
    assert (floats == 2).all()
    assert (images == 255).all()


# --- training --------------------------------------------------------------------------------------------

LEVELS = {0: 0.0, 1: 1e-6, 2: 2.26, 3: 2.315, 4: 1e3}
SEEDS = (0, 5)


def test_forked_is_trained_alone_with_augmentation(make):
    """Every record of each level and seed is that of the level trained alone, to the bit."""
    one = small(make("cifar10", augment=True), "cifar10", batch_size=100, learning_rate=0.02, milestones=(3,))
    plan = Plan(epochs=5, validate_every=2)
    cohort = Cohort(one, plan, levels=LEVELS, seeds=dict.fromkeys(LEVELS, SEEDS), device=DEVICE)
    steps = [cohort.advance() for _ in range(plan.epochs)]
    assert not any(step.failed for step in steps)
    flooded = set()
    for member, level in LEVELS.items():
        for seed in SEEDS:
            run = Run(one, plan, seed=seed, level=level, device=DEVICE)
            together = [record for step in steps for record in step.records[member] if record.seed == seed]
            alone = list(run)
            assert together == alone
            assert [record for record in cohort.tested(member) if record.seed == seed] == run.tested()
            flooded.add(next((record.epoch for record in alone if record.flooded), None))
    assert {1, None} < flooded  # at once, never, and in between


def test_a_stopped_run_goes_on_exactly_with_augmentation(make):
    """A new run that is given the state of another goes on as that would have."""
    one = small(make("fashion_mnist", augment=True), "fashion_mnist", batch_size=100)
    plan = Plan(epochs=5)
    whole = list(Run(one, plan, seed=1, level=1.5, device=DEVICE))
    first, second = (Run(one, plan, seed=1, level=1.5, device=DEVICE) for _ in range(2))
    begun = [first.advance(), first.advance()]
    second.restore(first.state())
    assert begun + list(second) == whole


def test_a_study_of_images_is_trained_to_its_answer(make, tmp_path):
    """A worker takes a study of images from its file to its answer, with test accuracies."""
    make("kmnist")
    spec = study(
        "kmnist",
        augment=True,
        data_dir=str(tmp_path),
        levels={"high": 3.0, "count": 2},
        training={"epochs": 2, "seeds": 2, "validate_every": 1},
        search={"pruner": "none"},
    )
    database = open_database(f"sqlite:///{tmp_path}/images.db", create=True)
    put = put_study(database, spec)
    queue.fill(put)
    work(put, WorkerSettings(device="cpu", threads=1), LeaveRequest())
    found = answer(put)
    database.close()
    assert found.finished
    assert found.trials.complete == 2
    assert found.test_accuracy is not None


# --- models and recipes ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "parameters", "layers"),
    [(resnet18, 11_173_962, 18), (resnet34, 21_282_122, 34), (resnet44, 658_586, 44)],
)
def test_residual_networks_have_their_size(model, parameters, layers):
    """Parameters are 11.2, 21.3 and 0.66 million as published, and layers as many as the name says."""
    network = model(3, 10)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    weighted = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear)]
    projections = [one for one in weighted if getattr(one, "kernel_size", None) == (1, 1)]
    assert len(weighted) - len(projections) == layers


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32)])
def test_a_residual_network_takes_small_images(shape):
    """Images of one and of three channels give logits, and the loss reaches every parameter."""
    network = resnet44(shape[0], 7)
    outputs = network(torch.randn(2, *shape))
    assert outputs.shape == (2, 7)
    outputs.logsumexp(dim=1).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_a_shortcut_without_parameters_takes_every_second_pixel():
    """With its convolutions at zero, a block that halves the image is the image thinned out, and zeros."""
    block = resnet44(3, 10)[10]
    for layer in block.around.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.zeros_(layer.weight)
    images = torch.rand(2, 16, 8, 8)
    thin = images[:, :, ::2, ::2]
    assert torch.equal(block(images), torch.cat([thin, torch.zeros_like(thin)], dim=1))


@every_set
def test_recipe_and_model_are_those_of_the_paper(name):
    """Without options the batch is 200 and the rate constant; augmentation brings 128 and two milestones."""
    models = {"svhn": "resnet18", "cifar10": "resnet34", "cifar100": "resnet34"}
    spec = study(name)
    assert spec.options["model"] == models.get(name, "mlp")
    assert build_task(name, {}, {}).recipe == Recipe(
        batch_size=200, optimizer="sgd", learning_rate=0.1, momentum=0.9
    )
    assert spec.training.recipe["batch_size"] == 200
    augmented = study(name, augment=True).training.recipe
    assert (augmented["batch_size"], augmented["milestones"]) == (128, (250, 400))
    assert (augmented["learning_rate"], augmented["gamma"], augmented["momentum"]) == (0.1, 0.1, 0.9)


def study(name: str, **changes: Any) -> Spec:
    tables = {name: changes.pop(name) for name in ("levels", "training", "search") if name in changes}
    least = {"name": "images", "task": name, "options": changes, "levels": {"high": 0.1, "count": 11}}
    return parse(least | tables, known())


def test_the_mlp_is_that_of_the_paper():
    """Two hidden layers of 1000 units with BatchNorm: 784 x 1000, 1000 x 1000 and 1000 x 10 weights."""
    layers = [
        one for one in build_task("mnist", {}, {}).model() if isinstance(one, nn.Linear | nn.BatchNorm1d)
    ]
    assert [tuple(one.weight.shape) for one in layers] == [
        (1000, 784),
        (1000,),
        (1000, 1000),
        (1000,),
        (10, 1000),
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [({"model": "resnet50"}, "model must be one of mlp, resnet18"), ({"label_noise": 2.0}, "but is 2.0")],
)
def test_options_out_of_range_are_refused(options, words):
    """An option out of its range is refused with its valid values."""
    with pytest.raises(TaskError, match=words):
        build_task("cifar10", options, {})


# --- what does not fit -----------------------------------------------------------------------------------


def start(task: Task) -> Run:
    return Run(task, Plan(epochs=1), seed=0, level=0.0, device=CPU)


def test_a_batch_larger_than_the_training_split_is_refused(make):
    """One line says the batch size and how many samples there are."""
    task = make("mnist")
    with pytest.raises(
        TaskError, match=r"^batch_size = 241 is more than the 240 training samples; lower it in \[training\]$"
    ):
        start(small(task, "mnist", batch_size=241))
    assert start(small(task, "mnist", batch_size=240)).advance().epoch == 1


def test_too_few_outputs_are_refused_before_training(make):
    """Ten logits for a hundred classes: one line, where a GPU would only say that an assertion failed."""
    task = dataclasses.replace(
        make("cifar100"), model=lambda: nn.Sequential(nn.Flatten(), nn.Linear(3072, 10))
    )
    words = "the model has 10 outputs, but there are labels up to 99; it needs at least 100"
    with pytest.raises(TaskError, match=f"^{re.escape(words)}$"):
        start(task)
