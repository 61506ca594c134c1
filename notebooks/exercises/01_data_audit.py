# %% [markdown]
# ## Exercises
#
# Each has a cell to fill in and a check that says whether the answer is right. They need the first cells of this notebook only.

# %%
import numpy as np

from sos.check import check

table = study.cohort.table
test = table[table["split"] == "test"]

# %% [markdown]
# ### Exercise 1 · Accuracy for nothing
#
# Somebody names the commonest stage of the *training* patients for every held-out patient and looks at no image. How often is that right? Give a share
# between 0 and 1. Guess first, from the bars of the first figure.

# %% tags=["stub"]
accuracy_for_nothing = float("nan")  # your answer

# %% tags=["solution"]
commonest = table.loc[table["split"] == "train", "stage"].mode()[0]
accuracy_for_nothing = (test["stage"] == commonest).mean()

# %% [markdown] tags=["solution"]
# Every accuracy in this study must be read against this number, not against 1 in 5. It is also why macro F1 and kappa stand beside accuracy: both are low for
# somebody who always gives the same answer.

# %% tags=["check"]
train = table.query("split == 'train'")
check("1", accuracy_for_nothing, (test["stage"] == train["stage"].value_counts().idxmax()).mean(), 1e-9)

# %% [markdown]
# ### Exercise 2 · A leak, planted
#
# Suppose every patient had two images and a colleague split the *images* at random. What share of the patients with an image in the test has another one in the training?
# Write `leaked(who, split)`: `who` and `split` are arrays with one entry an image.

# %% tags=["stub"]
def leaked(who, split):
    return float("nan")  # your answer

# %% tags=["solution"]
def leaked(who, split):
    tested, trained = set(who[split == "test"]), set(who[split == "train"])
    return len(tested & trained) / len(tested)

# %% [markdown] tags=["solution"]
# With two images a patient and three of four images in the training, nearly three of four test patients have been seen. Splitting by patient makes the number 0, which
# `sos audit` and `read_manifest` insist on.

# %% tags=["check"]
who = np.repeat(table["patient_id"].to_numpy(), 2)
split = np.where(np.random.default_rng(0).random(len(who)) < 0.25, "test", "train")
expected = np.isin(np.unique(who[split == "test"]), who[split == "train"]).mean()
check("2", leaked(who, split), expected, 1e-9)
check("2, split by patient", leaked(table["patient_id"].to_numpy(), table["split"].to_numpy()), 0, 1e-9)

# %% [markdown]
# ### Exercise 3 · Kappa by hand
#
# Two readers staged the same images. Write Cohen's kappa without weights: the observed agreement $p_o$ above the agreement $p_e$ that two readers with these
# habits would have by chance, as a share of what is above chance: $\kappa = (p_o - p_e) / (1 - p_e)$.

# %% tags=["stub"]
def kappa(a, b):
    return float("nan")  # your answer

# %% tags=["solution"]
def kappa(a, b):
    stages = np.union1d(a, b)
    observed = (a == b).mean()
    by_chance = sum((a == stage).mean() * (b == stage).mean() for stage in stages)
    return (observed - by_chance) / (1 - by_chance)

# %% tags=["check"]
from sklearn.metrics import cohen_kappa_score

one, two = np.random.default_rng(1).integers(1, 6, (2, 200))
two[:120] = one[:120]  # the second reader copies the first in 120 of 200 images
check("3", kappa(one, two), cohen_kappa_score(one, two))

# %% [markdown]
# ### Exercise 4 · How many patients?
#
# An accuracy of 80 % on $n$ held-out patients has a 95 % interval of about $\pm 1.96 \sqrt{0.8 \cdot 0.2 / n}$. How many patients are needed for $\pm 2$ percentage
# points? Round up. How many has your test split?

# %% tags=["stub"]
patients_needed = float("nan")  # your answer

# %% tags=["solution"]
patients_needed = np.ceil(0.8 * 0.2 * (1.96 / 0.02) ** 2)

# %% [markdown] tags=["solution"]
# About 1,500: twice the whole cohort of the paper, and eight times its test split if that is a quarter. Single accuracies of such studies are known to a few points at best;
# *differences* on the same patients are known better (notebook 05, exercise 1).

# %% tags=["check"]
check("4", patients_needed, 1537, 0.5)
