# %% [markdown]
# ## Exercises
#
# They need the first cells of this notebook and the runs of plain network and student.

# %%
import numpy as np

from sos.check import check

plain, student = (run.test.sort_values("image") for run in (study.baseline(), study.student()))
plain_right, student_right = ((table["decided"] == table["stage"]).to_numpy() for table in (plain, student))

# %% [markdown]
# ### Exercise 1 · Paired or not
#
# Two networks, the same patients. Resample patients 2,000 times and note the difference of the accuracies: once with *the same* patients for both (paired), once with patients drawn for each network
# apart (unpaired). Return the width of each 95 % interval.

# %% tags=["stub"]
def widths(a, b, times=2000, seed=0):
    return float("nan"), float("nan")  # your answer: paired, unpaired

# %% tags=["solution"]
def widths(a, b, times=2000, seed=0):
    rng = np.random.default_rng(seed)
    one, two = rng.integers(0, len(a), (2, times, len(a)))
    paired, unpaired = a[one].mean(1) - b[one].mean(1), a[one].mean(1) - b[two].mean(1)
    return tuple(np.ptp(np.percentile(difference, [2.5, 97.5])) for difference in (paired, unpaired))

# %% [markdown] tags=["solution"]
# For networks that are right on mostly the same patients the paired interval is the narrower one: what is easy for both cancels. Where they err on different patients, pairing gains little.

# %% tags=["check"]
rng = np.random.default_rng(0)
b = rng.random(1000) < 0.7
a = np.where(rng.random(1000) < 0.1, ~b, b)  # they disagree on one image in ten
spread = 2 * 1.96 / np.sqrt(1000)
expected = spread * np.std(a.astype(float) - b), spread * np.sqrt(a.var() + b.var())
check("1", widths(a, b), expected, 0.005)

# %% [markdown]
# ### Exercise 2 · Only the patients that only one got right
#
# All that tells the two networks apart are the images that only one of them staged right. How many did only the student get right, and how many only the plain network?

# %% tags=["stub"]
only_student, only_plain = float("nan"), float("nan")  # your answer

# %% tags=["solution"]
only_student, only_plain = (student_right & ~plain_right).sum(), (plain_right & ~student_right).sum()

# %% [markdown] tags=["solution"]
# McNemar's test asks no more than these two numbers: under the hypothesis that the networks are equally good each such image is a fair coin.

# %% tags=["check"]
crossed = pd.crosstab(pd.Categorical(student_right, [False, True]), pd.Categorical(plain_right, [False, True]), dropna=False).to_numpy()
check("2", (only_student, only_plain), (crossed[1, 0], crossed[0, 1]))

# %% [markdown]
# ### Exercise 3 · Holm's method
#
# Five comparisons, five p values. Sort them; multiply the smallest by 5, the next by 4, and so on; never let a later one fall below an earlier one; never exceed 1. Return them in the original order.

# %% tags=["stub"]
def my_holm(p):
    return [float("nan")] * len(p)  # your answer

# %% tags=["solution"]
def my_holm(p):
    order = np.argsort(p)
    stepped = np.minimum(1, np.sort(p) * np.arange(len(p), 0, -1))
    adjusted = np.empty(len(p))
    adjusted[order] = np.maximum.accumulate(stepped)
    return adjusted

# %% tags=["check"]
from sos.study.results import holm

values = [0.04, 0.001, 0.3, 0.02, 0.012]
check("3", my_holm(values), holm(values))

# %% [markdown]
# ### Exercise 4 · Twenty settings that do nothing
#
# You try 20 settings none of which changes anything. How likely is it that at least one differs "significantly" from the reference at p < 0.05 if nothing is adjusted? (Take the tests as independent.)

# %% tags=["stub"]
chance_of_a_discovery = float("nan")  # your answer, between 0 and 1

# %% tags=["solution"]
chance_of_a_discovery = 1 - 0.95**20

# %% [markdown] tags=["solution"]
# Almost two in three. This is why every table of this notebook adjusts its p values, and why the settings of the main networks were chosen on other virtual patients than those they are tested on.

# %% tags=["check"]
check("4", chance_of_a_discovery, (np.random.default_rng(0).random((200_000, 20)) < 0.05).any(1).mean(), 0.005)
