# %% [markdown]
# ## Exercises
#
# They need the first cells of this notebook and the run of the plain network.

# %%
from sos.check import check
from sos.method.cam import box_mask, grad_cam

predictions = study.baseline().test  # pointing: 1 where the peak of the map lies in the expert's box; energy: the share of the map inside

# %% [markdown]
# ### Exercise 1 · The pointing game, by hand
#
# `maps` are heat maps (n, h, w), `boxes` (n, 4) are x0, y0, x1, y1 as shares of the image's sides. For how many maps does the centre of the cell with the largest value lie inside its box? Return
# the share.

# %% tags=["stub"]
def pointing_game(maps, boxes):
    return float("nan")  # your answer

# %% tags=["solution"]
def pointing_game(maps, boxes):
    height, width = maps.shape[1:]
    best = maps.flatten(1).argmax(1)
    x, y = (best % width + 0.5) / width, (best // width + 0.5) / height
    inside = (x > boxes[:, 0]) & (x < boxes[:, 2]) & (y > boxes[:, 1]) & (y < boxes[:, 3])
    return inside.float().mean().item()

# %% tags=["check"]
maps = torch.zeros(4, 8, 8)
maps[[0, 1, 2, 3], [1, 6, 3, 0], [2, 6, 3, 7]] = 1.0  # row, column of each peak
boxes = torch.tensor([[0.25, 0.1, 0.4, 0.3], [0.0, 0.0, 0.5, 0.5], [0.4, 0.4, 0.5, 0.5], [0.1, 0.9, 0.2, 1.0]])
check("1", pointing_game(maps, boxes), 0.5)

# %% [markdown]
# ### Exercise 2 · What chance points at
#
# A map whose peak lies *anywhere with equal chance* hits a box as often as the box covers the image. Compute that share for the held-out boxes, as a mean. `windows` gives the experts' boxes,
# made square, in the frame of the network, as (n, 4) shares.

# %% tags=["stub"]
chance = float("nan")  # your answer

# %% tags=["solution"]
rows = study.cohort.subset("test").index.to_numpy()
windows = attention.windows(study.store, rows)
chance = ((windows[:, 2] - windows[:, 0]) * (windows[:, 3] - windows[:, 1])).mean().item()

# %% [markdown] tags=["solution"]
# A few per cent. The control *mean position* scores many times that without looking at an image, since heads are positioned alike. That is why a peak in the box proves
# little by itself: chance is the wrong thing to compare it with.

# %% tags=["check"]
held_out = attention.windows(study.store, study.cohort.subset("test").index.to_numpy())
check("2", chance, box_mask(held_out, 512).mean().item(), 1e-3)

# %% [markdown]
# ### Exercise 3 · Grad-CAM of a linear network
#
# For a network that averages its last map and applies a linear layer, $y = \sum_c w_c \, \mathrm{mean}(A_c)$. Work out $\alpha_c$ on paper, then write Grad-CAM without any gradient.

# %% tags=["stub"]
def linear_cam(features, weight):
    """features (c, h, w), weight (c,): the Grad-CAM (h, w) of y."""
    return torch.full(features.shape[1:], float("nan"))  # your answer

# %% tags=["solution"]
def linear_cam(features, weight):
    """features (c, h, w), weight (c,): the Grad-CAM (h, w) of y."""
    cells = features[0].numel()
    return torch.relu((weight[:, None, None] / cells * features).sum(0))

# %% [markdown] tags=["solution"]
# $\partial y / \partial A_{cij} = w_c / hw$ at every place, so $\alpha_c = w_c / hw$: up to a factor this is CAM (Zhou et al. 2016), of which Grad-CAM is the generalisation.

# %% tags=["check"]
features = torch.randn(1, 6, 5, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
weight = torch.linspace(-1, 1, 6)
reference = grad_cam(features, (features.mean((2, 3)) * weight).sum(1))[0]
check("3", linear_cam(features[0].detach(), weight), reference.detach())

# %% [markdown]
# ### Exercise 4 · The map of another stage
#
# Grad-CAM answers a question about *one* stage. Explain the plain network's map of stage 1 and of stage 5 for the same held-out images, and give the mean over images of the cosine between the
# two maps. Would a picture without the stage's name be of any use?

# %% tags=["stub"]
mean_cosine = float("nan")  # your answer

# %% tags=["solution"]
rows = study.cohort.subset("test").index.to_numpy()
first, last = (attention.look(study, study.baseline(), rows, torch.full((len(rows),), stage))[1].flatten(1) for stage in (0, 4))
mean_cosine = torch.cosine_similarity(first, last).mean().item()

# %% tags=["check"]
test = study.cohort.subset("test").index.to_numpy()
a, b = (attention.look(study, study.baseline(), test, torch.full((len(test),), k))[1].flatten(1) for k in (0, 4))
check("4", mean_cosine, ((a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp_min(1e-8)).mean().item(), 1e-4)
