"""Would the tests notice? Breaks the method in one place at a time, in a copy of the package, and runs the tests of the method.

    python tests/mutations.py [--only WORD]

Each mutant is one small change that a slip could make: a sign, a missing T², a window read as (y, x). A mutant is killed if a test fails, and
survives if all pass; a survivor is a gap in the tests, and makes the exit status 1. The checkout itself is not touched.

The tests of the mutated module run first, up to the first failure. Each mutant has a process of its own, forked after the imports that take long
(Linux and macOS). Not collected by pytest. `test_house.py` checks that every mutation still fits the code.
"""

import argparse
import importlib
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
METHOD = Path("sos", "method")
TESTS = ("test_losses.py", "test_cam.py", "test_zoom.py", "test_references.py", "test_distill.py", "test_progressive.py", "test_backbones.py")
HEAVY = ("torch", "torchvision", "fastai.vision.all", "scipy.stats", "hypothesis.strategies")  # imported once, before the processes fork
LIMIT_S = 300  # of the tests of one mutant


class Mutant(NamedTuple):
    """In `file` of the method, `old`, which stands there once, becomes `new`."""

    name: str
    file: str
    old: str
    new: str

    def applied(self, text: str) -> str:
        """`text` of the file with the mutation. Raises ValueError where `old` does not stand there exactly once."""
        if text.count(self.old) != 1:
            raise ValueError(f"'{self.name}' does not fit {self.file}: its text stands there {text.count(self.old)} times; adapt it to the code")
        return text.replace(self.old, self.new)


MUTANTS = [Mutant(*row) for row in (
    # the KL divergence of logits
    ("KL: sign flipped", "losses.py", "return temperature**2 * (log_p", "return -(temperature**2) * (log_p"),
    ("KL: T² dropped", "losses.py", "return temperature**2 * (log_p", "return (log_p"),
    ("KL: T in place of T²", "losses.py", "return temperature**2 * (log_p", "return temperature * (log_p"),
    ("KL: direction swapped", "losses.py", "(log_p.exp() * (log_p - log_q))", "(log_q.exp() * (log_q - log_p))"),
    ("KL: cross-entropy, the teacher's entropy left out", "losses.py", "(log_p.exp() * (log_p - log_q))", "(-log_p.exp() * log_q)"),
    ("KL: teacher not softened", "losses.py", "F.log_softmax(teacher / temperature, 1)", "F.log_softmax(teacher, 1)"),
    ("KL: student not softened", "losses.py", "F.log_softmax(student / temperature, 1)", "F.log_softmax(student, 1)"),
    ("KL: mean over stages too", "losses.py", ".sum(1).mean()\n\n\ndef align", ".mean()\n\n\ndef align"),
    ("KL: sum over images", "losses.py", ".sum(1).mean()\n\n\ndef align", ".sum(1).sum()\n\n\ndef align"),
    # the student's spatial logits in the window
    ("align: without half-pixel alignment", "losses.py", "aligned=True", "aligned=False"),
    ("align: half a cell further", "losses.py", "* height], 1)\n", "* height], 1) + 0.5\n"),
    ("align: one sample a cell", "losses.py", "sampling_ratio=2", "sampling_ratio=1"),
    ("align: width and height swapped", "losses.py", "boxes = torch.stack(", "width, height = height, width\n    boxes = torch.stack("),
    ("align: window read as (y, x)", "losses.py", "boxes = torch.stack(", "window = window[:, [1, 0, 3, 2]]\n    boxes = torch.stack("),
    ("align: every image in the first one's window", "losses.py", "torch.cat([index, boxes], 1)",
     "torch.cat([index, boxes[:1].expand_as(boxes)], 1)"),
    ("align: every window on the first image", "losses.py", "torch.cat([index, boxes], 1)", "torch.cat([0 * index, boxes], 1)"),
    # L_dist
    ("L_dist: share weighting dropped", "losses.py", "inside = inside * ((", "inside = inside * 1 ** (("),
    ("L_dist: share of a window beyond the frame too", "losses.py", "window.clamp(0, 1)", "window"),
    ("L_dist: spatial part dropped", "losses.py", "return distillation_kl(inside, teacher.spatial, temperature) +", "return"),
    ("L_dist: image part dropped", "losses.py", " + distillation_kl(student.logits, teacher.logits, temperature)", ""),
    ("L_dist: sign flipped", "losses.py", "return distillation_kl(inside, teacher.spatial, temperature) +",
     "return -distillation_kl(inside, teacher.spatial, temperature) -"),
    ("L_dist: student and teacher swapped", "losses.py", "+ distillation_kl(student.logits, teacher.logits,",
     "+ distillation_kl(teacher.logits, student.logits,"),
    ("L_dist: without evidence, student and teacher swapped", "losses.py", "return distillation_kl(student.logits, teacher.logits,",
     "return distillation_kl(teacher.logits, student.logits,"),
    ("L_dist: no evidence ignored", "losses.py", "evidence == \"none\"", "evidence == \"\""),
    # L_attn
    ("L_attn: sign of kl flipped", "losses.py", "return (p * (p.log() - q.log()))", "return -(p * (p.log() - q.log()))"),
    ("L_attn: sign of cosine flipped", "losses.py", "return (1 - F.cosine", "return (1 + F.cosine"),
    ("L_attn: sign of mse flipped", "losses.py", "return ((p - q) ** 2)", "return -((p - q) ** 2)"),
    ("L_attn: direction of kl swapped", "losses.py", "p, q = unit_mass(teacher), unit_mass(student)",
     "p, q = unit_mass(student), unit_mass(teacher)"),
    ("L_attn: mse fades with the grid", "losses.py", ".sum((1, 2)).mean() * p[0].numel()", ".sum((1, 2)).mean()"),
    ("L_attn: student not normalised", "losses.py", "unit_mass(teacher), unit_mass(student)", "unit_mass(teacher), student + 1e-8"),
    # Grad-CAM
    ("Grad-CAM: ReLU left out", "cam.py", "return F.relu(torch", "return (torch"),
    ("Grad-CAM: absolute value for ReLU", "cam.py", "return F.relu(torch", "return abs(torch"),
    ("Grad-CAM: ReLU before the sum", "cam.py", 'F.relu(torch.einsum("bc,bchw->bhw", alpha.flatten(1), features))',
     "F.relu(alpha * features).sum(1)"),
    ("Grad-CAM: gradient not averaged (HiResCAM)", "cam.py", "gradient.mean((2, 3), keepdim=True)", "gradient"),
    ("Grad-CAM: gradient summed", "cam.py", "gradient.mean((2, 3), keepdim=True)", "gradient.sum((2, 3), keepdim=True)"),
    ("Grad-CAM: weights without graph", "cam.py", "features, create_graph=create_graph", "features, create_graph=False"),
    ("Grad-CAM: features without graph", "cam.py", "alpha.flatten(1), features)", "alpha.flatten(1), features.detach())"),
    ("score: bare logit", "cam.py", "[:, 0] - logits.mean(1)", "[:, 0]"),
    ("score: probability", "cam.py", "return logits.gather", "logits = logits.softmax(1)\n    return logits.gather"),
    ("known gradient: the mean of all stages left in", "cam.py", "weight[target] - weight.mean(0)", "weight[target]"),
    ("known gradient: not shared by the places", "cam.py", "weight.mean(0)) / places)", "weight.mean(0)))"),
    ("explain: active dropout overlooked", "cam.py", " and not (net.head.training and net.head.dropout.p)", ""),
    ("explain: map not detached", "cam.py", "class_score(look.logits, target)).detach()\n", "class_score(look.logits, target))\n"),
    ("explain: look not detached", "cam.py", "look.spatial.detach(), look.logits.detach()", "look.spatial, look.logits"),
    ("explain: the least likely stage", "cam.py", "look.logits.argmax(1) if target", "look.logits.argmin(1) if target"),
    ("explain: target ignored", "cam.py", "look.logits.argmax(1) if target is None else target", "look.logits.argmax(1)"),
    ("previous layer: norms of the batch", "cam.py", "        part.training = False\n", "        pass\n"),
    ("previous layer: mode not restored", "cam.py", "            part.training = mode\n", "            pass\n"),
    ("previous layer: the head still drops out", "cam.py", "with _evaluating(stage, net.head):", "with _evaluating(stage):"),
    ("unit mass: floor dropped", "cam.py", "cam + floor * cam.mean((1, 2), keepdim=True)", "cam"),
    ("unit mass: floor not relative", "cam.py", "floor * cam.mean((1, 2), keepdim=True)", "floor"),
    ("unit mass: by the maximum", "cam.py", "return cam / cam.sum((1, 2), keepdim=True)", "return cam / cam.amax((1, 2), keepdim=True)"),
    # the teacher's map in the frame
    ("paste: shifted by one cell", "cam.py", "steps = (torch.arange(size * fine, device=cam.device) + 0.5)",
     "steps = (torch.arange(size * fine, device=cam.device) + 0.5 + fine)"),
    ("paste: half a step off", "cam.py", "steps = (torch.arange(size * fine, device=cam.device) + 0.5)",
     "steps = torch.arange(size * fine, device=cam.device)"),
    ("paste: window read as (y, x)", "cam.py", "    steps = ", "    window = window[:, [1, 0, 3, 2]]\n    steps = "),
    ("paste: corners aligned", "cam.py", "centre = (place * cells - 0.5)", "centre = (place * (cells - 1))"),
    ("paste: spills over the window", "cam.py", "(weight * ((place >= 0) & (place <= 1))[:, :, None])", "weight"),
    ("paste: nearest for bilinear", "cam.py", "(1 - (centre[:, :, None] - torch.arange(cells, device=cam.device)).abs()).clamp_min(0)",
     "((centre[:, :, None] - torch.arange(cells, device=cam.device)).abs() < 0.5).float()"),
    # the terms and their callback
    ("L_cls: sign flipped", "distill.py", "lambda: F.cross_entropy", "lambda: -F.cross_entropy"),
    ("terms: teacher's map not put back", "distill.py", "paste(teacher_cam, window, cam.shape[-1])",
     "paste(teacher_cam, 0 * window + window.new_tensor([0, 0, 1, 1]), cam.shape[-1])"),
    ("terms: student's map detached", "distill.py", "return attention_distance(cam,", "return attention_distance(cam.detach(),"),
    ("terms: Grad-CAM without its graph", "distill.py", "create_graph=config.w_attn > 0", "create_graph=False"),
    ("terms: features detached", "distill.py", "cam = grad_cam(features, class_score(logits,", "features = features.detach().requires_grad_()\n        cam = grad_cam(features, class_score(logits,"),
    ("terms: a term without weight keeps its graph", "distill.py", "term() if weight > 0 else term().detach()", "term()"),
    ("terms: T of 1", "distill.py", "config.temperature, config.evidence", "1.0, config.evidence"),
    ("terms: window read as (y, x)", "distill.py", "spatial_distillation(student, teacher, window,",
     "spatial_distillation(student, teacher, window[:, [1, 0, 3, 2]],"),
    ("terms: weights exchanged", "distill.py", 'name.replace("L_", "w_")',
     '"w_" + {"dist": "attn", "attn": "dist"}.get(name[2:], name[2:])'),
    ("terms: label and teacher's decision exchanged", "distill.py", 'if config.cam_target == "teacher"', 'if config.cam_target != "teacher"'),
    ("callback: sign of the loss flipped", "distill.py", "self.learn.loss_grad = weighted_sum(", "self.learn.loss_grad = -weighted_sum("),
    ("callback: teacher left in training mode", "distill.py", "        self.teacher.eval()\n", ""),
    ("callback: teacher's mode not restored", "distill.py", "        self.teacher.train(self.teacher_mode)\n", ""),
    ("callback: hook left behind", "distill.py", "        self.hook.remove()\n", ""),
    ("callback: features of the hook detached", "distill.py", "(features[0], spatial), detach=False", "(features[0], spatial), detach=True"),
    ("callback: teacher sees the frame", "distill.py", "explain(self.teacher, self.window_picture,", "explain(self.teacher, self.learn.xb[0],"),
    ("callback: student explains itself", "distill.py", "explain(self.teacher, self.window_picture,", "explain(self.student, self.window_picture,"),
    ("callback: teacher's map always of the last layer", "distill.py", "explained, self.config.cam_layer)", "explained)"),
    ("callback: student's map always of the last layer", "distill.py", "target, self.config, previous)", "target, self.config)"),
    ("callback: student's previous map detached", "distill.py", "self.lower.stored.float()", "self.lower.stored.float().detach().requires_grad_()"),
    ("callback: hook of the previous layer left behind", "distill.py", "            self.lower.remove()\n", "            pass\n"),
    ("callback: validation distilled too", "distill.py", "run_valid = False", "run_valid = True"),
    # the student that looks twice
    ("L_dist: own window taken for the frame", "losses.py", "window if student.window is None else within(window, student.window.detach())", "window"),
    ("within: not in sides", "losses.py", "[(window[:, :2] - corner) / side", "[(window[:, :2] - corner)"),
    ("explain: own window's map over the whole picture", "cam.py", "cam if window is None else paste(cam, window, PICTURE)",
     "cam if window is None else enlarge(cam, PICTURE)"),
    ("L_aim: sign flipped", "zoom.py", "return F.smooth_l1_loss", "return -F.smooth_l1_loss"),
    ("L_aim: centres in frames", "zoom.py", "(centre - centre_o) / side_o", "(centre - centre_o)"),
    ("L_aim: own sides", "zoom.py", "(centre - centre_o) / side_o", "(centre - centre_o) / side"),
    ("aim: x and y exchanged", "zoom.py", ".flip(1)  # (h·w, 2) x, y", ""),
    ("aim: corners in place of the cells' centres", "zoom.py", "torch.arange(height, device=features.device) + 0.5)", "torch.arange(height, device=features.device))"),
    ("gaze: half a pixel off", "zoom.py", "(torch.arange(size_px, device=x.device) + 0.5)", "torch.arange(size_px, device=x.device)"),
    ("gaze: stage moves the window unasked", "zoom.py", "window if self.aim_gradient else window.detach()", "window"),
    ("gaze: at the whole frame", "zoom.py", "half, middle = (window[:, 2:] - window[:, :2])", "half, middle = 1 + 0 * (window[:, 2:] - window[:, :2])"),
    ("terms: L_aim left out", "distill.py", "    if student.window is not None:\n        terms", "    if False:\n        terms"),
    ("terms: L_attn moves the window", "distill.py", "student.window if student.window is None else student.window.detach()", "student.window"),
    ("callback: own window not handed on", "distill.py", "self.aimed.stored if self.aimed else None", "None"),
    # blocks that join one after the other
    ("progressive: deep blocks first", "progressive.py", "if place >= number:", "if place < len(self.residual) - number:"),
    ("progressive: a block awake from the start", "progressive.py", "for i in range(1, blocks + 1)", "for i in range(blocks)"),
    ("progressive: a block asleep to the end", "progressive.py", "done * blocks >= share * i", "done * blocks > share * i"),
    ("progressive: still asleep afterwards", "progressive.py", "        self.wake(len(self.residual))\n", "        pass\n"),
    ("progressive: nothing sleeps", "progressive.py", "                block.forward = _pass_on", "                _pass_on"),
    ("progressive: blocks that change the size sleep too", "backbones.py", " and block.downsample is None", ""),
    # attention
    ("attention: channels by their mean alone", "backbones.py", " + self.mlp(features.amax((2, 3), keepdim=True))", ""),
    ("attention: places by their mean alone", "backbones.py", "features.amax(1, keepdim=True)], 1)", "features.mean(1, keepdim=True)], 1)"),
    ("attention: places before channels are gated", "backbones.py",
     "        features = self.channel_gate(features) * features\n        return self.place_gate(features) * features",
     "        return self.place_gate(features) * self.channel_gate(features) * features"),
    ("backbone: last stage begins one child later", "backbones.py", "if _strided(child))\n", "if _strided(child)) + 1\n"),
    ("backbone: colours averaged", "backbones.py", "stem.weight.sum(1, keepdim=True)", "stem.weight.mean(1, keepdim=True)"),
)]


def copy_to(folder: Path) -> None:
    """What the tests of the method need, without compiled files."""
    for part in ("sos", "tests"):
        shutil.copytree(REPOSITORY / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", folder)


def run_tests(folder: Path, tests: list[str], log: Path) -> None:
    """In a forked process: the copy's tests on the copy's package, without compiled files that a later mutant could meet; exits as pytest does."""
    with open(log, "w") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(folder)
    sys.dont_write_bytecode = True
    outside = [entry for entry in sys.path if Path(entry).resolve() not in (REPOSITORY, REPOSITORY / "tests")]
    sys.path[:] = [str(folder), *outside]
    package = Path(importlib.import_module("sos").__file__).resolve()
    if not package.is_relative_to(folder):
        raise RuntimeError(f"the tests would run on {package}, not on the copy")
    status = pytest.main(["-x", "-q", "--tb=no", "-p", "no:cacheprovider", *(f"tests/{name}" for name in tests)])
    sys.stdout.flush()
    os._exit(100 + status)  # so that no other way to end looks like pytest's


def killer(folder: Path, tests: list[str]) -> str | None:
    """Name of the first test that fails, or None. Raises RuntimeError where the tests could not be run, which proves nothing."""
    log = folder / "log"
    process = multiprocessing.get_context("fork").Process(target=run_tests, args=(folder, tests, log))
    process.start()
    process.join(LIMIT_S)
    if process.is_alive():
        process.kill()
        process.join()
    text = log.read_text(encoding="utf-8")
    if process.exitcode not in (100, 101):
        raise RuntimeError(f"the tests could not be run (status {process.exitcode}):\n{text[-3000:]}")
    return re.search(r"^(?:FAILED|ERROR) tests/(\S+)", text, re.MULTILINE)[1] if process.exitcode == 101 else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", metavar="WORD", help="only mutants whose name holds this")
    word = parser.parse_args().only
    mutants = [mutant for mutant in MUTANTS if word in mutant.name]
    survivors, began = [], time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        copy_to(folder)
        for module in HEAVY:
            importlib.import_module(module)
        if failed := killer(folder, list(TESTS)):
            raise RuntimeError(f"{failed} fails without any mutation")
        for mutant in mutants:
            path = folder / METHOD / mutant.file
            text = path.read_text(encoding="utf-8")
            path.write_text(mutant.applied(text), encoding="utf-8")
            start = time.monotonic()
            test = killer(folder, sorted(TESTS, key=lambda test: test != f"test_{mutant.file}"))
            path.write_text(text, encoding="utf-8")
            print(f"{mutant.name:52} {time.monotonic() - start:5.1f} s  {test or 'SURVIVES'}", flush=True)
            if test is None:
                survivors.append(mutant.name)
    print(f"{len(mutants)} mutants, {len(mutants) - len(survivors)} killed, {len(survivors)} survive; {time.monotonic() - began:.0f} s")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
