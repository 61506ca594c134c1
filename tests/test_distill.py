"""Distillation: the terms of a batch, who gets gradient, and a callback that leaves everything as it found it."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fastai.callback.core import Callback
from fastai.callback.progress import Learner  # the module patches no_bar into Learner
from fastai.data.core import DataLoaders
from fastai.optimizer import SGD
from torch import nn

from sos.cohort.batches import ViewLoader
from sos.cohort.views import PixelStore
from sos.config import ATTENTION_DISTANCES, EVIDENCES, RunConfig
from sos.method.cam import class_score, explain, grad_cam, paste
from sos.method.distill import TERMS, Distillation, distillation_terms
from sos.method.losses import attention_distance, spatial_distillation
from sos.method.models import Look, build

CONFIG = RunConfig(role="student", backbone="resnet18_half", output_stride=16, frame_px=64, batch_size=4, dropout=0.0, w_cls=1.0,
                   w_dist=0.5, w_attn=2.0, lr=1e-3, precision="fp32")
WINDOW = torch.tensor([[0.2, 0.3, 0.6, 0.7], [0.3, 0.2, 0.8, 0.7], [0.4, 0.4, 0.7, 0.7]])
TARGET = torch.tensor([0, 3, 4])


def network(seed, config=CONFIG):
    torch.manual_seed(seed)
    return build(config, 5)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def networks():
    """A student and a teacher in eval mode; gradients are cleared before each use."""
    return network(0).eval(), network(1).eval()


def terms_of(networks, config=CONFIG):
    student, teacher = networks
    for net in networks:
        net.zero_grad(set_to_none=True)
    look = student.look(noise(3, 1, 64, 64, seed=5))
    seen, cam = explain(teacher, noise(3, 1, 32, 32, seed=6), None if config.cam_target == "teacher" else TARGET)
    return look, seen, cam, distillation_terms(look, seen, cam, WINDOW, TARGET, config)


# ---- terms ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("evidence", EVIDENCES)
@pytest.mark.parametrize("distance", ATTENTION_DISTANCES)
def test_terms_are_the_three_losses_of_the_paper(networks, distance, evidence):
    config = CONFIG.with_(attn_distance=distance, evidence=evidence, temperature=2.0)
    look, seen, teacher_cam, terms = terms_of(networks, config)
    assert tuple(terms) == TERMS
    student_cam = grad_cam(look.features, class_score(look.logits, TARGET))
    expected = {"L_cls": F.cross_entropy(look.logits, TARGET),
                "L_dist": spatial_distillation(look, seen, WINDOW, 2.0, evidence),
                "L_attn": attention_distance(student_cam, paste(teacher_cam, WINDOW, 4), distance)}
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value.item(), rel=1e-5) and value > 0, name


@pytest.mark.parametrize("alone", TERMS)
def test_each_term_teaches_the_students_backbone_and_never_the_teacher(networks, alone):
    student, teacher = networks
    terms = terms_of(networks)[-1]
    terms[alone].backward()
    assert student.body[0].weight.grad.abs().max() > 0
    assert student.head.classifier.weight.grad.abs().max() > 0  # L_attn reaches it through the weights of Grad-CAM
    assert all(weight.grad is None for weight in teacher.parameters())


def test_gradient_through_grad_cam_is_that_of_finite_differences():
    target = torch.tensor([2, 0])

    def cam(features, weight, bias):
        return grad_cam(features, class_score(F.conv2d(features, weight, bias).mean((2, 3)), target), create_graph=True)

    inputs = [noise(*shape, seed=i).double().requires_grad_() for i, shape in enumerate([(2, 6, 4, 4), (3, 6, 1, 1), (3,)])]
    assert torch.autograd.gradcheck(cam, inputs)


@pytest.mark.parametrize(("term", "setting"), [*(("L_dist", {"evidence": name}) for name in EVIDENCES),
                                              *(("L_attn", {"attn_distance": name}) for name in ATTENTION_DISTANCES)])
def test_gradient_of_a_term_is_that_of_finite_differences(term, setting):
    """From the loss through alignment, Grad-CAM and its weights to the student's features, which its backbone made, and to its head."""
    config = CONFIG.with_(**setting)
    spatial = noise(2, 5, 4, 4, seed=3).double()
    teacher, teacher_cam = Look(spatial, spatial, spatial.mean((2, 3))), noise(2, 4, 4, seed=4).abs().double()

    def loss(features, weight, bias):
        spatial = F.conv2d(features, weight, bias)
        look = Look(features, spatial, spatial.mean((2, 3)))
        return distillation_terms(look, teacher, teacher_cam, WINDOW[:2].double(), TARGET[:2], config)[term]

    inputs = [noise(*shape, seed=i).double().requires_grad_() for i, shape in enumerate([(2, 6, 8, 8), (5, 6, 1, 1), (5,)])]
    assert torch.autograd.gradcheck(loss, inputs, fast_mode=True)


def without_edges(net):
    """The network with every padding made circular, so that it cannot know where the frame begins."""
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d):
            module.padding_mode = "circular"
        for name, child in module.named_children():
            if isinstance(child, nn.MaxPool2d):
                setattr(module, name, nn.Sequential(nn.CircularPad2d(child.padding), nn.MaxPool2d(child.kernel_size, child.stride)))
    return net


def test_nothing_changes_when_image_and_window_move_together_by_whole_strides(networks):
    student, teacher = without_edges(network(0).eval()), networks[1]
    frame, x, y = noise(2, 1, 128, 128, seed=7), 32, -16  # pixels; the stride is 16
    frame[0, :, 50:86, 38:86] += 2
    box = torch.tensor([[38, 50, 86, 86], [44, 40, 76, 90]])
    found = []
    for moved, place in ((frame, box), (frame.roll((y, x), (2, 3)), box + torch.tensor([x, y, x, y]))):
        student.zero_grad(set_to_none=True)
        pictures = [F.interpolate(moved[i:i + 1, :, y0:y1, x0:x1], (64, 64)) for i, (x0, y0, x1, y1) in enumerate(place.tolist())]
        seen, cam = explain(teacher, torch.cat(pictures), TARGET[:2])
        look = student.look(moved)
        terms = distillation_terms(look, seen, cam, place / 128, TARGET[:2], CONFIG)
        sum(terms.values()).backward()
        found.append((look, terms, [weight.grad for weight in student.parameters()]))
    (still, still_terms, still_gradient), (moved, moved_terms, moved_gradient) = found
    assert torch.allclose(moved.features, still.features.roll((y // 16, x // 16), (2, 3)), atol=1e-4)
    assert torch.allclose(moved.logits, still.logits, atol=1e-5)
    for name in TERMS:
        assert moved_terms[name].item() == pytest.approx(still_terms[name].item(), rel=1e-4), name
    for ours, theirs in zip(moved_gradient, still_gradient, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-3 * float(theirs.abs().max()))


@pytest.mark.parametrize("off", TERMS)
def test_a_term_without_weight_is_told_but_not_taught(networks, off):
    whole = terms_of(networks)[-1]
    terms = terms_of(networks, CONFIG.with_(**{off.replace("L_", "w_"): 0.0}))[-1]
    assert not terms[off].requires_grad and all(terms[name].requires_grad for name in TERMS if name != off)
    for name in TERMS:
        assert terms[name].item() == pytest.approx(whole[name].item(), rel=1e-5), name


def test_the_teachers_decision_may_be_explained_in_place_of_the_label(networks):
    look, seen, cam, terms = terms_of(networks, CONFIG.with_(cam_target="teacher"))
    decided = seen.logits.argmax(1)
    assert not torch.equal(decided, TARGET)
    expected = attention_distance(grad_cam(look.features, class_score(look.logits, decided)), paste(cam, WINDOW, 4), CONFIG.attn_distance)
    assert terms["L_attn"].item() == pytest.approx(expected.item(), rel=1e-5)


# ---- the callback --------------------------------------------------------------------------------------------------


def views(training, config=CONFIG, n=8):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (n, 40, 40), dtype=np.uint8)
    store = PixelStore(pixels, np.full((n, 2), 40), np.ones(n, np.float32), np.tile(np.float32([10, 12, 26, 30]), (n, 1)), np.arange(n) % 5,
                       np.full(n, 0.3, np.float32), "")
    return ViewLoader(store, range(n), config, training=training, window_px=32)


def learner(student, config=CONFIG, **rest):
    loaders = DataLoaders(views(True, config), views(False, config), device="cpu")
    return Learner(loaders, student, loss_func=nn.CrossEntropyLoss(), path=".", **rest)


class Failing(Callback):
    """Raises in the second training batch."""

    def after_backward(self):
        if self.iter == 1:
            raise KeyError("a fault of somebody else")


class BatchLosses(Callback):
    """Keeps the loss of each training batch, epoch by epoch."""

    order = 50

    def before_fit(self):
        self.epochs = []

    def before_train(self):
        self.epochs.append([])

    def after_batch(self):
        if self.training:
            self.epochs[-1].append(self.loss.item())


def hooks(net):
    return [hook for module in net.modules() for hook in (*module._forward_hooks.values(), *module._backward_hooks.values())]


@pytest.mark.parametrize("mode", [True, False])
@pytest.mark.parametrize("fault", [True, False])
def test_hooks_are_gone_and_the_teachers_mode_is_restored_whatever_happens(mode, fault):
    student, teacher = network(0), network(1).train(mode)
    learn = learner(student, cbs=[Failing()] if fault else [])
    inside = []

    def train():
        with Distillation(student, teacher, CONFIG) as distillation:
            inside.append((teacher.training, len(hooks(student))))
            with learn.no_bar(), learn.no_logging():
                learn.fit(1, cbs=distillation)

    if fault:
        with pytest.raises(KeyError, match="somebody else"):
            train()
    else:
        train()
    assert inside == [(False, 1)]
    assert teacher.training is mode and not hooks(student) and not hooks(teacher)


@pytest.fixture(scope="module")
def trained():
    """Two epochs with a teacher that was left in training mode; with it, what was before, and the validation losses."""
    student, teacher = network(0), network(1).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    start = {name: tensor.clone() for name, tensor in student.state_dict().items()}
    learn = learner(student, cbs=BatchLosses())
    with Distillation(student, teacher, CONFIG) as distillation, learn.no_bar(), learn.no_logging():
        learn.fit(2, 1e-3, cbs=distillation)
    return student, teacher, before, start, distillation, learn


def test_a_student_that_looks_twice_is_taught_where_to_look():
    config = CONFIG.with_(looks=2, glance_px=32, window_px=32, w_aim=3.0)
    student, learn_losses = network(0, config), BatchLosses()
    learn = learner(student, config, cbs=learn_losses)
    before = [p.clone() for p in student.aim.parameters()]
    with Distillation(student, network(1), config) as distillation, learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=distillation)
    (row,) = distillation.history
    assert list(row) == ["L_cls", "L_dist", "L_attn", "L_aim"] and row["L_aim"] > 0
    assert not any(torch.equal(a, b) for a, b in zip(before, student.aim.parameters(), strict=True))
    assert not student.aim._forward_hooks and not student.head._forward_hooks


def test_training_changes_the_student_and_not_one_number_of_the_teacher(trained):
    student, teacher, before, start, *_ = trained
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())  # the norms' statistics too
    assert all(weight.grad is None for weight in teacher.parameters())
    assert not torch.equal(student.body[0].weight, start["body.0.weight"])


def test_training_loss_is_the_weighted_sum_of_the_terms(trained):
    *_, distillation, learn = trained
    assert len(distillation.history) == 2
    for row, losses in zip(distillation.history, learn.batch_losses.epochs, strict=True):
        assert tuple(row) == TERMS and all(value > 0 for value in row.values())
        total = CONFIG.w_cls * row["L_cls"] + CONFIG.w_dist * row["L_dist"] + CONFIG.w_attn * row["L_attn"]
        assert len(losses) == 2 and np.mean(losses) == pytest.approx(total, rel=1e-4)


def test_the_callback_takes_its_terms_from_the_pictures_windows_and_labels_of_its_batches():
    student, teacher = network(0), network(1)
    learn = learner(student, opt_func=SGD)
    with Distillation(student, teacher, CONFIG) as distillation, learn.no_bar(), learn.no_logging():
        learn.fit(1, 0.0, cbs=distillation)  # nothing is learnt
    student, teacher = network(0).train(), network(1).eval()
    rows = []
    for frame, picture, window, target in views(True):
        seen, cam = explain(teacher, picture, target)
        rows.append([term.item() for term in distillation_terms(student.look(frame), seen, cam, window, target, CONFIG).values()])
    assert list(distillation.history[0].values()) == pytest.approx(np.mean(rows, 0), rel=1e-4)


class Gradients(Callback):
    """Keeps the gradient of the first training batch."""

    def after_backward(self):
        if self.iter == 0:
            self.learn.first = {name: weight.grad.clone() for name, weight in self.model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("output_stride", [16, 32])
def test_attention_before_the_last_stage_compares_both_networks_maps_of_that_layer(output_stride):
    """Against maps of the layer's own gradient, image by image, and the gradient that autograd has of them."""
    config = CONFIG.with_(cam_layer="previous", w_cls=0.0, w_dist=0.0, output_stride=output_stride)
    student, teacher = network(0, config), network(1, config)
    twin = copy.deepcopy(student).train()
    learn = learner(student, config, opt_func=SGD, cbs=Gradients())
    with Distillation(student, teacher, config) as distillation, learn.no_bar(), learn.no_logging():
        assert len(hooks(student)) == 2
        learn.fit(1, 0.0, cbs=distillation)
    assert not hooks(student) and student.body[7][0].bn1.num_batches_tracked == 2  # two batches: a map is no second look

    def cams(net, lower, target):
        upper = nn.Sequential(net.body[7], net.head, nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
        maps = []
        for i in range(len(target)):
            logits = upper(lower[i:i + 1])[0]
            (gradient,) = torch.autograd.grad(logits[target[i]] - logits.mean(), lower, create_graph=True)
            maps.append(torch.relu((gradient[i].mean((1, 2), keepdim=True) * lower[i]).sum(0)))
        return torch.stack(maps)

    losses = []
    for frame, picture, window, target in views(True, config):
        theirs = cams(teacher.eval(), teacher.eval().body[:7](picture).detach().requires_grad_(), target).detach()
        lower = twin.train().body[:7](frame)
        with torch.no_grad():
            twin.body[7](lower)  # the student's own pass, after which its norms have seen the batch
        ours = cams(twin, lower, target)
        assert ours.shape == (4, 4, 4) and theirs.shape == (4, 2, 2)
        loss = attention_distance(ours, paste(theirs, window, 4))
        if not losses:
            (config.w_attn * loss).backward()
            expected = {name: weight.grad.clone() for name, weight in twin.named_parameters() if weight.grad is not None}
        losses.append(loss.item())
    assert distillation.history[0]["L_attn"] == pytest.approx(np.mean(losses), rel=1e-4)
    for name in ("body.0.weight", "body.6.1.conv2.weight", "body.7.0.conv1.weight", "body.7.1.bn2.weight", "head.classifier.weight"):
        assert expected[name].abs().max() > 0
        assert torch.allclose(learn.first[name], expected[name], rtol=1e-2, atol=1e-3 * float(expected[name].abs().max())), name


def test_validation_loss_is_plain_cross_entropy(trained):
    student, *_, learn = trained
    student.eval()
    with torch.no_grad():
        logits, target = (torch.cat(parts) for parts in zip(*((student(x), y) for x, y in views(False))))
    assert learn.recorder.values[-1][1] == pytest.approx(F.cross_entropy(logits, target).item(), rel=1e-4)


def test_with_the_label_alone_the_student_learns_as_a_plain_network_would():
    config = CONFIG.with_(w_dist=0.0, w_attn=0.0)
    plain, taught = network(0), network(0)
    learn = learner(taught, config)
    with Distillation(taught, network(1), config) as distillation, learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=distillation)

    class FrameOnly(Callback):
        def before_batch(self):
            self.learn.xb = self.xb[:1]

    learn = learner(plain, config)
    with learn.no_bar(), learn.no_logging():
        learn.fit(1, 1e-3, cbs=FrameOnly())
    assert all(torch.allclose(tensor, plain.state_dict()[name], atol=1e-6) for name, tensor in taught.state_dict().items())
