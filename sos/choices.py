"""What the paper's public record leaves open: which groups of settings the ablations vary (GROUPS), and for every setting of a run the reason of
its value (CHOICES). Data; `config.Profile` makes runs of it, `study.ablations` tables."""

from dataclasses import dataclass


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
    "cam_layer": Group("the layer of Grad-CAM", "Which map should Grad-CAM explain?", ("cam_layer",), "layer: {}"),
    "two_looks": Group("looking twice", "What does each part of the two-look student add?", ("looks", "student_init", "aim_gradient"), "",
                       roles=("zoom",)),
    "student_init": Group("the student's first weights", "Should the student begin from its teacher's weights?", ("student_init",),
                          "begins from: {}"),
}


@dataclass(frozen=True)
class Ablation:
    """A group as a profile trains it. rows: name → one run a seed; reference: name → the row it is compared with, itself for a reference."""

    name: str
    rows: dict[str, list]  # of RunConfig
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
_ALIKE, _OWN = "the same in every row", "the same in all rows of a network"
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
    "cam_score": Choice("softmax ignores what moves all logits, so what is explained does too", fixed=_ALIKE),
    "map_floor": Choice("it bounds the logarithms of L_attn, and makes a map of zeros a uniform one", fixed=_ALIKE),
    "parts_of_l_dist": Choice("neither of the two is preferred", fixed="`none` of evidence leaves out the spatial one"),
    "cam_layer": Choice("its maps come from the very features that are judged", ("cam_layer",)),
    "looks": Choice("the paper's student looks once; ours, beyond the paper, twice", ("two_looks",)),
    "glance_px": Choice("where the joint is can be seen in a small picture", fixed="how well it aims is measured, figure 22"),
    "aim_gradient": Choice("the stage is a poor teacher of where to look", ("two_looks",)),
    "w_aim": Choice("1, as L_cls: only L_aim reaches the glance", fixed="Adam's steps do not depend on its scale"),
    "progressive": Choice("switched on for rows of the table of networks only", fixed="measured in table networks"),
    "teacher_backbone": Choice("one network for all keeps comparisons fair", fixed="measured in table networks"),
    "min_score": Choice("the default of the detector's authors", fixed="the detector's misses are counted, table competitors"),
    "backbone": Choice("small enough for the profile's time", fixed="one network for all keeps comparisons fair; others in table networks"),
    "output_stride": Choice("at 32 the joint would be one cell of a frame", ("output_stride",)),
    "pretrained": Choice("results hang on no download", fixed="ImageNet weights need the network once"),
    "dropout": Choice("weight decay and augmentation regularise already", fixed=_ALIKE),
    "student_init": Choice("teacher and student need not be of one architecture; the second look sees what the teacher saw and begins as it ended",
                           ("student_init", "two_looks")),
    "frame_px": Choice("as fine as the profile's time allows", ("frame_px",)),
    "window_px": Choice("the box fills it, so the joint is seen finer than in a frame", fixed="window_scale varies what it shows"),
    "native_px": Choice("cached images are finer than any frame", fixed="networks see frames and windows sampled from them"),
    "window_scale": Choice("the expert's box as it was drawn", ("window_scale",)),
    "box_jitter": Choice("boxes as they were drawn", ("box_jitter",)),
    "label_share": Choice("all labelled patients", ("label_share",)),
    "leak": Choice("no held-out image is seen in training", fixed="what the mistake would cost is measured in notebook 02"),
    "rotate_deg": Choice(_TURN, fixed=_OWN),
    "zoom": Choice(_TURN, fixed=_OWN),
    "shift": Choice(_TURN, fixed=_OWN),
    "flip": Choice("heads face either way, in the virtual cohort one in ten to the left; less where epochs are few",
                   fixed="measured on mirrored images, table mirror"),
    "gain": Choice(_LIGHT, fixed=_ALIKE),
    "offset": Choice(_LIGHT, fixed=_ALIKE),
    "gamma": Choice(_LIGHT, fixed=_ALIKE),
    "noise": Choice(_LIGHT, fixed=_ALIKE),
    "optimiser": Choice("fastai's usual; most steps are clipped, so that none is long", fixed=_ALIKE),
    "epochs": Choice("what the profile's time allows", fixed="longer training is measured in table competitors"),
    "batch_size": Choice("enough steps in the profile's epochs", fixed=_OWN),
    "lr": Choice("chosen on other virtual patients", fixed=_OWN),
    "weight_decay": Choice("a usual one for AdamW", fixed=_ALIKE),
    "precision": Choice("bf16 where the processor has it, for time", fixed="the run's own is saved with it"),
}
