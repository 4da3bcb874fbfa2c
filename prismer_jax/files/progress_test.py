import io

import pytest
from IPython import display

from prismer_jax.files import progress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_elsewhere_than_on_a_terminal_a_line_every_half_minute(clock):
    stream = io.StringIO()
    with progress.bar("depth", 100, done=20, stream=stream, clock=clock) as advance:
        for seconds in (50, 60, 70, 80, 90, 100):  # the first piece is slow: it compiles
            clock.now = seconds
            advance(5)
    # 15 photos in 30 seconds since the first piece; 60 are left
    assert stream.getvalue().splitlines() == ["depth: 25 of 100", "depth: 40 of 100, 0.5 photos/s, 2:00 left"]


def test_a_terminal_gets_a_bar_and_no_lines(clock):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    stream = Terminal()
    with progress.bar("captions", 4, unit="captions", stream=stream, clock=clock) as advance:
        for seconds in (100, 102, 200):
            clock.now = seconds
            advance()
    assert "captions" in stream.getvalue()
    assert "3/4" in stream.getvalue()
    assert "0.02 captions/s, 0:50 left" in stream.getvalue()
    assert "3 of 4" not in stream.getvalue()


def test_other_processes_say_nothing(clock):
    stream = io.StringIO()
    with progress.bar("depth", 2, enabled=False, stream=stream, clock=clock) as advance:
        clock.now = 1000
        advance(2)
    assert stream.getvalue() == ""


def test_durations_are_readable():
    assert [progress.duration(s) for s in (0.4, 59.6, 3600, 7325)] == ["0:00", "1:00", "1:00:00", "2:02:05"]


def test_work_of_unknown_size_has_a_rate_and_no_time_left(clock):
    stream = io.StringIO()
    with progress.bar("weights.pt", None, unit="MB", stream=stream, clock=clock) as advance:
        for seconds in (0, 40):
            clock.now = seconds
            advance(60.4)
    assert stream.getvalue() == "weights.pt: 121, 1.51 MB/s\n"


def test_below_a_notebooks_cell_it_is_one_line_that_is_drawn_anew(monkeypatch):
    shown = []

    class Handle:
        def update(self, shown_now):
            shown.append(shown_now.data)

    class Cell(io.StringIO):
        pass

    Cell.__module__ = "ipykernel.iostream"
    monkeypatch.setattr(display, "display", lambda first, display_id: shown.append(first.data) or Handle())
    with progress.Bar("training <a>", 4, ends=True, stream=Cell()) as bar:
        bar.advance(3)
        bar.show(["2 photos/s"], "a line")
        bar.say("said beside it")
    assert 'value="0" max="4"' in shown[0]
    assert 'value="3" max="4"></progress> training &lt;a&gt; 3/4 &ensp; 2 photos/s' in shown[-1]
    with progress.Bar("looking", None, stream=Cell()) as bar:
        bar.advance()
    assert shown[-1] == ""  # it is over
