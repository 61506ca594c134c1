"""Exported networks: onnxruntime gives the probabilities of `sos predict`, and so does the code beside them, which knows neither sos nor torch."""

import ast
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from sos import cli, export
from sos.cohort.cameras import frame_camera, normalise, reduce_to, still_scene
from sos.config import RunConfig
from sos.errors import RunError
from sos.images.reader import read_image
from sos.method.models import build
from sos.predict import NATIVE_PX, Stager, load_stager
from sos.stages import FRANKLIN4

BESIDE = {"model.onnx", "preprocessing.json", "README.md", "stage.py"}


@pytest.fixture(scope="module")
def images(tiny_cohort):
    return sorted((tiny_cohort.parent / "images").iterdir())


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The student that ships with sos, which looks twice, exported."""
    folder = tmp_path_factory.mktemp("export") / "new" / "released"
    assert cli.main(["export", "released", "--out", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == BESIDE and list(folder.parent.iterdir()) == [folder]
    return folder


@pytest.fixture(scope="module")
def one_look():
    """The paper's kind of student, untrained, of four stages, at a temperature that shows."""
    torch.manual_seed(3)
    config = RunConfig(frame_px=96)
    return Stager(build(config, 4).eval(), config, FRANKLIN4, "untrained", 0.4)


@pytest.fixture(scope="module")
def one_look_folder(one_look, tmp_path_factory):
    folder = tmp_path_factory.mktemp("one") / "look"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "load_stager", lambda weights: one_look)
        return export.export_onnx("run", folder)


def session(folder):
    return onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])


def frame_of(path, stager):
    """(1, n, n) as `Stager.look` has it before normalisation."""
    native, _, _ = reduce_to(read_image(path), NATIVE_PX)
    return (frame_camera(torch.from_numpy(native)[None, None].float(), still_scene(torch.tensor([native.shape])), stager.config) / 255)[0].numpy()


def test_onnxruntime_gives_the_probabilities_of_predict(released, images):
    """24 virtual images, DICOM and screenshots, none of them square, as one batch and one by one."""
    stager, network = load_stager("released"), session(released)
    assert len(images) >= 20 and all(h != w for h, w in (read_image(path).pixels.shape for path in images))
    frames = np.stack([frame_of(path, stager) for path in images])
    probabilities, windows = network.run(["probabilities", "window"], {"frame": frames})
    assert probabilities.shape == (len(images), 5) and windows.shape == (len(images), 4)
    told = np.array([stager.look(read_image(path))["probabilities"] for path in images])
    assert abs(probabilities - told).max() <= 1e-4 and np.ptp(told, axis=0).max() > 0.8
    for k in (0, 7):
        np.testing.assert_allclose(network.run(["probabilities"], {"frame": frames[k:k + 1]})[0][0], probabilities[k], atol=1e-5)
    with torch.no_grad():
        np.testing.assert_allclose(windows, stager.net.where(normalise(torch.from_numpy(frames))).numpy(), atol=1e-4)


def test_a_one_look_student_gives_its_too(one_look, one_look_folder, images):
    network = session(one_look_folder)
    assert [output.name for output in network.get_outputs()] == ["probabilities"]
    frames = np.stack([frame_of(path, one_look) for path in images])
    told = np.array([one_look.look(read_image(path))["probabilities"] for path in images])
    assert abs(network.run(None, {"frame": frames})[0] - told).max() <= 1e-4
    mirrored = network.run(None, {"frame": np.ascontiguousarray(frames[..., ::-1])})[0]
    np.testing.assert_allclose(mirrored, network.run(None, {"frame": frames})[0], atol=1e-5)


@pytest.mark.parametrize("which", ["released", "one_look"])
def test_the_code_beside_it_follows_the_description_to_the_same_probabilities(which, released, one_look, one_look_folder, images, tmp_path):
    """From the file on, without sos and torch: DICOM of all kinds, PNG, JPEG, and a picture larger than is looked at, with transparent pixels."""
    folder, stager = (released, load_stager("released")) if which == "released" else (one_look_folder, one_look)
    large = np.asarray(Image.open(next(path for path in images if path.suffix == ".png")).convert("L").resize((1700, 1500)))
    Image.fromarray(np.stack([large, 255 * (np.indices(large.shape)[0] > 99).astype(np.uint8)], -1), "LA").save(tmp_path / "large.png")
    paths = [*images, tmp_path / "large.png"]
    done = subprocess.run([sys.executable, folder / "stage.py", *paths], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    for row, path in zip(rows, paths, strict=True):
        told = stager.look(read_image(path))
        assert row["probabilities"] == pytest.approx(told["probabilities"], abs=5e-4), path.name
        assert row["stage"] == told["stage"] and row["use"] == "research use only"


def test_the_code_beside_it_needs_neither_sos_nor_torch(released):
    tree = ast.parse((released / "stage.py").read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert names == {"json", "sys", "pathlib", "numpy", "PIL", "onnxruntime", "pydicom"}


def test_the_model_describes_itself_and_names_no_file_of_this_machine(released):
    model = onnx.load(released / "model.onnx")
    onnx.checker.check_model(model, full_check=True)
    told = {item.key: item.value for item in model.metadata_props}
    assert told["use"] == "research use only" and json.loads(told["labels"]) == [1, 2, 3, 4, 5] and told["virtual"] == "true"
    assert told["weights"].startswith("released student-") and "not for clinical decisions" in model.doc_string
    assert [item.version for item in model.opset_import if item.domain == ""] == [20]
    assert [dim.dim_param or dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim] == ["batch", 1, 384, 384]
    raw = (released / "model.onnx").read_bytes()
    for text in (b"site-packages", b"zoom.py", b"cameras.py", str(Path(export.__file__).parents[1]).encode()):
        assert text not in raw


def test_words_and_numbers_agree(released, one_look_folder):
    for folder, n, samples in ((released, 384, 1), (one_look_folder, 96, 2)):
        how, text = json.loads((folder / "preprocessing.json").read_text()), (folder / "README.md").read_text()
        assert (how["frame_px"], how["samples"], how["input"]["frame"][2:]) == (n, samples, [n, n])
        assert how["largest_difference"] < 1e-4 and "**Research use only.**" in text
        assert f"{n * samples} × {n * samples} places" in text and ("mean of its 2 × 2 samples" in text) == (samples == 2)
        for label, name in zip(how["labels"], how["names"], strict=True):
            assert re.search(rf"\| {label} \| {name} \|", text)
    assert "virtual patients only" in (released / "README.md").read_text()
    assert "virtual patients only" not in (one_look_folder / "README.md").read_text()


# what is refused


def test_a_teacher_is_refused_as_predict_refuses_it(tmp_path, capsys):
    run = tmp_path / "teacher-0"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"config": {"role": "teacher"}, "scheme": "bassed5", "virtual": True}))
    assert cli.main(["export", str(run), "--out", str(tmp_path / "out")]) == 2
    assert "a teacher reads crops" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(RunError, match="not empty"):
        export.export_onnx("released", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_a_network_that_differs_is_not_exported(one_look, one_look_folder, tmp_path, monkeypatch):
    """onnxruntime is given the network of another temperature."""
    other = Stager(one_look.net, one_look.config, one_look.scheme, "other", 1.0)
    monkeypatch.setattr(export, "load_stager", lambda weights: other)
    monkeypatch.setattr(export, "write_network", lambda stager, path, how: shutil.copy(one_look_folder / "model.onnx", path))
    with pytest.raises(RunError, match="nothing was exported"):
        export.export_onnx("run", tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
