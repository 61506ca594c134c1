# %% [markdown]
# ## Exercises
#
# They need the first cells of this notebook and the teacher's run.

# %%
import numpy as np

from sos.check import check

predictions = study.teacher().test  # one row a held-out image: stage, decided, p1 … p5
truth, decided = (predictions[name].to_numpy() for name in ("stage", "decided"))

# %% [markdown]
# ### Exercise 1 · Read the matrix
#
# Of the held-out images that the experts put into the first stage, which share did the network put there too? Read it off the figure of section 3 first, then compute it.

# %% tags=["stub"]
recall_of_first_stage = float("nan")  # your answer, between 0 and 1

# %% tags=["solution"]
recall_of_first_stage = (decided[truth == 1] == 1).mean()

# %% tags=["check"]
from sklearn.metrics import cohen_kappa_score, recall_score

check("1", recall_of_first_stage, recall_score(truth, decided, labels=[1], average=None, zero_division=0)[0])

# %% [markdown]
# ### Exercise 2 · Quadratic weighted kappa
#
# Notebook 01 built this kappa from pairs of readings; papers write it with tables. With $O$ the confusion matrix, $E$ the matrix that two raters with the same margins
# would have by chance, and $w_{ij} = (i - j)^2$, write $\kappa_w = 1 - \sum w O / \sum w E$.

# %% tags=["stub"]
def weighted_kappa(truth, decided, stages=5):
    return float("nan")  # your answer

# %% tags=["solution"]
def weighted_kappa(truth, decided, stages=5):
    observed = np.zeros((stages, stages))
    np.add.at(observed, (truth - 1, decided - 1), 1)
    by_chance = np.outer(observed.sum(1), observed.sum(0)) / observed.sum()
    i, j = np.indices(observed.shape)
    weight = (i - j) ** 2
    return 1 - (weight * observed).sum() / (weight * by_chance).sum()

# %% tags=["check"]
one, two = np.random.default_rng(0).integers(1, 6, (2, 300))
two[:200] = np.clip(one[:200] + 1, 1, 5)
check("2", weighted_kappa(one, two), cohen_kappa_score(one, two, weights="quadratic"))

# %% [markdown]
# ### Exercise 3 · An interval with two images a patient
#
# In notebook 01 each patient counted once. Where one has several images, the patient is drawn, and all of the patient's images come along. Note the accuracy of 2,000 such
# draws; return the 2.5th and the 97.5th percentile. `right` and `patient` have one entry an image. Will the interval be wider or narrower than that of drawn images?

# %% tags=["stub"]
def interval(right, patient, times=2000, seed=0):
    return float("nan"), float("nan")  # your answer: low, high

# %% tags=["solution"]
def interval(right, patient, times=2000, seed=0):
    rng = np.random.default_rng(seed)
    members = [np.flatnonzero(patient == name) for name in np.unique(patient)]
    draws = (rng.integers(0, len(members), len(members)) for _ in range(times))
    accuracies = [right[np.concatenate([members[k] for k in draw])].mean() for draw in draws]
    return np.percentile(accuracies, [2.5, 97.5])

# %% [markdown] tags=["solution"]
# Wider. A second image of a patient that is right whenever the first is adds no information: 800 images of 400 patients are worth 400.

# %% tags=["check"]
right = np.repeat(np.arange(400) < 300, 2)  # 300 of 400 patients right, on both of their images
check("3", interval(right, np.repeat(np.arange(400), 2)), (0.7075, 0.7925), 0.006)  # from the normal distribution, n = 400

# %% [markdown]
# ### Exercise 4 · Expected stage
#
# A network that wavers between 2 and 3 should perhaps say 2.5. Compute the expected stage of each held-out image, the mean of the stages 1 to 5 weighted by their
# probabilities, and the mean absolute distance of it from the experts' stage. Is that smaller or larger than `stage_error` of the decided stages?

# %% tags=["stub"]
mean_distance = float("nan")  # your answer

# %% tags=["solution"]
probabilities = predictions[["p1", "p2", "p3", "p4", "p5"]].to_numpy()
expected = probabilities @ np.arange(1, 6)
mean_distance = np.abs(expected - truth).mean()

# %% [markdown] tags=["solution"]
# For a network that is unsure, the expected stage is drawn to the middle: the mean distance can be larger although gross errors become rarer. Look at the squared distance too: the
# expected stage is what minimises *that*, if the probabilities are true.

# %% tags=["check"]
from sos.study.trust import expected_stage

check("4", mean_distance, np.abs(expected_stage(predictions, study.cohort.scheme.labels) - truth).mean())
