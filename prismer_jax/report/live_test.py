"""report/live.py: curves are drawn while a run writes, and once more when it ends."""

import time

from prismer_jax import metrics
from prismer_jax.report import live


def test_curves_are_drawn_while_a_run_writes_and_at_its_end(tmp_path, monkeypatch):
    drawn = []

    class Handle:
        def update(self, image):
            drawn.append(image.data)

    monkeypatch.setattr(live, "display", lambda first, display_id: Handle())
    monkeypatch.setattr(live, "get_ipython", object)
    with live.curves(tmp_path, every=0.01), metrics.Writer(tmp_path) as writer:
        time.sleep(0.05)
        assert not drawn  # nothing is logged yet
        writer.write(1, {"train/loss": 2.0})
        until = time.monotonic() + 20
        while not drawn and time.monotonic() < until:
            time.sleep(0.01)
        count = len(drawn)
        assert count
        writer.write(2, {"train/loss": 1.0})
    assert len(drawn) > count
    assert drawn[-1][:4] == b"\x89PNG"
    assert drawn[-1] != drawn[0]


def test_a_script_draws_nothing(tmp_path, capsys):
    with live.curves(tmp_path, every=0.01), metrics.Writer(tmp_path) as writer:
        writer.write(1, {"train/loss": 2.0})
        time.sleep(0.05)
    assert capsys.readouterr() == ("", "")
