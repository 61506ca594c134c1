"""Runs on disk. A run is a folder named by its role and the hash of its resolved configuration, its data and the code that trained it.

It is written under a temporary name and renamed when whole: a folder with a run's name is a finished run. It holds `config.json`,
`metrics.json`, `predictions.csv` (one row a held-out image), `mirrored.csv` (the same once more, left and right exchanged),
`history.csv` (one row an epoch), `environment.json`, and `weights.safetensors` where the run was asked to keep its weights.
"""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from ..config import RunConfig, digest, source_digest
from ..errors import ConfigError, RunError
from ..stages import StagingScheme, get_scheme

if TYPE_CHECKING:
    import pandas as pd  # which takes a while to import, as do all that compute with it: only where a table is read

_PACKAGE = Path(__file__).resolve().parents[1]
_TRAINING_CODE = ("method", "cohort/batches.py", "cohort/cameras.py", "cohort/views.py", "study/training.py", "study/fitting.py", "study/detector.py")
_LOOKED = ("decided", "peak_x", "peak_y", "pointing", "energy", "iou", "found", "score", "box_x0", "box_y0", "box_x1", "box_y1",
           "window_x0", "window_y0", "window_x1", "window_y1")  # where a network looked


@dataclass(frozen=True)
class Run:
    """A finished run, read lazily from its folder."""

    path: Path

    def __post_init__(self):
        if not (self.path / "config.json").is_file():
            raise RunError(f"{self.path}: no run here (config.json is missing); give a folder below runs/<profile>/models")

    @cached_property
    def record(self) -> dict:
        """config.json whole: `config`, `data`, `code`, `scheme`, `virtual`, `native_px` (see `config.Profile`; not in older runs), and where a teacher
        was needed `teacher`, its run's name."""
        try:
            record = json.loads((self.path / "config.json").read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            record = None
        if not isinstance(record, dict) or not isinstance(record.get("config"), dict) or not isinstance(record.get("scheme"), str):
            raise RunError(f"{self.path}: config.json is not the record of a run; copy or train the run again")
        return record

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> RunConfig:
        """The resolved configuration. Raises RunError for one of another version of this software."""
        return config_of(self.record, self.path)

    @property
    def scheme(self) -> StagingScheme:
        return get_scheme(self.record["scheme"])

    @cached_property
    def metrics(self) -> dict[str, dict[str, float]]:
        """name → value, low, high on the test split."""
        return json.loads((self.path / "metrics.json").read_text())

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row a held-out image (valid and test): identity, stage, probabilities, and where the network looked."""
        return self._table("predictions")

    @cached_property
    def predictions_mirrored(self) -> pd.DataFrame:
        """Predictions for the mirror images of the same."""
        return self._table("mirrored")

    @cached_property
    def predictions_both(self) -> pd.DataFrame:
        """Predictions, each probability the mean of those for the image and for its mirror image, as `sos predict` has it. Nothing of where the
        network looked."""
        from .metrics import probability_columns

        one, columns = self.predictions, probability_columns(self.predictions)
        turned = self.predictions_mirrored.set_index("image").loc[one["image"], columns].to_numpy()
        known = [name for name in one if name not in _LOOKED]
        return one[known].assign(**dict(zip(columns, (0.5 * (one[columns].to_numpy() + turned)).T, strict=True)))

    def _table(self, name: str) -> pd.DataFrame:
        import pandas as pd

        return pd.read_csv(self.path / f"{name}.csv", dtype={"patient_id": str, "image": str})

    def split(self, name: str, seen: str = "as_is") -> pd.DataFrame:
        """Predictions for the split `test` or `valid`; seen: of the images `as_is`, `mirrored`, or `both` averaged."""
        table = self.predictions if seen == "as_is" else getattr(self, f"predictions_{seen}")
        return table[table["split"] == name].reset_index(drop=True)

    @property
    def test(self) -> pd.DataFrame:
        """Predictions for the test split."""
        return self.split("test")

    @cached_property
    def image_temperature(self) -> float:
        """The T that calibrates the probabilities of an image alone, fitted on the validation split; 1 where that is tiny."""
        from .trust import fit_temperature

        return fit_temperature(self.split("valid"))

    @cached_property
    def temperature_scale(self) -> float:
        """The T that calibrates the mean of an image's answer and its mirror image's, and so `sos predict`, fitted on the validation split; 1
        where that is tiny. The mean is less sure than the two answers are on average, so the T of an image alone would not do."""
        from .trust import fit_temperature

        return fit_temperature(self.split("valid", "both"))

    @cached_property
    def history(self) -> pd.DataFrame:
        """One row an epoch: training and validation loss, validation accuracy, and for a student the three terms."""
        return self._table("history")

    @cached_property
    def environment(self) -> dict:
        """Machine, versions, device, precision and seconds of training."""
        return json.loads((self.path / "environment.json").read_text())

    @property
    def weights(self) -> Path:
        return self.path / "weights.safetensors"

    def load(self, device="cpu"):
        """The trained network in eval mode. Raises RunError where the run kept no weights."""
        return load_network(self.weights, self.config, len(self.scheme), device)


def config_of(record: dict, path: Path) -> RunConfig:
    """The RunConfig in a run's record, which was read below `path`. Raises RunError for one of another version of this software."""
    try:
        return RunConfig().with_(**record["config"])
    except ConfigError as error:
        raise RunError(f"{path}: made by another version of this software ({error}); train it again") from None


def run_name(config: RunConfig, data: str, scheme: str, teacher: str | None = None) -> str:
    """`<role>-<hash>` of everything that the result depends on."""
    return f"{config.role}-{digest([config.resolved(), data, scheme, teacher, training_code()])[:12]}"


@cache
def training_code() -> str:
    """Hash of the code that a trained network depends on; comments and docstrings do not count."""
    return source_digest(*(_PACKAGE / part for part in _TRAINING_CODE))


def round_weights(state: dict) -> dict:
    """A state dict with its matrices and kernels rounded to float16 and all else (biases, norms, statistics) as it is.

    Weights are saved like this; networks are evaluated after the rounding, so that saved metrics belong to saved weights.
    """
    import torch

    return {name: (t.half() if t.is_floating_point() and t.ndim >= 2 else t).detach().cpu().contiguous(memory_format=torch.contiguous_format)
            for name, t in state.items()}


def save_weights(state: dict, path: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a state dict as safetensors."""
    from safetensors.torch import save_file

    save_file({name: t.clone() for name, t in state.items()}, path, metadata=metadata)


def load_network(path: Path, config: RunConfig, stages: int, device="cpu"):
    """The network of `config` (a StagingNet, or a Detector) with the weights in `path`, in eval mode on `device`.

    Raises RunError for absent, broken or unfitting weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except FileNotFoundError:
        raise RunError(f"{path}: the weights of this run were not kept; train it again with `sos train {config.role}`") from None
    except (OSError, SafetensorError) as error:
        raise RunError(f"{path}: not readable as safetensors ({error}); copy or train the run again") from None
    if config.role == "detector":
        from .detector import Detector  # by way of fastai, which takes seconds to import

        net = Detector(config)
    else:
        from ..method.models import build

        net = build(config, stages)
    try:
        net.load_state_dict({name: t.float() if t.is_floating_point() else t for name, t in state.items()})
    except RuntimeError as error:
        raise RunError(f"{path}: weights do not fit {config.backbone} ({str(error).splitlines()[-1].strip()})") from None
    return net.to(device).eval()


def find_runs(folder: Path, role: str | None = None) -> list[Run]:
    """Finished runs in `folder` (`runs/<profile>/models`), newest last."""
    paths = [p.parent for p in Path(folder).glob(f"{role or '[!.]*'}-*/config.json")]  # a name with a dot is of a run not yet whole
    return [Run(path) for path in sorted(paths, key=lambda p: (p / "config.json").stat().st_mtime)]


def machine_record(device: str) -> dict:
    """Names and versions of the machine that is computing: what a reader needs to judge a time. Nothing that names a person or a host."""
    import os

    import torch

    record = {"python": platform.python_version(), "system": platform.system(), "processor": _processor(), "threads": torch.get_num_threads(),
              "cores": len(os.sched_getaffinity(0)), "device": device}
    if device.startswith("cuda"):
        record["gpu"] = torch.cuda.get_device_name(device)
        record["cuda"] = torch.version.cuda
    return record | {name: version(name) for name in ("torch", "torchvision", "fastai", "numpy", "pydicom")}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor() or platform.machine())


RELEASED = _PACKAGE / "weights"  # the student that ships with the package
RELEASE_LIMIT_MB = 12


def release(run: Run) -> Path:
    """Make `run`, a student, the one that ships with the package: weights, record and model card. Returns their folder.

    Raises RunError for another role, for a run without weights, or for weights above RELEASE_LIMIT_MB.
    """
    import shutil

    if run.config.role != "student":
        raise RunError(f"{run.name}: only a student is released; this is a {run.config.role}")
    if not run.weights.is_file():
        raise RunError(f"{run.name}: its weights were not kept; train it again with `sos train student`")
    size_mb = run.weights.stat().st_size / 1e6
    if size_mb > RELEASE_LIMIT_MB:
        raise RunError(f"{run.name}: {size_mb:.1f} MB of weights; a release holds at most {RELEASE_LIMIT_MB} MB, choose a smaller backbone")
    RELEASED.mkdir(exist_ok=True)
    shutil.copyfile(run.weights, RELEASED / "student.safetensors")
    record = run.record | {"run": run.name, "profile": run.path.parents[1].name, "metrics": run.metrics, "environment": run.environment,
                           "held_out": len(run.test), "temperature_scale": run.temperature_scale}
    (RELEASED / "student.json").write_text(json.dumps(record, indent=1) + "\n")
    (RELEASED / "MODEL_CARD.md").write_text(model_card(record))
    return RELEASED


def model_card(record: dict) -> str:
    """The model card of a released student, every number from its run's record."""
    people = "virtual patients" if record["virtual"] else "patients"
    names = {"accuracy": "accuracy", "f1": "F1 (weighted)", "kappa": "quadratic weighted kappa", "stage_error": "mean absolute stage error",
             "within_one": "within one stage", "auroc": "AUROC", "ece": "expected calibration error", "pointing": "Grad-CAM peak inside the box"}
    rows = "\n".join(f"| {title} | {m['value']:.3f} | {m['low']:.3f} to {m['high']:.3f} |" for name, title in names.items()
                     if (m := record["metrics"].get(name)))
    config, environment = record["config"], record["environment"]
    looks = ("" if config.get("looks", 1) == 1 else f" It looks twice in one pass: at the image reduced to {config['glance_px']} px, where it aims "
             f"a window,\n  and at that window with {config['window_px']} px.")
    warning = ("**Trained and tested on virtual patients only.** These figures say nothing about real images; on those its stages are a "
               "demonstration." if record["virtual"] else "Trained and tested on the cohort of one group; test it on your own before any use.")
    return f"""# Model card: released student

{warning}

- **What it is.** A {config['backbone']} that stages fusion of the spheno-occipital synchondrosis ({get_scheme(record['scheme']).source}) on a
  whole mid-sagittal CBCT image, {config['frame_px']} px, trained by distillation from a teacher on crops.{looks}
- **Training.** Run `{record['run']}` of the profile `{record['profile']}`: {record['patients']} {people} in all, {config['epochs']} epochs,
  seed {config['seed']}, {environment['seconds']:.0f} s on {environment.get('gpu', environment['processor'])}, {environment['precision']};
  torch {environment['torch']}, fastai {environment['fastai']}. Teacher: `{record['teacher']}`.
- **Made by** `./run_all.sh --profile {record['profile']}`, then `sos release` with the folder of the run.
- **Files.** `student.safetensors` (matrices in float16), `student.json` (configuration, data and code hashes, all metrics).

| on {record['held_out']} held-out {people} | value | 95 % interval |
|---|---|---|
{rows}

Each image and its mirror image are seen as one batch and their probabilities averaged, so it does not matter which way a head faces. Then they
are calibrated by the temperature {record.get("temperature_scale", 1.0):.2f} (`temperature_scale` in `student.json`; 1: as they are), which changes
no stage; it was fitted on the validation images. The figures above are those of the image alone, before calibration; table `trust` of the profile
has those of the calibrated mean.

**Use it for** trying the software, teaching, and as a starting point for research.
**Do not use it for** diagnosis, treatment planning, age estimation of a person, or any other decision about a person. It has no regulatory
approval. It has not been validated on any population, scanner or age group of real patients.
"""
