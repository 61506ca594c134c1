# %% [markdown]
# ## Exercises
#
# They need the first cells of this notebook; the last one the runs of the main networks.

# %%
from sos.check import check

logits = torch.tensor([[4.0, 2.0, 0.0, -1.0, -3.0]])  # of a teacher, for five stages

# %% [markdown]
# ### Exercise 1 · What a temperature does
#
# The teacher gives stage 1 these logits' softmax. What probability does stage 2 have at $T = 1$, and what at $T = 3$? Guess before you compute.

# %% tags=["stub"]
at_1, at_3 = float("nan"), float("nan")  # your answer

# %% tags=["solution"]
at_1, at_3 = ((logits / T).softmax(1)[0, 1].item() for T in (1, 3))

# %% [markdown] tags=["solution"]
# From about 0.12 to 0.26. What the teacher thinks of the *other* stages is hardly visible at T = 1 and carries gradient at T = 3: that stage 2 is nearer to stage 1 than stage 5 is,
# nobody told the student otherwise.

# %% tags=["check"]
check("1", (at_1, at_3), [torch.exp(logits / t - torch.logsumexp(logits / t, 1))[0, 1].item() for t in (1, 3)])

# %% [markdown]
# ### Exercise 2 · The loss of Hinton et al.
#
# Write $L = T^2 \cdot \mathrm{KL}(\mathrm{softmax}(z_t / T) \,\|\, \mathrm{softmax}(z_s / T))$, the mean over a batch of logits (b, k), without `F.kl_div`.

# %% tags=["stub"]
def my_distillation(student, teacher, temperature):
    return torch.tensor(float("nan"))  # your answer

# %% tags=["solution"]
def my_distillation(student, teacher, temperature):
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return temperature**2 * (p * (p / q).log()).sum(1).mean()

# %% tags=["check"]
generator = torch.Generator().manual_seed(0)
student_logits, teacher_logits = torch.randn(2, 8, 5, generator=generator)
check("2", my_distillation(student_logits, teacher_logits, 3.0), distillation_kl(student_logits, teacher_logits, 3.0), 1e-5)

# %% [markdown]
# ### Exercise 3 · Why T²
#
# The gradient of the KL with respect to the student's logits shrinks as T grows. By what factor does its largest entry shrink from $T = 4$ to $T = 8$ if T² is left out? And with T²? Use autograd on
# `student_logits` and `teacher_logits` of the check above; give both factors (T = 4 over T = 8).

# %% tags=["stub"]
without, with_it = float("nan"), float("nan")  # your answer

# %% tags=["solution"]
def largest_gradient(T, squared):
    z = student_logits.clone().requires_grad_()
    loss = my_distillation(z, teacher_logits, T) / (1 if squared else T**2)
    return torch.autograd.grad(loss, z)[0].abs().max().item()

without, with_it = (largest_gradient(4.0, squared) / largest_gradient(8.0, squared) for squared in (False, True))

# %% [markdown] tags=["solution"]
# About 4 without, about 1 with T². Without it, a change of T would silently change the weight of the term, and an ablation of T would be one of w_dist.

# %% tags=["check"]
def largest(T):
    z = student_logits.clone().requires_grad_()
    return torch.autograd.grad(distillation_kl(z, teacher_logits, T), z)[0].abs().max().item()

check("3", (without, with_it), (4 * largest(4.0) / largest(8.0), largest(4.0) / largest(8.0)), 1e-3)

# %% [markdown]
# ### Exercise 4 · Another attention distance
#
# Change the loss: instead of KL, the *total variation* between two heat maps (b, h, w), half the sum of the absolute differences after each has been divided by its sum; mean over the batch. What is its
# largest possible value, and what is its gradient once two blobs no longer overlap?

# %% tags=["stub"]
def total_variation(student, teacher):
    return torch.tensor(float("nan"))  # your answer

# %% tags=["solution"]
def total_variation(student, teacher):
    p, q = (cam / cam.sum((1, 2), keepdim=True) for cam in (teacher, student))
    return 0.5 * (p - q).abs().sum((1, 2)).mean()

# %% [markdown] tags=["solution"]
# 1, reached by maps without overlap; and there it is flat: moving a blob that does not touch the other changes nothing. KL keeps growing with the distance of the tails, which is one reason for choosing it.

# %% tags=["check"]
blob = torch.zeros(3, 6, 6)
blob[0, 1:3, 1:3] = blob[1, 1:3, 2:4] = blob[2, 4:6, 4:6] = 1.0
check("4", [total_variation(blob[[i]], blob[[0]]).item() for i in range(3)], [0.0, 0.5, 1.0], 1e-6)

# %% [markdown]
# ### Exercise 5 · The gap
#
# How much of the gap in accuracy between plain network and teacher does each student close? Take the accuracies of `metrics` of the runs `study.student()`, `study.zoom()`, `study.baseline()` and
# `study.teacher()` (first seed); where the teacher is not ahead, there is no gap: answer 0.

# %% tags=["stub"]
closed_by_student, closed_by_two_looks = float("nan"), float("nan")  # your answer

# %% tags=["solution"]
runs = (study.student(), study.zoom(), study.baseline(), study.teacher())
student_a, zoom_a, plain_a, teacher_a = (run.metrics["accuracy"]["value"] for run in runs)
gap = teacher_a - plain_a
closed_by_student, closed_by_two_looks = ((a - plain_a) / gap if gap > 0 else 0.0 for a in (student_a, zoom_a))

# %% tags=["check"]
from sos.study.metrics import gap_closed

tests = [run.test for run in (study.baseline(), study.teacher())]
known = [gap_closed(run.test, *tests, bootstrap=10)["value"] for run in (study.student(), study.zoom())]
check("5", (closed_by_student, closed_by_two_looks), [0.0 if value != value else value for value in known])
