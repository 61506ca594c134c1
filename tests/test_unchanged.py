"""Work on speed changes no result: small trainings of the profile smoke end as they did before it, within rounding.

REFERENCES were measured with the code before cameras, losses, loaders and Grad-CAM were made faster (commit e6983c4). Of the network that looks
twice they are of three processors, up to 2 % apart: a rounding moves its window.
"""

from dataclasses import replace

import pytest

from sos.config import MODELS, get_profile
from sos.study.training import Study

SMALL = dict(epochs=2, batch_size=4, precision="fp32")
WITHIN = {"zoom": 1e-2}  # half of what lies between the references; other models differ by less than 1e-3
REFERENCES = {  # losses of the last epoch (training, validation, and the terms of a student), then the mean probabilities of stages 1 to 5
    "teacher": [[1.6246, 1.7248, 0.2047, 0.18354, 0.18596, 0.17779, 0.24801]],
    "baseline": [[1.6082, 1.6485, 0.1226, 0.16319, 0.13103, 0.10963, 0.47354]],
    "student": [[1.8706, 1.5964, 1.5637, 0.058958, 2.7733, 0.17861, 0.19507, 0.18802, 0.13017, 0.30814]],
    "zoom": [[2.6933, 1.6869, 1.3878, 0.19522, 5.0874, 0.69916, 0.18454, 0.17682, 0.24387, 0.2141, 0.18067],  # AMD, AVX2
             [2.7042, 1.6865, 1.4024, 0.19184, 5.0745, 0.6984, 0.1858, 0.17743, 0.24288, 0.21544, 0.17845],  # Intel, AVX-512
             [2.6976, 1.684, 1.3918, 0.19469, 5.0888, 0.6995, 0.18414, 0.17598, 0.24384, 0.215, 0.18104]],  # AMD, AVX-512
}


def summary(study: Study, model: str) -> list[float]:
    """The losses of the last epoch, and of the held-out images the mean probability of each stage."""
    run = getattr(study, model)()
    losses = run.history.iloc[-1][["train_loss", "valid_loss", *(name for name in run.history if name.startswith("L_"))]]
    return [*losses.tolist(), *run.test.filter(regex=r"^p\d$").mean().tolist()]


@pytest.fixture(scope="module")
def study(tmp_path_factory, tiny_cohort, one_thread):
    base = get_profile("smoke")
    profile = replace(base, bootstrap=50, native_px=256, valid_share=0.25, test_share=0.25,
                      **{model: getattr(base, model).with_(**SMALL) for model in MODELS})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SOS_HOME", str(tmp_path_factory.mktemp("home")))
        yield Study(profile, tiny_cohort, device="cpu")


@pytest.mark.parametrize("model", MODELS)
def test_a_training_ends_as_before(model, study):
    got, within = summary(study, model), WITHIN.get(model, 2e-3)
    assert any(got == pytest.approx(reference, rel=within, abs=2e-4) for reference in REFERENCES[model]), got
