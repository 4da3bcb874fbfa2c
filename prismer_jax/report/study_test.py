import io
import statistics

import numpy as np
import pytest
from PIL import Image

from prismer_jax.report import study

RESULTS = {
    "all": {0: {"acc": 50.0, "cider": 1.5}, 1: {"acc": 54.0, "cider": 1.7}, 2: {"acc": 52.0, "cider": 1.6}},
    "none": {0: {"acc": 41.0, "cider": 1.55}, 1: {"acc": 43.0, "cider": 1.45}},
    "later": {},
}


def test_table_has_means_and_sample_deviations_over_seeds():
    lines = study.table(RESULTS, ["acc", "cider"]).splitlines()
    assert lines[0] == "| arm | seeds | acc | cider |"
    assert lines[2] == "| all | 3 | 52.0 ± 2.0 | 1.60 ± 0.10 |"
    assert lines[3] == f"| none | 2 | 42.0 ± {statistics.stdev([41, 43]):.1f} | 1.50 ± 0.07 |"
    assert lines[4] == "| later | 0 | – | – |"


def test_differences_are_between_runs_of_the_same_seed():
    lines = study.differences(RESULTS, ["acc", "cider"], "all").splitlines()
    assert lines[0] == "| beside all | acc | cider |"
    assert lines[2] == "| none | -10.0 (-11.0 to -9.0) | -0.10 (-0.25 to +0.05) |"
    assert lines[3] == "| later | – | – |"
    assert len(lines) == 4


def test_metrics_are_those_of_the_model_not_of_blindness():
    results = {"a": {0: {"acc": 1.0, "acc_blank": 0.0, "acc_most_frequent/x": 0.0}}, "b": {0: {"more": 1.0}}}
    assert study.metrics_of(results) == ["acc", "more"]


@pytest.mark.parametrize("count", [1, 6])
def test_plot_shows_a_dot_for_every_seed(tmp_path, count):
    def colours(results):
        path = tmp_path / "plot.png"
        study.plot(path, results, [f"m{i}" for i in range(count)], ["a"])
        return np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("RGB"))

    def blue(pixels):
        return int((np.abs(pixels.astype(int) - (0x2A, 0x6F, 0xB0)).sum(-1) < 120).sum())

    metrics = {f"m{i}": 1.0 for i in range(count)}
    one = {"a": {0: metrics}, "b": {0: metrics}}
    far = {"a": {0: metrics}, "b": {0: metrics, 1: {name: 2.0 for name in metrics}}}
    assert blue(colours(far)) > 1.5 * blue(colours(one)) > 0
    assert [file.name for file in tmp_path.iterdir()] == ["plot.png"]
