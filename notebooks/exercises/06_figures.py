# %% [markdown]
# ## Exercises
#
# They need the first cells of this notebook and the student's run.

# %%
import numpy as np

from sos.check import check
from sos.study import metrics, trust

run = study.student()
probabilities = run.test.filter(regex=r"^p\d+$").to_numpy()  # (n, 5)
target = run.test["target"].to_numpy()  # stages counted from 0

# %% [markdown]
# ### Exercise 1 · How often in the top two?
#
# A reader may want to know how often the experts' stage is among the network's *two* likeliest. Compute that share on the held-out images.

# %% tags=["stub"]
in_top_two = float("nan")  # your answer

# %% tags=["solution"]
in_top_two = (np.argsort(-probabilities, 1)[:, :2] == target[:, None]).any(1).mean()

# %% tags=["check"]
from sklearn.metrics import top_k_accuracy_score

check("1", in_top_two, top_k_accuracy_score(target, probabilities, k=2, labels=range(probabilities.shape[1])))

# %% [markdown]
# ### Exercise 2 · Expected calibration error
#
# Put the images into ten bins by the probability of the decided stage (0–0.1, 0.1–0.2, …). In each bin take the distance between mean probability and share of right decisions; average the
# distances, each weighted by the bin's share of images.

# %% tags=["stub"]
def calibration_error(probabilities, target):
    return float("nan")  # your answer

# %% tags=["solution"]
def calibration_error(probabilities, target):
    sure, right = probabilities.max(1), probabilities.argmax(1) == target
    bins = np.minimum((sure * 10).astype(int), 9)
    apart = [abs(sure[bins == b].mean() - right[bins == b].mean()) * (bins == b).mean() for b in np.unique(bins)]
    return sum(apart)

# %% tags=["check"]
check("2", calibration_error(probabilities, target), metrics.calibration_error(target, probabilities, np.ones((1, len(target))))[0])

# %% [markdown]
# ### Exercise 3 · Staging only what is sure
#
# Let the network stage the surer half of the held-out images (by the probability of the decided stage) and leave the rest to a person. What is its accuracy on its half? Compare with the risk–coverage
# curve of figure 20.

# %% tags=["stub"]
accuracy_of_the_surer_half = float("nan")  # your answer

# %% tags=["solution"]
half = len(target) // 2
surest = np.argsort(-probabilities.max(1), kind="stable")[:half]
accuracy_of_the_surer_half = (probabilities.argmax(1) == target)[surest].mean()

# %% [markdown] tags=["solution"]
# If this is no better than the accuracy on all images, the network's confidence tells nothing, whatever its accuracy.

# %% tags=["check"]
ranked = run.test.assign(sure=probabilities.max(1)).sort_values("sure", ascending=False, kind="stable").head(len(target) // 2)
check("3", accuracy_of_the_surer_half, (ranked["decided"] == ranked["stage"]).mean())

# %% [markdown]
# ### Exercise 4 · What a caption must say
#
# The published accuracy, 83.75 %, has no interval. With $n$ patients an accuracy $a$ has a standard error of $\sqrt{a (1 - a) / n}$. What would the 95 % interval be if a quarter of the 723 patients had been
# held out? Give low and high in per cent.

# %% tags=["stub"]
low, high = float("nan"), float("nan")  # your answer

# %% tags=["solution"]
n, a = round(723 / 4), 0.8375
half_width = 1.96 * np.sqrt(a * (1 - a) / n)
low, high = 100 * (a - half_width), 100 * (a + half_width)

# %% [markdown] tags=["solution"]
# From 78 to 89 %: an accuracy of 80 % on another cohort would not contradict the paper, and one of 88 % would not be better.

# %% tags=["check"]
from scipy.stats import norm

check("4", (low, high), norm.interval(0.95, 83.75, 100 * (0.8375 * 0.1625 / (723 / 4)) ** 0.5), 0.3)
