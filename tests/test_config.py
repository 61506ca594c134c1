"""Settings: unknown names, wrong types, what a run depends on, and the digest of code. No number of a profile is asserted here."""

import dataclasses
import hashlib
import itertools
import json
from dataclasses import fields, replace

import pytest

from sos import config
from sos.config import MODELS, PROFILES, ROLES, RunConfig, digest, get_profile, parse_overrides, runs_dir, source_digest
from sos.errors import ConfigError
from sos.stages import BASSED5, FRANKLIN4, SCHEMES, get_scheme
from sos.study.grid import plan


def other_value(name, value):
    """A valid value of the field `name` that differs from `value`."""
    choices = {"role": ROLES, "backbone": config.BACKBONES, "attn_distance": config.ATTENTION_DISTANCES, "cam_target": config.CAM_TARGETS,
               "cam_layer": config.CAM_LAYERS, "teacher_backbone": config.BACKBONES,
               "evidence": config.EVIDENCES, "student_init": config.STUDENT_INITS, "precision": config.PRECISIONS,
               "output_stride": (16, 32), "label_share": (0.5, 1.0)}
    if name in choices:
        return next(choice for choice in choices[name] if choice != value)
    return not value if isinstance(value, bool) else value + (1 if isinstance(value, int) else 0.25)


# ---- stages --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
def test_index_counts_labels_from_zero(scheme):
    assert [scheme.index(label) for label in scheme.labels] == list(range(len(scheme)))
    assert scheme.index(str(scheme.labels[1])) == 1
    assert len(set(scheme.names)) == len(scheme) and get_scheme(scheme.name) is scheme


def test_labels_are_those_people_write():
    assert BASSED5.labels == (1, 2, 3, 4, 5) and FRANKLIN4.labels == (0, 1, 2, 3)


@pytest.mark.parametrize("label", [0, 6, -1, "open", None, float("nan")])
def test_label_outside_the_scheme_is_refused_in_one_line(label):
    with pytest.raises(ConfigError, match=r"bassed5.*1, 2, 3, 4, 5") as caught:
        BASSED5.index(label)
    assert "\n" not in str(caught.value)


def test_unknown_scheme_names_the_known_ones():
    with pytest.raises(ConfigError, match="bassed5, franklin4"):
        get_scheme("bassed")


# ---- one run -------------------------------------------------------------------------------------------------------


def test_unknown_setting_names_the_nearest():
    with pytest.raises(ConfigError, match="no setting 'temprature'; did you mean 'temperature'"):
        RunConfig().with_(temprature=2.0)
    with pytest.raises(ConfigError, match="no setting 'batchsize'; did you mean 'batch_size'"):
        parse_overrides(["batchsize=4"])


def test_unknown_setting_near_to_nothing_lists_all():
    with pytest.raises(ConfigError) as caught:
        RunConfig().with_(zzz=1)
    assert all(f.name in str(caught.value) for f in fields(RunConfig))


@pytest.mark.parametrize("change", [{"epochs": 2.0}, {"epochs": "2"}, {"epochs": True}, {"lr": "1e-3"}, {"lr": None}, {"lr": True},
                                    {"pretrained": 1}, {"backbone": 18}, {"seed": 1.5}])
def test_wrong_type_is_an_error_naming_setting_and_type(change):
    (name,) = change
    kind = {f.name: f.type for f in fields(RunConfig)}[name].__name__
    with pytest.raises(ConfigError, match=f"^{name} = .* is not of type {kind}$"):
        RunConfig(**change)


def test_whole_number_is_accepted_where_a_float_is_wanted_and_becomes_one():
    given = RunConfig(w_dist=2)
    assert given.w_dist == 2.0 and isinstance(given.w_dist, float)
    assert digest(given.resolved()) == digest(RunConfig(w_dist=2.0).resolved())


@pytest.mark.parametrize("change", [{"role": "pupil"}, {"backbone": "resnet19"}, {"attn_distance": "l1"}, {"cam_target": "student"},
                                    {"teacher_backbone": "resnet19"}, {"cam_layer": "first"},
                                    {"evidence": "all"}, {"student_init": "imagenet"}, {"precision": "fp16"}, {"output_stride": 8}])
def test_impossible_choice_names_the_possible_ones(change):
    (name,) = change
    with pytest.raises(ConfigError, match=f"^{name} = .* is not one of ") as caught:
        RunConfig(**change)
    assert str(getattr(RunConfig(), name)) in str(caught.value)


@pytest.mark.parametrize("change", [{"epochs": 0}, {"batch_size": -1}, {"frame_px": 0}, {"window_px": 0}, {"temperature": 0.0},
                                    {"temperature": -3.0}, {"lr": 0.0}, {"lr": float("nan")}, {"lr": float("inf")}, {"window_scale": 0.0},
                                    {"weight_decay": -0.1}, {"w_cls": -1.0}, {"w_dist": float("nan")}, {"w_attn": -0.5}, {"noise": -0.01},
                                    {"flip": 1.5}, {"flip": -0.1}, {"dropout": 1.0}, {"dropout": -0.1}, {"progressive": 1.0},
                                    {"progressive": -0.1}, {"min_score": 1.5}, {"min_score": -0.1}, {"box_jitter": 1.0},
                                    {"box_jitter": -0.1}, {"label_share": 0.0}, {"label_share": 1.1}])
def test_impossible_number_is_an_error(change):
    (name,) = change
    with pytest.raises(ConfigError, match=f"^{name} = .* must be "):
        RunConfig(**change)


def test_progressive_training_that_leaves_no_epoch_for_the_whole_network_is_refused():
    assert RunConfig(epochs=4, progressive=0.75).progressive == 0.75
    with pytest.raises(ConfigError, match="progressive = 0.76 of 4 epochs leaves none"):
        RunConfig(epochs=4, progressive=0.76)
    with pytest.raises(ConfigError, match="leaves none"):
        RunConfig(epochs=1, progressive=0.1)
    for epochs in range(2, 300):
        RunConfig(epochs=epochs, progressive=(epochs - 1) / epochs)


def test_student_without_any_term_is_refused_but_other_roles_do_not_mind():
    silent = dict(w_cls=0.0, w_dist=0.0, w_attn=0.0)
    with pytest.raises(ConfigError, match="w_cls, w_dist or w_attn"):
        RunConfig(role="student", **silent)
    assert RunConfig(role="baseline", **silent).w_cls == 0


def test_a_config_cannot_be_changed_in_place():
    given = RunConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        given.lr = 1.0
    assert given.with_(lr=0.5).lr == 0.5 and given == RunConfig()


OF_TWO_LOOKS = {"glance_px", "aim_gradient", "w_aim"}  # used where looks = 2, see test_zoom
USED_BY = {"teacher": {"window_px", "window_scale", "box_jitter", "leak"}, "baseline": {"frame_px", "looks", "cam_layer"},
           "student": {"frame_px", "looks", "cam_layer", "box_jitter", "w_cls", "w_dist", "w_attn", "temperature", "attn_distance", "evidence",
                       "cam_target", "student_init", "teacher_backbone"},
           "detector": {"frame_px", "box_jitter", "min_score"}}


@pytest.mark.parametrize("role", ROLES)
def test_resolved_leaves_out_what_the_role_does_not_use(role):
    base = RunConfig(role=role)
    special = set().union(*USED_BY.values(), OF_TWO_LOOKS)
    for f in fields(RunConfig):
        if f.name == "role":
            continue
        if f.name == "looks" and role in ("teacher", "detector") or f.name == "leak" and role != "teacher":
            continue  # refused
        twice = {"aim_gradient": True} if f.name == "looks" and role == "baseline" else {}  # without it refused
        changed = base.with_(**{f.name: other_value(f.name, getattr(base, f.name))}, **twice)
        matters = f.name not in special or f.name in USED_BY[role]
        assert (changed.resolved() != base.resolved()) == matters, f.name


@pytest.mark.parametrize("role", ROLES)
def test_resolved_makes_the_same_run_again_through_json(role):
    base = RunConfig(role=role, lr=0.01, seed=3)
    again = RunConfig(**json.loads(json.dumps(base.resolved())))
    assert again.resolved() == base.resolved()


def test_overrides_are_typed():
    assert parse_overrides(["lr=1e-3", "epochs=4", "pretrained=True", "backbone=resnet18", "flip=0"]) == {
        "lr": 1e-3, "epochs": 4, "pretrained": True, "backbone": "resnet18", "flip": 0.0}
    assert parse_overrides([]) == {}


@pytest.mark.parametrize("pair", ["epochs=many", "epochs=1.5", "pretrained=perhaps", "lr="])
def test_override_of_the_wrong_type_is_an_error(pair):
    with pytest.raises(ConfigError, match=f"^{pair.partition('=')[0]} = .* is not of type"):
        parse_overrides([pair])


def test_override_without_a_value_is_an_error():
    with pytest.raises(ConfigError, match="'lr' is not of the form name=value"):
        parse_overrides(["lr"])


# ---- profiles ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_profile_gives_runs_of_the_asked_role_and_seed(profile):
    for role in ROLES:
        run = profile.run(role, 7)
        assert (run.role, run.seed) == (role, 7)
        assert profile.run(role) == getattr(profile, role).with_(seed=profile.seeds[0])
    with pytest.raises(ConfigError, match="no model 'pupil'"):
        profile.run("pupil")
    json.dumps(profile.resolved())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_ablations_hold_each_subset_of_the_terms_once(profile):
    rows = profile.ablations()["terms"].rows
    subsets = [" + ".join(f"L_{name}" for name, on in zip(("cls", "dist", "attn"), on) if on)
               for on in itertools.product((0, 1), repeat=3) if any(on) and (on[0] or profile.without_labels)]
    assert sorted(rows) == sorted(subsets)
    for name, runs in rows.items():
        assert [run.seed for run in runs] == list(profile.ablation_seeds)
        assert {run.epochs for run in runs} == {profile.student.epochs}
        if name == "L_cls":
            assert {run.role for run in runs} == {"baseline"}
        else:
            weights = {f"L_{term}": getattr(runs[0], f"w_{term}") for term in ("cls", "dist", "attn")}
            assert {term for term, weight in weights.items() if weight > 0} == set(name.split(" + "))
            assert all(weight in (0, getattr(profile.student, f"w_{term[2:]}")) for term, weight in weights.items())


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_ablation_of_nothing_and_of_everything_are_the_main_runs(profile):
    rows, seed = profile.ablations()["terms"].rows, profile.ablation_seeds[0]
    assert rows["L_cls"][0] == profile.run("baseline", seed)
    assert rows["L_cls + L_dist + L_attn"][0] == profile.run("student", seed)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_networks_differ_from_the_main_runs_in_what_their_row_says_alone(profile):
    rows = profile.networks()
    others = len(profile.backbones) * 3 + len(profile.teacher_backbones) + 3 * (profile.progressive > 0)
    assert len(rows) == (others + 3 if others else 0)
    for name, runs in rows.items():
        backbone, *progressive, said = name.split(", ")
        role = {"plain network": "baseline"}.get(said, said)
        assert [run.seed for run in runs] == list(profile.network_seeds)
        for run in runs:
            same = run.with_(backbone=getattr(profile, role).backbone, progressive=getattr(profile, role).progressive, teacher_backbone="")
            assert same == profile.run(role, run.seed)
            assert run.backbone == backbone and run.progressive == (profile.progressive if progressive else 0)


def test_a_profile_of_its_own_asks_for_each_network_of_the_field_as_paper_trains_its_main_ones():
    profile, paper = get_profile("networks"), get_profile("paper")
    main, said = paper.baseline.backbone, ("teacher", "plain network", "student")
    rows = {f"{name}, {who}" for name in (main, "resnet18", "resnet50", "efficientnet_b0", "convnext_tiny") for who in said}
    assert set(profile.networks()) == rows | {"convnext_tiny_attention, teacher"}
    assert [profile.run(model) for model in MODELS] == [paper.run(model) for model in MODELS]
    assert (profile.patients, profile.cohort_seed) == (paper.patients, paper.cohort_seed)
    assert set(paper.networks()) == {f"{main}{how}, {who}" for how in ("", ", progressive") for who in said}
    assert not get_profile("quick").networks() and not get_profile("smoke").networks()


def test_what_two_cores_can_do_of_paper_is_its_main_runs():
    small, paper = get_profile("paper3"), get_profile("paper")
    main = {paper.run(model, seed) for model in (*MODELS, "detector") for seed in small.seeds}
    assert len(small.seeds) == 3 and main < {job.config for job in plan(small)} < {job.config for job in plan(paper)}


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_student_learns_from_the_main_teacher_of_its_seed_or_from_the_backbone_it_names(profile):
    assert profile.teacher_of(profile.run("student", 7)) == profile.run("teacher", 7)
    named = profile.run("student", 7).with_(backbone="resnet18_half", teacher_backbone="convnext_tiny_attention")
    assert profile.teacher_of(named) == profile.run("teacher", 7).with_(backbone="convnext_tiny_attention")
    for name, runs in profile.networks().items():
        for run in runs:
            if run.role == "student":
                assert profile.teacher_of(run).backbone == run.backbone and profile.teacher_of(run).progressive == 0, name


def test_unknown_profile_names_the_known_ones():
    with pytest.raises(ConfigError, match=", ".join(PROFILES)):
        get_profile("papr")


def test_profiles_are_made_smaller_with_replace():
    small = replace(get_profile("smoke"), patients=3)
    assert small.patients == 3 and get_profile("smoke").patients != 3


# ---- folders and digests -------------------------------------------------------------------------------------------


def test_runs_lie_under_sos_home(tmp_path, monkeypatch):
    monkeypatch.setenv("SOS_HOME", str(tmp_path))
    assert runs_dir("smoke") == tmp_path / "runs" / "smoke"
    manifest = tmp_path / "mine.csv"
    manifest.write_bytes(b"a,b")
    assert runs_dir("smoke", manifest) == tmp_path / "runs" / f"smoke-{hashlib.sha256(b'a,b').hexdigest()[:8]}"
    with pytest.raises(ConfigError, match="cannot read this manifest"):
        runs_dir("smoke", tmp_path / "absent.csv")


def test_digest_depends_on_content_not_on_order():
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert digest({"a": 1, "b": [1, 2]}) != digest({"a": 1, "b": [2, 1]})


CODE = '''"""Module."""

import math


class Circle:
    """A circle."""

    def area(self, r):
        """Its area."""
        return math.pi * r ** 2
'''
SAME = '''import math  # for pi


class Circle:
    def area(self,
             r):
        """Quite another
        docstring."""

        # πr²
        return math.pi * r**2
'''


@pytest.mark.parametrize(("text", "same"), [(SAME, True), (CODE.replace("** 2", "** 3"), False), (CODE.replace("area", "size"), False),
                                            (CODE.replace("return ", "'a string'; return "), False)])
def test_source_digest_ignores_comments_layout_and_docstrings_only(tmp_path, text, same):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "a" / "m.py").write_text(CODE, encoding="utf-8")
    (tmp_path / "b" / "m.py").write_text(text, encoding="utf-8")
    assert (source_digest(tmp_path / "a") == source_digest(tmp_path / "b")) == same
    assert (source_digest(tmp_path / "a" / "m.py") == source_digest(tmp_path / "b")) == same


def test_source_digest_is_that_of_every_python(tmp_path):
    """Of functions, classes and coroutines, whose trees Python 3.12 gave a field more; the digest was taken with 3.11 and with 3.12."""
    (tmp_path / "m.py").write_text("class A:\n    def f(self):\n        return 1\n\n\nasync def g(x: int = 2) -> int:\n    return x\n")
    assert source_digest(tmp_path) == "a530a49e24fdbb328f719a85bbf21d2958c2d2e08cb43332f330b211c3317e3f"


def test_source_digest_sees_a_new_file_and_not_the_order_of_arguments(tmp_path):
    (tmp_path / "m.py").write_text(CODE)
    (tmp_path / "n.py").write_text("x = 1\n")
    both = source_digest(tmp_path / "m.py", tmp_path / "n.py")
    assert both == source_digest(tmp_path / "n.py", tmp_path / "m.py") == source_digest(tmp_path) != source_digest(tmp_path / "m.py")
