"""Every number of the project that is a choice, in one place: what one training run is (`RunConfig`) and what a profile is (`Profile`).

Where the paper is silent (weights of the terms, optimiser, image size, backbone, attention distance) the choice is a named field here, its
reason beside it, and notebook 05 varies it.
"""

import ast
import difflib
import hashlib
import json
import math
import os
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from .errors import ConfigError

ROLES = ("teacher", "baseline", "student")
BACKBONES = ("resnet16_half", "resnet18_half", "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny")
ATTENTION_DISTANCES = ("kl", "cosine", "mse")
CAM_TARGETS = ("label", "teacher")
EVIDENCES = ("share", "plain")
STUDENT_INITS = ("teacher", "scratch")
PRECISIONS = ("auto", "bf16", "fp32")

RUN_ATTEMPTS = 4  # in all, of a run of `sos grid` whose process or machine dies; each goes on from the last epoch of the one before


def _known(cls, changes: dict) -> dict:
    names = [f.name for f in fields(cls)]
    for name in changes:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=1)
            raise ConfigError(f"no setting '{name}'" + (f"; did you mean '{near[0]}'?" if near else f"; known: {', '.join(names)}"))
    return changes


def _check_types(config) -> None:
    for f in fields(config):
        value = getattr(config, f.name)
        right = isinstance(value, f.type) and not (f.type is not bool and isinstance(value, bool))
        if f.type is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(config, f.name, float(value))
        elif not right:
            raise ConfigError(f"{f.name} = {value!r} is not of type {f.type.__name__}")


_RANGES = (
    (("epochs", "batch_size", "frame_px", "window_px"), lambda value: value >= 1, "at least 1"),
    (("lr", "temperature", "window_scale"), lambda value: 0 < value < math.inf, "above 0"),
    (("weight_decay", "rotate_deg", "zoom", "shift", "gain", "offset", "gamma", "noise", "w_cls", "w_dist", "w_attn"),
     lambda value: 0 <= value < math.inf, "0 or above"),
    (("flip",), lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
    (("dropout",), lambda value: 0 <= value < 1, "at least 0 and below 1"),
)


@dataclass(frozen=True)
class RunConfig:
    """One training run. Flat, typed; its resolved form and its data name the folder of the run."""

    role: str = "student"  # teacher: expert's window; baseline: full frame, plain; student: full frame, distilled
    seed: int = 0

    # network
    backbone: str = "resnet16_half"  # one of BACKBONES; ResNet-18 with half the channels and without its last block, see models
    output_stride: int = 16  # pixels of input a cell of the last feature map: 32 is cheaper, but then the joint is one cell of a frame
    pretrained: bool = False  # ImageNet weights through torchvision; needs the network once, so never the default
    dropout: float = 0.0  # on the features before the classifier

    # pictures
    frame_px: int = 192  # side of the square full image that baseline and student see
    window_px: int = 96  # side of the square window that the teacher sees
    window_scale: float = 1.0  # side of the teacher's window over the longer side of the expert's box

    # one random transform a patient, shared by both cameras
    rotate_deg: float = 8.0  # uniform in ±
    zoom: float = 0.08  # log-uniform in ±
    shift: float = 0.06  # of the frame's side, uniform in ±
    flip: float = 0.5  # probability of a left-right mirror: heads face either way, in the virtual cohort one in ten to the left
    gain: float = 0.15  # contrast, log-uniform in ±
    offset: float = 0.05  # brightness, uniform in ±
    gamma: float = 0.15  # log-uniform in ±
    noise: float = 0.01  # largest standard deviation of added Gaussian noise

    # optimisation: AdamW under fastai's one-cycle schedule
    epochs: int = 8
    batch_size: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    precision: str = "auto"  # auto: bf16 on CUDA and on CPUs with avx512_bf16, else fp32; the resolved one is saved with the run

    # distillation (student only); L_total = w_cls L_cls + w_dist L_dist + w_attn L_attn
    w_cls: float = 1.0
    w_dist: float = 0.5
    w_attn: float = 0.1
    temperature: float = 3.0  # the paper's T
    attn_distance: str = "kl"  # one of ATTENTION_DISTANCES: the paper names none; KL compares the maps as distributions over places
    evidence: str = "share"  # one of EVIDENCES: how the student's spatial logits are scaled before they are compared, see losses
    cam_target: str = "label"  # whose class both Grad-CAMs explain in training: the reader's label, or the teacher's decision
    student_init: str = "scratch"  # or teacher: begin from the teacher's weights (same backbone only)

    def __post_init__(self):
        _check_types(self)
        for name, allowed in (("role", ROLES), ("backbone", BACKBONES), ("attn_distance", ATTENTION_DISTANCES), ("cam_target", CAM_TARGETS),
                              ("evidence", EVIDENCES),
                              ("student_init", STUDENT_INITS), ("precision", PRECISIONS), ("output_stride", (16, 32))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is not one of {', '.join(map(str, allowed))}")
        for names, right, words in _RANGES:
            for name in names:
                if not right(getattr(self, name)):
                    raise ConfigError(f"{name} = {getattr(self, name)} must be {words}")
        if self.role == "student" and self.w_cls == self.w_dist == self.w_attn == 0:
            raise ConfigError("all weights of the student's loss are 0; give w_cls, w_dist or w_attn a positive value")

    def resolved(self) -> dict:
        """What this run depends on: fields that its role does not use are left out, so that changing them leaves the run as it is."""
        values = asdict(self)
        window = ("window_px", "window_scale")  # a student learns from its teacher's own window
        unused = {"teacher": (*_DISTILLATION, "frame_px"), "baseline": (*_DISTILLATION, *window), "student": window}
        return {key: value for key, value in values.items() if key not in unused[self.role]}

    def with_(self, **changes) -> "RunConfig":
        """A copy with `changes`. Raises ConfigError for an unknown name, with the nearest known one."""
        return replace(self, **_known(RunConfig, changes))


_DISTILLATION = ("w_cls", "w_dist", "w_attn", "temperature", "attn_distance", "evidence", "cam_target", "student_init")


@dataclass(frozen=True)
class Profile:
    """A size of the whole study. All profiles run the same code; they differ in these numbers only."""

    name: str
    patients: int
    cohort_seed: int
    seeds: tuple[int, ...]  # of teacher, baseline and student
    teacher: RunConfig
    baseline: RunConfig
    student: RunConfig
    scheme: str = "bassed5"
    valid_share: float = 0.10
    test_share: float = 0.25
    native_px: int = 768  # cached images larger than this on their longer side are reduced to it
    bootstrap: int = 2000  # resamples over patients behind each 95 % interval
    ablation_seeds: tuple[int, ...] = (0,)
    temperatures: tuple[float, ...] = (1.0, 3.0, 8.0)
    without_labels: bool = True  # whether the ablation holds the subsets without L_cls too
    difficulties: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)  # of fresh virtual patients on whom the trained networks are tested
    difficulty_patients: int = 500  # of them, the same people at each difficulty

    def run(self, role: str, seed: int | None = None) -> RunConfig:
        """The main run of `role` with `seed` (the profile's first where None)."""
        if role not in ROLES:
            raise ConfigError(f"no role '{role}'; known: {', '.join(ROLES)}")
        return getattr(self, role).with_(seed=self.seeds[0] if seed is None else seed)

    def ablations(self) -> dict[str, list[RunConfig]]:
        """Rows of the ablation table: every subset of the three terms, then temperatures; each with one run a seed.

        The subset with only L_cls is the plain full-image network itself, and the full set the student: the profile's main runs.
        """
        rows = {}
        subsets = ((1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1), (1, 1, 1))
        for cls, dist, attn in [subset for subset in subsets if subset[0] or self.without_labels]:
            terms = [f"L_{name}" for name, on in (("cls", cls), ("dist", dist), ("attn", attn)) if on]
            if (cls, dist, attn) == (1, 0, 0):
                base = self.baseline
            else:
                base = self.student.with_(w_cls=self.student.w_cls * cls, w_dist=self.student.w_dist * dist,
                                          w_attn=self.student.w_attn * attn)
            rows[" + ".join(terms)] = [base.with_(seed=seed) for seed in self.ablation_seeds]
        for temperature in self.temperatures:
            if temperature != self.student.temperature:
                rows[f"all, T = {temperature:g}"] = [self.student.with_(temperature=temperature, seed=seed)
                                                     for seed in self.ablation_seeds]
        return rows

    def resolved(self) -> dict:
        """Every number of the profile, as saved beside its results."""
        values = asdict(self)
        for role in ROLES:
            values[role] = getattr(self, role).resolved()
        return values


def _profile(name, *, common, teacher=None, baseline=None, student=None, **rest) -> Profile:
    common = RunConfig(**common)
    return Profile(name=name, teacher=common.with_(role="teacher", **(teacher or {})), baseline=common.with_(role="baseline", **(baseline or {})),
                   student=common.with_(role="student", **(student or {})), **rest)


PROFILES = {
    profile.name: profile
    for profile in (
        # minutes on two cores: shows that everything runs; its figures mean nothing
        _profile("smoke", patients=96, cohort_seed=1, seeds=(0,), bootstrap=200, temperatures=(1.0, 3.0), native_px=512,
                 difficulties=(0.0, 1.0, 2.0), difficulty_patients=24,
                 common=dict(frame_px=96, window_px=64, epochs=2, batch_size=16)),
        # at most 20 minutes on two cores: shows the effects
        _profile("quick", patients=1800, cohort_seed=4, seeds=(0,), bootstrap=2000, temperatures=(3.0,), without_labels=False,
                 difficulty_patients=80,  # few: they are the same at each difficulty, so differences are paired
                 # few epochs: on whole images small batches, for more steps, and little variation beside that of patients and scanners;
                 # on crops, which are learned by heart soon, more of it
                 common=dict(frame_px=192, window_px=96, epochs=12, batch_size=8, lr=1e-3, flip=0.0, rotate_deg=4.0, zoom=0.05, shift=0.03),
                 teacher=dict(epochs=16, batch_size=16, lr=1.5e-3, flip=0.2, rotate_deg=8.0, zoom=0.08, shift=0.06)),
        # the paper's size on one GPU: 723 patients, five seeds
        _profile("paper", patients=723, cohort_seed=3, seeds=(0, 1, 2, 3, 4), bootstrap=10000, ablation_seeds=(0, 1, 2, 3, 4),
                 temperatures=(1.0, 2.0, 3.0, 5.0, 8.0), native_px=1024,
                 common=dict(backbone="resnet18", frame_px=448, window_px=224, epochs=60, batch_size=32, lr=1e-3)),
    )
}


def get_profile(name: str) -> Profile:
    """The profile called `name`. Raises ConfigError naming the known ones."""
    if name not in PROFILES:
        raise ConfigError(f"no profile '{name}'; known: {', '.join(PROFILES)}")
    return PROFILES[name]


def home() -> Path:
    """Where `runs/` and `figures/` lie: $SOS_HOME, else the checkout that holds this package, else the current folder."""
    if os.environ.get("SOS_HOME"):
        return Path(os.environ["SOS_HOME"])
    checkout = Path(__file__).resolve().parents[1]
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def runs_dir(profile: str, cohort: str | os.PathLike = "") -> Path:
    """Folder of a profile's results: `runs/<profile>`; for one's own cohort `runs/<profile>-<first 8 digits of the manifest's hash>`."""
    if not cohort:
        return home() / "runs" / profile
    try:
        digest = hashlib.sha256(Path(cohort).read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{cohort}: cannot read this manifest ({error.strerror}); give the path of a cohort's CSV file") from None
    return home() / "runs" / f"{profile}-{digest[:8]}"


def digest(value) -> str:
    """SHA-256 of a JSON-able value, the same for the same content on any machine."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def source_digest(*paths: Path) -> str:
    """SHA-256 of what Python files do: their syntax trees without docstrings, so that comments and layout do not count.

    A folder stands for all Python files in it.
    """
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    state = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        state.update(f"{file.name} {ast.dump(tree)}\n".encode())
    return state.hexdigest()


def parse_overrides(pairs: list[str]) -> dict:
    """`["lr=1e-3", "flip=0"]` to typed values of RunConfig. Raises ConfigError for unknown names and values of the wrong type."""
    changes = {}
    types = {f.name: f.type for f in fields(RunConfig)}
    for pair in pairs:
        name, sep, text = pair.partition("=")
        if not sep:
            raise ConfigError(f"'{pair}' is not of the form name=value")
        _known(RunConfig, {name: text})
        kind = types[name]
        try:
            changes[name] = {"true": True, "false": False}[text.lower()] if kind is bool else kind(text)
        except (ValueError, KeyError):
            raise ConfigError(f"{name} = {text!r} is not of type {kind.__name__}") from None
    return changes
