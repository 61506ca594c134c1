"""The drawings for teaching are drawn after the phantom: its places, its order of fusion; text is legible in print."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.patches import Polygon

from sos.stages import BASSED5
from sos.study import drawings


@pytest.fixture(scope="module", params=["anatomy", "method"])
def drawn(request):
    fig = getattr(drawings, request.param)()
    fig.canvas.draw()
    yield fig
    plt.close(fig)


def texts(fig):
    return [text for text in fig.findobj(plt.Text) if text.get_visible() and text.get_text().strip()]


def test_text_is_legible_in_print_and_within_the_page(drawn):
    page = drawn.bbox
    for text in texts(drawn):
        assert text.get_fontsize() >= 7, text.get_text()
        place = text.get_window_extent()
        assert page.x0 <= place.x0 and place.x1 <= page.x1 and page.y0 <= place.y0 and place.y1 <= page.y1, text.get_text()


def test_the_joint_lies_on_the_clivus_and_closes_from_its_endocranial_end():
    person = drawings.drawn_person()
    at = person.landmarks
    assert at["basion"][1] > at["joint"][1] > at["dorsum"][1] and at["basion"][0] < at["joint"][0] < at["sinus"][0]  # mm, y down
    assert np.linalg.norm(at["joint"]) < 1.5  # the frame's own middle
    closed = [fusion.closed for fusion in drawings.STATES]
    assert closed == sorted(closed) and closed[0] == 0 and closed[-1] == 1
    assert [round(fusion.position) for fusion in drawings.STATES] == list(BASSED5.labels)


def test_each_stage_has_its_joint():
    fig = drawings.anatomy()
    stages = fig.axes[-len(BASSED5):]
    cartilage = [[patch for patch in ax.patches if isinstance(patch, Polygon) and patch.get_facecolor() == plt.matplotlib.colors.to_rgba(drawings.JOINT)]
                 for ax in stages]
    assert [len(found) for found in cartilage] == [1, 1, 1, 0, 0]
    lengths = [np.ptp(found[0].get_xy()[:, 1]) for found in cartilage[:3]]
    assert lengths[0] > 1.5 * lengths[1] > 1.5 * lengths[2] > 0
    assert [len(ax.lines) for ax in stages] == [0, 0, 0, 1, 0]  # the scar
    for ax, stage in zip(stages, BASSED5.stages, strict=True):
        assert f"stage {stage.label}: {stage.name}" in ax.get_title(loc="left") + ax.get_title()
        assert ax.get_xlabel().replace("\n", " ") == stage.criterion
    plt.close(fig)
