"""Every number of the project that is a choice, in one place: what one training run is (`RunConfig`) and what a profile is (`Profile`).

Where the paper is silent (weights of the terms, optimiser, image size, backbone, attention distance) the choice is a named field here, its
reason stands in `choices`, and notebook 05 varies it in the groups that are listed there.
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

from .choices import GROUPS, Ablation
from .errors import ConfigError

ROLES = ("teacher", "baseline", "student", "detector")
MODELS = ("teacher", "baseline", "student", "zoom")  # main models of a profile: the three of the paper, and a student that looks twice
TAUGHT_ROLES = ("student", "detector")  # those whose run needs a teacher: to learn from, or to stage what was found
BACKBONES = ("resnet16_half", "resnet16_pool_first", "resnet18_half", "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny",
             "convnext_tiny_attention")
ATTENTION_DISTANCES = ("kl", "cosine", "mse")
CAM_TARGETS = ("label", "teacher")
CAM_LAYERS = ("last", "previous")
EVIDENCES = ("share", "plain", "none")
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
    (("seed",), lambda value: 0 <= value < 2**32, "from 0 to 4294967295"),
    (("epochs", "batch_size", "frame_px", "window_px", "glance_px"), lambda value: value >= 1, "at least 1"),
    (("lr", "temperature", "window_scale"), lambda value: 0 < value < math.inf, "above 0"),
    (("weight_decay", "rotate_deg", "zoom", "shift", "gain", "offset", "gamma", "noise", "w_cls", "w_dist", "w_attn", "w_aim"),
     lambda value: 0 <= value < math.inf, "0 or above"),
    (("flip", "min_score"), lambda value: 0 <= value <= 1, "a probability from 0 to 1"),
    (("dropout", "progressive", "box_jitter"), lambda value: 0 <= value < 1, "at least 0 and below 1"),
    (("label_share",), lambda value: 0 < value <= 1, "above 0 and at most 1"),
)


@dataclass(frozen=True)
class RunConfig:
    """One training run. Flat, typed; its resolved form and its data name the folder of the run."""

    role: str = "student"  # teacher: expert's window; baseline: full frame, plain; student: full frame, distilled; detector: finds the window
    seed: int = 0

    # network
    backbone: str = "resnet16_half"  # one of BACKBONES; ResNet-18 with half the channels and without its last block, see backbones
    output_stride: int = 16  # pixels of input a cell of the last feature map, 16 or 32
    pretrained: bool = False  # ImageNet weights through torchvision
    dropout: float = 0.0  # on the features before the classifier
    looks: int = 1  # 1: as in the paper; 2, not for teachers: a glance at the reduced frame aims a window, which is then seen closely, see zoom
    glance_px: int = 96  # side of the reduced frame at the first of two looks; the second has window_px
    aim_gradient: bool = False  # whether the losses of the second look move the window too; without L_aim they alone teach where to look

    cam_layer: str = "last"  # one of CAM_LAYERS: which map Grad-CAM explains, in L_attn and in evaluation; previous: before the last stage

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
    leak: bool = False  # a mistake made on purpose, teacher only: the held-out images are among those of training, see mistakes

    # optimisation: AdamW under fastai's one-cycle schedule
    epochs: int = 8
    batch_size: int = 16
    lr: float = 1.5e-3
    weight_decay: float = 0.05
    progressive: float = 0.0  # share of the epochs over which residual blocks join, from shallow to deep, see progressive; 0: all from the start
    precision: str = "auto"  # auto: bf16 on CUDA and on CPUs with avx512_bf16, else fp32; the resolved one is saved with the run

    # distillation (student only); L_total = w_cls L_cls + w_dist L_dist + w_attn L_attn
    w_cls: float = 1.0
    w_dist: float = 0.5
    w_attn: float = 0.1
    temperature: float = 3.0  # the paper's T
    attn_distance: str = "kl"  # one of ATTENTION_DISTANCES
    evidence: str = "share"  # one of EVIDENCES: how the student's spatial logits are scaled before they are compared, see losses
    cam_target: str = "label"  # whose class both Grad-CAMs explain in training: the reader's label, or the teacher's decision
    w_aim: float = 1.0  # of L_aim, own window against the teacher's; only for a student that looks twice
    student_init: str = "scratch"  # or teacher: begin from the teacher's weights (same backbone only)
    teacher_backbone: str = ""  # of the teacher that the student learns from; empty: the profile's

    # detector only
    min_score: float = 0.2  # a box is an answer above this score, else the joint is missed; FCOS's own default in torchvision

    def __post_init__(self):
        _check_types(self)
        for name, allowed in (("role", ROLES), ("backbone", BACKBONES), ("attn_distance", ATTENTION_DISTANCES), ("cam_target", CAM_TARGETS),
                              ("cam_layer", CAM_LAYERS), ("evidence", EVIDENCES), ("teacher_backbone", ("", *BACKBONES)), ("looks", (1, 2)),
                              ("student_init", STUDENT_INITS), ("precision", PRECISIONS), ("output_stride", (16, 32))):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} = {getattr(self, name)!r} is not one of {', '.join(str(value) or 'empty' for value in allowed)}")
        for names, right, words in _RANGES:
            for name in names:
                if not right(getattr(self, name)):
                    raise ConfigError(f"{name} = {getattr(self, name)} must be {words}")
        if self.role in ("teacher", "detector") and self.looks > 1:
            raise ConfigError(f"looks = 2 of a {self.role}: only baseline and student can look twice")
        if self.looks > 1 and not self.aim_gradient and (self.role == "baseline" or self.w_aim == 0):
            raise ConfigError("looks = 2 without L_aim: nothing would teach where to look; set aim_gradient=true, or w_aim above 0 for a student")
        if self.leak and self.role != "teacher":
            raise ConfigError(f"leak = true of a {self.role}: the mistake is made with a teacher only")
        if self.progressive > (self.epochs - 1) / self.epochs:
            raise ConfigError(f"progressive = {self.progressive} of {self.epochs} epochs leaves none for the whole network; make it smaller")
        if self.role == "student" and self.w_cls == self.w_dist == self.w_attn == 0:
            raise ConfigError("all weights of the student's loss are 0; give w_cls, w_dist or w_attn a positive value")

    def resolved(self) -> dict:
        """What this run depends on: fields that its role does not use are left out, so that changing them leaves the run as it is."""
        values = asdict(self)
        window = ("window_px", "window_scale")  # a student learns from its teacher's own window
        twice = ("looks", "glance_px", "aim_gradient", "w_aim")
        framed = ("frame_px", "cam_layer")  # a teacher's maps are, in its student's training, of the student's layer
        unused = {"teacher": (*_DISTILLATION, *framed, "min_score"), "baseline": (*_DISTILLATION, *window, "box_jitter", "min_score"),
                  "student": (*window, "min_score"), "detector": (*_DISTILLATION, *window, "cam_layer")}[self.role]
        unused = {*unused, *twice} if self.looks == 1 else set(unused) - {"window_px"}
        if not self.leak:
            unused.add("leak")
        return {key: value for key, value in values.items() if key not in unused}

    @property
    def said(self) -> str:
        """What rows of tables call a network of this role."""
        return "plain network" if self.role == "baseline" else self.role

    def with_(self, **changes) -> "RunConfig":
        """A copy with `changes`. Raises ConfigError for an unknown name, with the nearest known one."""
        return replace(self, **_known(RunConfig, changes))


PLAIN, CROP_TEACHER, PIPELINE = "plain full-image network", "crop teacher (needs a person)", "detector, then teacher"
LOGIT_ONLY, DISTILLED, STARTED = "logit-only distillation", "distilled student", "student started from the teacher"
TWICE, TWICE_SCRATCH, TWICE_ALONE = "two-look student", "two-look student from scratch", "two looks, labels only"
PLAIN_LONGER, TEACHER_LONGER = "plain network, trained twice as long", "crop teacher, trained longer"
_DISTILLATION = ("w_cls", "w_dist", "w_attn", "w_aim", "temperature", "attn_distance", "evidence", "cam_target", "student_init",
                 "teacher_backbone")
_SHARED = ("label_share", "box_jitter", "window_scale")  # a student that changes one of these needs a teacher that does


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
    zoom: RunConfig  # a student that looks twice
    detector: RunConfig
    at_once: int = 0  # runs trained side by side, on one GPU or on the cores, and then notebooks executed; 0: runs are trained in these, one by one
    run_gib: float = 2.0  # memory of a GPU that its largest run may take, CUDA's own and pixels included: no more go side by side than there is room for
    competitors_trained: tuple[str, ...] = ()  # those of `competitors` that this profile makes, beside the main runs; others: not yet run
    latency_images: int = 40  # on which the time from pixels to stage is measured, one at a time
    scheme: str = "bassed5"
    valid_share: float = 0.10
    test_share: float = 0.25
    native_px: int = 768  # cached images larger than this on their longer side are reduced to it
    bootstrap: int = 2000  # resamples over patients behind each 95 % interval
    ablation_seeds: tuple[int, ...] = (0,)
    network_seeds: tuple[int, ...] = (0,)  # of the table of networks
    without_labels: bool = True  # whether the ablation of the terms holds the subsets without L_cls too
    varied: dict[str, tuple] = field(default_factory=dict)  # names of GROUPS → the values trained beside the profile's own
    backbones: tuple[str, ...] = ()  # other networks of the table of networks, each as teacher, baseline and student of its own teacher
    teacher_backbones: tuple[str, ...] = ()  # networks that the table holds as teachers only
    progressive: float = 0.0  # of the table's rows on progressive training, main networks otherwise; 0: no such rows
    difficulties: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5, 2.0)  # of fresh virtual patients on whom the trained networks are tested
    difficulty_patients: int = 500  # of them, the same people at each difficulty

    def __post_init__(self):
        known = self.competitors() if self.competitors_trained else ()
        for name in self.competitors_trained:
            if name not in known:
                raise ConfigError(f"no competitor '{name}'; known: {', '.join(known)}")

    def side_by_side(self, gib: float) -> int:
        """How many runs are trained at once on a GPU with so much memory: `at_once`, or as many as there is room for; at least one."""
        return max(1, min(self.at_once, int(gib // self.run_gib)))

    def run(self, model: str, seed: int | None = None) -> RunConfig:
        """The run of `model`, one of MODELS or the detector, with `seed` (the profile's first where None)."""
        if model not in (*MODELS, "detector"):
            raise ConfigError(f"no model '{model}'; known: {', '.join(MODELS)}, detector")
        return getattr(self, model).with_(seed=self.seeds[0] if seed is None else seed)

    def teacher_of(self, config: RunConfig) -> RunConfig:
        """The teacher that the student or detector `config` needs: the main one of its seed, changed where `config` changes what both share, and
        with another backbone where it names one."""
        changed = {name: getattr(config, name) for name in _SHARED if getattr(config, name) != getattr(self.student, name)}
        changed |= {"backbone": config.teacher_backbone} if config.teacher_backbone else {}
        return self.run("teacher", config.seed).with_(**changed)

    def ablations(self) -> dict[str, Ablation]:
        """The ablations that the profile trains, by the names of GROUPS: the three terms, and the groups in `varied`."""
        special = {"terms": self._terms, "two_looks": self._two_looks}
        return {name: special[name]() if name in special else self._vary(name) for name in GROUPS if name == "terms" or name in self.varied}

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

    def _two_looks(self) -> Ablation:
        """The two-look student against others, one part changed in each: those that `varied` names, of TWO_LOOKS."""
        zoom = self.zoom
        changed = {
            "from scratch": zoom.with_(student_init="scratch"),
            "the stage moves the window too": zoom.with_(aim_gradient=True),
            "without L_dist": zoom.with_(w_dist=0.0),
            "without L_attn": zoom.with_(w_attn=0.0),
            "L_cls and L_aim alone": zoom.with_(w_dist=0.0, w_attn=0.0),
            "labels alone, no teacher": self.competitors()[TWICE_ALONE][0],
            "one look": self.student,
        }
        configs = {"two looks": zoom} | {name: changed[name] for name in self.varied["two_looks"]}
        return Ablation("two_looks", {name: [config.with_(seed=seed) for seed in self.ablation_seeds] for name, config in configs.items()},
                        dict.fromkeys(configs, "two looks"))

    def _vary(self, name: str) -> Ablation:
        """A group's settings at each value (several settings: at each combination) and at the profile's own, the reference of its role."""
        group, rows, reference = GROUPS[name], {}, {}

        def named(base, values):
            return (f"{base.said}, " if len(group.roles) > 1 else "") + group.row.format(*values).replace("%", " %")

        for role in group.roles:
            base = getattr(self, role)
            own = tuple(getattr(base, setting) for setting in group.settings)
            combined = list(itertools.product(self.varied[name], repeat=len(own)))
            if group.relative:
                combined = [tuple(type(o)(float(f"{o * v:.6g}")) for o, v in zip(own, values, strict=True)) for values in combined]
            combined = list(dict.fromkeys([own, *combined]))
            for values in combined if isinstance(own[0], str) else sorted(combined):
                row = named(base, values)
                changed = base.with_(**dict(zip(group.settings, values, strict=True)))
                rows[row] = [changed.with_(seed=seed) for seed in self.ablation_seeds]
                reference[row] = named(base, own)
        return Ablation(name, rows, reference)

    def networks(self) -> dict[str, list[RunConfig]]:
        """Rows of the table of networks, `<backbone>, <network>` and `<backbone>, progressive, <network>`: each with one run a seed, under the main
        runs' protocol. The main networks come first; empty where the profile asks for no others."""
        main, others = [self.teacher, self.baseline, self.student], []
        for name in self.backbones:
            others += [base.with_(backbone=name, teacher_backbone=name if base.role == "student" else "") for base in main]
        others += [self.teacher.with_(backbone=name) for name in self.teacher_backbones]
        others += [base.with_(progressive=self.progressive) for base in main if self.progressive]
        return {", ".join([base.backbone, *(["progressive"] if base.progressive else []), base.said]):
                [base.with_(seed=seed) for seed in self.network_seeds] for base in (main + others if others else [])}

    def competitors(self) -> dict[str, list[RunConfig]]:
        """Rows of the table of competitors: every way from a whole image to a stage, one run a seed. The main runs are among them."""
        student, zoom = self.student, self.zoom
        together = self.teacher.epochs + zoom.epochs  # a two-look student begins where its teacher ended
        configs = {
            PLAIN: self.baseline,
            # more operations than teacher and student take together: is it only time that the plain network lacks?
            PLAIN_LONGER: self.baseline.with_(epochs=2 * self.baseline.epochs),
            CROP_TEACHER: self.teacher,
            TEACHER_LONGER: self.teacher.with_(epochs=together),  # is it only the further training that helps its student?
            PIPELINE: self.detector,
            # Hinton et al. 2015: the teacher's answers for images, and nothing of where they come from
            LOGIT_ONLY: student.with_(w_attn=0.0, evidence="none"),
            DISTILLED: student,
            STARTED: student.with_(student_init="teacher"),
            TWICE: zoom,
            TWICE_SCRATCH: zoom.with_(student_init="scratch"),
            # what the architecture does without a teacher: the stage alone moves the window
            TWICE_ALONE: zoom.with_(role="baseline", aim_gradient=True, epochs=together),
        }
        return {name: [config.with_(seed=seed) for seed in self.seeds] for name, config in configs.items()}

    def resolved(self) -> dict:
        """Every number of the profile, as saved beside its results."""
        values = asdict(self)
        for model in MODELS:
            values[model] = getattr(self, model).resolved()
        return values


TWO_LOOKS = ("from scratch", "the stage moves the window too", "without L_dist", "without L_attn", "L_cls and L_aim alone", "labels alone, no teacher",
             "one look")
EVERY_COMPETITOR = (PIPELINE, PLAIN_LONGER, TEACHER_LONGER, LOGIT_ONLY, STARTED, TWICE_SCRATCH, TWICE_ALONE)  # beside the main runs


def _profile(name, *, common, teacher=None, baseline=None, student=None, zoom=None, detector=None, **rest) -> Profile:
    common = RunConfig(**common)
    teacher = common.with_(role="teacher", **(teacher or {}))
    # the second look sees what a teacher sees, so it learns as the teacher did, from where the teacher ended
    twice = teacher.with_(**{"role": "student", "looks": 2, "student_init": "teacher", **(zoom or {})})
    return Profile(name=name, teacher=teacher, baseline=common.with_(role="baseline", **(baseline or {})), zoom=twice,
                   student=common.with_(role="student", **(student or {})), detector=common.with_(role="detector", **(detector or {})), **rest)


PROFILES = {
    profile.name: profile
    for profile in (
        # minutes on two cores: shows that everything runs; its figures mean nothing
        _profile("smoke", patients=96, cohort_seed=1, seeds=(0,), bootstrap=200, native_px=512, at_once=2,
                 varied=dict(temperature=(1.0,), weights=(10.0,), box_jitter=(0.2,), label_share=(0.5,), two_looks=TWO_LOOKS),
                 difficulties=(0.0, 1.0, 2.0), difficulty_patients=24, competitors_trained=EVERY_COMPETITOR,
                 common=dict(frame_px=96, window_px=64, epochs=2, batch_size=16), zoom=dict(frame_px=192, glance_px=64)),
        # for two cores, how long stands in the README: shows the effects
        _profile("quick", patients=1800, cohort_seed=4, seeds=(0,), bootstrap=2000, without_labels=False, at_once=2,
                 competitors_trained=(PIPELINE,),  # the others cost as much as a student each
                 difficulty_patients=80,  # few: they are the same at each difficulty, so differences are paired
                 # few epochs: on whole images small batches, for more steps, and little variation beside that of patients and scanners;
                 # on crops, which are learned by heart soon, more of it
                 common=dict(frame_px=192, window_px=96, epochs=12, batch_size=8, lr=1e-3, flip=0.0, rotate_deg=4.0, zoom=0.05, shift=0.03),
                 teacher=dict(epochs=16, batch_size=16, lr=1.5e-3, flip=0.2, rotate_deg=8.0, zoom=0.08, shift=0.06),
                 zoom=dict(epochs=6, frame_px=384, glance_px=96),
                 detector=dict(epochs=4)),  # where the joint is, is learned sooner than how fused it is: half of these already miss none
        # as many patients as an earlier study of the paper's group, whole images of 448 px and crops of 224, on one GPU: every ablation with five seeds; networks and steps are
        # few enough for the plan's minutes. Tried on other virtual patients, one seed of each main run, with 30 epochs on whole images and
        # resnet16_half, whose stem takes longer on pictures so large. For its gradient a student keeps 0.4 GiB of activations
        _profile("paper", patients=723, cohort_seed=3, seeds=(0, 1, 2, 3, 4), bootstrap=10000, ablation_seeds=(0, 1, 2, 3, 4),
                 network_seeds=(0, 1, 2, 3, 4), native_px=1024, at_once=6, run_gib=3.0, competitors_trained=EVERY_COMPETITOR, progressive=0.5,
                 varied=dict(temperature=(1.0, 2.0, 8.0), weights=(0.1, 1.0, 10.0), attn_distance=ATTENTION_DISTANCES, evidence=EVIDENCES,
                             cam_target=CAM_TARGETS, cam_layer=CAM_LAYERS, output_stride=(16, 32), frame_px=(0.5, 0.75, 1.0),
                             window_scale=(0.75, 1.5), box_jitter=(0.1, 0.25), label_share=(0.1, 0.25, 0.5), student_init=STUDENT_INITS,
                             two_looks=TWO_LOOKS),
                 common=dict(backbone="resnet16_pool_first", frame_px=448, window_px=224, epochs=28, batch_size=16, lr=1e-3, flip=0.0,
                             rotate_deg=4.0, zoom=0.05, shift=0.03),
                 teacher=dict(epochs=40, batch_size=16, lr=1.5e-3, flip=0.2, rotate_deg=8.0, zoom=0.08, shift=0.06),
                 zoom=dict(epochs=12, frame_px=896, glance_px=224), detector=dict(epochs=10)),
    )
}
# the main runs of paper alone, with three seeds: what two cores can do of it
PROFILES["paper3"] = replace(PROFILES["paper"], name="paper3", seeds=(0, 1, 2), ablation_seeds=(0,), network_seeds=(0,), at_once=2,
                             without_labels=False, competitors_trained=(PIPELINE, PLAIN_LONGER), progressive=0.0, varied={},
                             bootstrap=2000, difficulty_patients=100)

# other backbones in the place of paper's, which cost as many operations as all of paper. The largest run, ConvNeXt's student, keeps 3.8 GiB
PROFILES["networks"] = replace(PROFILES["paper"], name="networks", seeds=(0, 1, 2), ablation_seeds=(0,), network_seeds=(0, 1, 2), run_gib=6.0,
                               without_labels=False, competitors_trained=(PIPELINE,), progressive=0.0, varied={},
                               backbones=("resnet18", "resnet50", "efficientnet_b0", "convnext_tiny"), teacher_backbones=("convnext_tiny_attention",))

# quick with five seeds: what two cores can do in one hour or two; its ablations are those of quick
PROFILES["quick5"] = replace(PROFILES["quick"], name="quick5", seeds=(0, 1, 2, 3, 4),
                             competitors_trained=(PIPELINE, PLAIN_LONGER, TEACHER_LONGER, TWICE_SCRATCH))

# quick with every group of ablations and further competitors, one seed each: over an hour of two cores
PROFILES["ablations"] = replace(PROFILES["quick"], name="ablations", competitors_trained=(PIPELINE, PLAIN_LONGER, TEACHER_LONGER, LOGIT_ONLY),
                                without_labels=True, progressive=0.5, varied=dict(
    temperature=(1.0, 8.0), weights=(0.1, 10.0), attn_distance=ATTENTION_DISTANCES, evidence=EVIDENCES, cam_target=CAM_TARGETS, cam_layer=CAM_LAYERS,
    output_stride=(16, 32), frame_px=(0.5, 0.75), window_scale=(0.75, 1.5), box_jitter=(0.25,), label_share=(0.25, 0.5),
    student_init=STUDENT_INITS, two_looks=TWO_LOOKS))

PUBLISHED = ("quick", "quick5", "ablations", "paper3", "paper", "networks")  # profiles whose results are kept in the repository; smoke's mean nothing


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
    """SHA-256 of what Python files do: their syntax trees without docstrings, so that comments and layout do not count, the same by Python 3.11 and
    3.12.

    A folder stands for all Python files in it.
    """
    files = sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))
    state = hashlib.sha256()
    for file in files:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node) is not None:
                node.body = node.body[1:]
        told = ast.dump(tree).replace(", type_params=[]", "")  # which Python 3.12 writes and 3.11 does not
        state.update(f"{file.name} {told}\n".encode())
    return state.hexdigest()


def minutes(text: str) -> float:
    """The value of `--stop-after`. Raises ValueError for one that is no time."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


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
