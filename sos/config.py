"""Every number of the project that is a choice, in one place: what one training run is (`RunConfig`) and what a profile is (`Profile`).

Where the paper is silent (weights of the terms, optimiser, image size, backbone, attention distance) the choice is a named field here, its
reason stands in `CHOICES`, and notebook 05 varies it in the groups of `GROUPS`.
"""

import ast
import difflib
import hashlib
import itertools
import json
import math
import os
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path

from .errors import ConfigError

ROLES = ("teacher", "baseline", "student")
BACKBONES = ("resnet16_half", "resnet18_half", "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny")
ATTENTION_DISTANCES = ("kl", "cosine", "mse")
CAM_TARGETS = ("label", "teacher")
EVIDENCES = ("share", "plain")
STUDENT_INITS = ("teacher", "scratch")
PRECISIONS = ("auto", "bf16", "fp32")


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
    (("dropout", "box_jitter"), lambda value: 0 <= value < 1, "at least 0 and below 1"),
    (("label_share",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
)


@dataclass(frozen=True)
class RunConfig:
    """One training run. Flat, typed; its resolved form and its data name the folder of the run."""

    role: str = "student"  # teacher: expert's window; baseline: full frame, plain; student: full frame, distilled
    seed: int = 0

    # network
    backbone: str = "resnet16_half"  # one of BACKBONES; ResNet-18 with half the channels and without its last block, see models
    output_stride: int = 16  # pixels of input a cell of the last feature map, 16 or 32
    pretrained: bool = False  # ImageNet weights through torchvision
    dropout: float = 0.0  # on the features before the classifier

    # pictures
    frame_px: int = 192  # side of the square full image that baseline and student see
    window_px: int = 96  # side of the square window that the teacher sees
    window_scale: float = 1.0  # side of the teacher's window over the longer side of the expert's box; a student takes its teacher's
    box_jitter: float = 0.0  # in training the expert's box is moved and resized at random by up to this share of its sides

    # one random transform a patient, shared by both cameras
    rotate_deg: float = 8.0  # uniform in ±
    zoom: float = 0.08  # log-uniform in ±
    shift: float = 0.06  # of the frame's side, uniform in ±
    flip: float = 0.5  # probability of a left-right mirror
    gain: float = 0.15  # contrast, log-uniform in ±
    offset: float = 0.05  # brightness, uniform in ±
    gamma: float = 0.15  # log-uniform in ±
    noise: float = 0.01  # largest standard deviation of added Gaussian noise

    label_share: float = 1.0  # of the training patients, those that are used; each image the more often, so that the steps stay as many

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
    attn_distance: str = "kl"  # one of ATTENTION_DISTANCES
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
        unused = {"teacher": (*_DISTILLATION, "frame_px"), "baseline": (*_DISTILLATION, *window, "box_jitter"), "student": window}
        return {key: value for key, value in values.items() if key not in unused[self.role]}

    def with_(self, **changes) -> "RunConfig":
        """A copy with `changes`. Raises ConfigError for an unknown name, with the nearest known one."""
        return replace(self, **_known(RunConfig, changes))


_DISTILLATION = ("w_cls", "w_dist", "w_attn", "temperature", "attn_distance", "evidence", "cam_target", "student_init")
_SHARED = ("label_share", "box_jitter", "window_scale")  # a student that changes one of these needs a teacher that does


@dataclass(frozen=True)
class Group:
    """A choice that an ablation varies: `settings` are changed together in the networks of `roles`; `row` is the format of a row's name."""

    title: str
    question: str
    settings: tuple[str, ...]
    row: str
    roles: tuple[str, ...] = ("student",)
    relative: bool = False  # a profile's values are factors of its own setting
    axis: str = ""  # under the group's curve; none: no curve


GROUPS = {
    "terms": Group("the three terms", "Which of the three terms does the work?", ("w_cls", "w_dist", "w_attn"), ""),
    "temperature": Group("the temperature", "Does the temperature of the logits matter?", ("temperature",), "T = {:g}", axis="temperature T"),
    "weights": Group("the weights of L_dist and L_attn", "How finely must the weights be tuned?", ("w_dist", "w_attn"),
                     "w_dist = {:g}, w_attn = {:g}", relative=True, axis="w_attn"),
    "attn_distance": Group("the attention distance", "How should two heat maps be compared?", ("attn_distance",), "distance: {}"),
    "evidence": Group("how spatial logits are compared", "Must the student's spatial logits be scaled by the window's share of the frame?",
                      ("evidence",), "evidence: {}"),
    "cam_target": Group("what Grad-CAM explains", "Should the maps explain the reader's label or the teacher's decision?", ("cam_target",),
                        "explained: {}"),
    "output_stride": Group("the grid of the last feature map", "Must the student's feature map be fine?", ("output_stride",), "stride {}"),
    "frame_px": Group("the resolution of the full image", "Is the student only as good as its image is sharp?", ("frame_px",), "{} px",
                      ("baseline", "student"), relative=True, axis="side of the full image, px"),
    "window_scale": Group("the teacher's window", "How much round the joint must the teacher see?", ("window_scale",), "window × {:g}",
                          ("teacher", "student"), axis="side of the window over that of the box"),
    "box_jitter": Group("the care with which boxes are drawn", "Must the expert draw the boxes with care?", ("box_jitter",),
                        "jitter {:.0%}", ("teacher", "student"), axis="jitter of the box, share of its sides"),
    "label_share": Group("the number of labelled patients", "How many labelled patients does each network need?", ("label_share",),
                         "{:.0%} of the patients", ("teacher", "baseline", "student"), axis="training patients"),
    "student_init": Group("the student's first weights", "Should the student begin from its teacher's weights?", ("student_init",),
                          "begins from: {}"),
}


@dataclass(frozen=True)
class Ablation:
    """A group as a profile trains it. rows: name → one run a seed; reference: name → the row it is compared with, itself for a reference."""

    name: str
    rows: dict[str, list[RunConfig]]
    reference: dict[str, str]

    @property
    def group(self) -> Group:
        return GROUPS[self.name]


@dataclass(frozen=True)
class Choice:
    """Why a setting is as it is; the `groups` that measure it, or why it is not varied."""

    reason: str
    groups: tuple[str, ...] = ()
    fixed: str = ""
    whose: str = "ours"


_LIGHT = "as scanners and their settings differ"
_TURN = "as heads are held, for both cameras alike; less where epochs are few"
CHOICES = {  # every setting of a run, and what else the paper's public record leaves open
    "role": Choice("the paper's two networks, and the plain one that both are measured by", fixed="all are trained, table headline"),
    "seed": Choice("one training says little about the next", fixed="its spread stands in table seeds"),
    "valid_share": Choice("enough for calibration, and labels are few", fixed="a new split would be new test patients"),
    "test_share": Choice("narrow intervals cost training patients", fixed="a new split would be new test patients"),
    "w_cls": Choice("1 is the unit of the other weights", ("terms",)),
    "w_dist": Choice("chosen with w_attn on other virtual patients", ("terms", "weights")),
    "w_attn": Choice("chosen with w_dist on other virtual patients", ("terms", "weights")),
    "temperature": Choice("published", ("temperature",), whose="the paper's"),
    "attn_distance": Choice("KL compares the maps as distributions over places", ("attn_distance",)),
    "evidence": Choice("a student silent outside the window can then agree with the teacher there and on the image", ("evidence",)),
    "cam_target": Choice("the label is what the student is to learn; a teacher errs", ("cam_target",)),
    "cam_layer": Choice("its maps come from the very features that are judged", fixed="the head knows one feature map"),
    "backbone": Choice("small enough for the profile's time", fixed="one network for all keeps comparisons fair"),
    "output_stride": Choice("at 32 the joint would be one cell of a frame", ("output_stride",)),
    "pretrained": Choice("results hang on no download", fixed="ImageNet weights need the network once"),
    "dropout": Choice("weight decay and augmentation regularise already", fixed="the same in every row"),
    "student_init": Choice("teacher and student need not be of one architecture", ("student_init",)),
    "frame_px": Choice("as fine as the profile's time allows", ("frame_px",)),
    "window_px": Choice("the box fills it, so the joint is seen finer than in a frame", fixed="window_scale varies what it shows"),
    "native_px": Choice("cached images are finer than any frame", fixed="networks see frames and windows sampled from them"),
    "window_scale": Choice("the expert's box as it was drawn", ("window_scale",)),
    "box_jitter": Choice("boxes as they were drawn", ("box_jitter",)),
    "label_share": Choice("all labelled patients", ("label_share",)),
    "rotate_deg": Choice(_TURN, fixed="the same in every row"),
    "zoom": Choice(_TURN, fixed="the same in every row"),
    "shift": Choice(_TURN, fixed="the same in every row"),
    "flip": Choice("heads face either way, in the virtual cohort one in ten to the left; less where epochs are few",
                   fixed="measured on mirrored images, table mirror"),
    "gain": Choice(_LIGHT, fixed="the same in every row"),
    "offset": Choice(_LIGHT, fixed="the same in every row"),
    "gamma": Choice(_LIGHT, fixed="the same in every row"),
    "noise": Choice(_LIGHT, fixed="the same in every row"),
    "optimiser": Choice("fastai's usual; clipped for the rare spikes of the gradient through a heat map", fixed="the same in every row"),
    "epochs": Choice("what the profile's time allows", fixed="the same in every row"),
    "batch_size": Choice("enough steps in the profile's epochs", fixed="the same in every row"),
    "lr": Choice("chosen on other virtual patients", fixed="the same in every row"),
    "weight_decay": Choice("a usual one for AdamW", fixed="the same in every row"),
    "precision": Choice("bf16 where the processor has it, for time", fixed="the run's own is saved with it"),
}


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
    without_labels: bool = True  # whether the ablation of the terms holds the subsets without L_cls too
    varied: dict[str, tuple] = field(default_factory=dict)  # names of GROUPS → the values trained beside the profile's own
    difficulties: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)  # of fresh virtual patients on whom the trained networks are tested
    difficulty_patients: int = 500  # of them, the same people at each difficulty

    def run(self, role: str, seed: int | None = None) -> RunConfig:
        """The main run of `role` with `seed` (the profile's first where None)."""
        if role not in ROLES:
            raise ConfigError(f"no role '{role}'; known: {', '.join(ROLES)}")
        return getattr(self, role).with_(seed=self.seeds[0] if seed is None else seed)

    def teacher_of(self, config: RunConfig) -> RunConfig:
        """The teacher that the student `config` learns from: the main one of its seed, changed where the student changes what both share."""
        changed = {name: getattr(config, name) for name in _SHARED if getattr(config, name) != getattr(self.student, name)}
        return self.run("teacher", config.seed).with_(**changed)

    def ablations(self) -> dict[str, Ablation]:
        """The ablations that the profile trains, by the names of GROUPS: the three terms, and the groups in `varied`."""
        return {"terms": self._terms()} | {name: self._vary(name) for name in GROUPS if name in self.varied}

    def _terms(self) -> Ablation:
        """Every subset of the three terms against all of them.

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
        return Ablation("terms", rows, dict.fromkeys(rows, list(rows)[-1]))

    def _vary(self, name: str) -> Ablation:
        """A group's settings at each value (several settings: at each combination) and at the profile's own, the reference of its role."""
        group, rows, reference = GROUPS[name], {}, {}

        def named(role, values):
            return (f"{role}, " if len(group.roles) > 1 else "") + group.row.format(*values).replace("%", " %")

        for role in group.roles:
            base = getattr(self, role)
            own = tuple(getattr(base, setting) for setting in group.settings)
            combined = list(itertools.product(self.varied[name], repeat=len(own)))
            if group.relative:
                combined = [tuple(type(o)(float(f"{o * v:.6g}")) for o, v in zip(own, values, strict=True)) for values in combined]
            combined = list(dict.fromkeys([own, *combined]))
            for values in combined if isinstance(own[0], str) else sorted(combined):
                row = named(role, values)
                changed = base.with_(**dict(zip(group.settings, values, strict=True)))
                rows[row] = [changed.with_(seed=seed) for seed in self.ablation_seeds]
                reference[row] = named(role, own)
        return Ablation(name, rows, reference)

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
        _profile("smoke", patients=96, cohort_seed=1, seeds=(0,), bootstrap=200, native_px=512,
                 varied=dict(temperature=(1.0,), weights=(10.0,), box_jitter=(0.2,), label_share=(0.5,)),
                 difficulties=(0.0, 1.0, 2.0), difficulty_patients=24,
                 common=dict(frame_px=96, window_px=64, epochs=2, batch_size=16)),
        # at most 20 minutes on two cores: shows the effects
        _profile("quick", patients=1800, cohort_seed=4, seeds=(0,), bootstrap=2000, without_labels=False,
                 difficulty_patients=80,  # few: they are the same at each difficulty, so differences are paired
                 # few epochs: on whole images small batches, for more steps, and little variation beside that of patients and scanners;
                 # on crops, which are learned by heart soon, more of it
                 common=dict(frame_px=192, window_px=96, epochs=12, batch_size=8, lr=1e-3, flip=0.0, rotate_deg=4.0, zoom=0.05, shift=0.03),
                 teacher=dict(epochs=16, batch_size=16, lr=1.5e-3, flip=0.2, rotate_deg=8.0, zoom=0.08, shift=0.06)),
        # the paper's size on one GPU: 723 patients, five seeds
        _profile("paper", patients=723, cohort_seed=3, seeds=(0, 1, 2, 3, 4), bootstrap=10000, ablation_seeds=(0, 1, 2, 3, 4),
                 native_px=1024,
                 varied=dict(temperature=(1.0, 2.0, 5.0, 8.0), weights=(0.1, 1.0, 10.0), attn_distance=ATTENTION_DISTANCES, evidence=EVIDENCES,
                             cam_target=CAM_TARGETS, output_stride=(16, 32), frame_px=(0.5, 0.75, 1.0), window_scale=(0.75, 1.5),
                             box_jitter=(0.1, 0.25), label_share=(0.1, 0.25, 0.5), student_init=STUDENT_INITS),
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
