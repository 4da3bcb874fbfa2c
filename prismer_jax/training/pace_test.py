"""Waiting for a loader, slow steps and goodput, by a clock that is set by hand."""

import logging

import pytest

from prismer_jax.training.pace import MOST, Pace


class Clock:
    seconds = 0.0

    def __call__(self):
        return self.seconds

    def step(self, pace, step, seconds, wait=0.0):
        """Takes a step of so many seconds, after so long a wait for its batch."""

        def slowly():
            self.seconds += wait
            yield step

        next(pace.timed(slowly()))
        self.seconds += seconds
        return pace.measure(step)


@pytest.fixture
def clock():
    return Clock()


def test_a_stalled_loader_is_reported_with_the_share_of_time_lost(tmp_path, clock, caplog):
    pace = Pace(tmp_path, 0, clock=clock, now=clock)
    assert clock.step(pace, 1, 0.9, wait=0.1)["waiting_for_data"] == pytest.approx(0.1)
    assert not caplog.records
    assert clock.step(pace, 2, 0.5, wait=0.5)["waiting_for_data"] == pytest.approx(0.5)
    clock.step(pace, 3, 0.9, wait=0.1)
    clock.step(pace, 4, 0.5, wait=0.5)
    assert not caplog.records  # as after a checkpoint: no more than one stretch in a row
    clock.step(pace, 5, 0.4, wait=0.6)
    assert "steps 5 to 5: 60% of the time was spent waiting for the loader" in caplog.text
    for step in range(6, 33):
        clock.step(pace, step, 0.5, wait=0.5)
    assert len(caplog.records) == MOST


def test_slow_steps_are_named_and_a_pause_is_not_one(tmp_path, clock, caplog):
    caplog.set_level(logging.WARNING)
    pace = Pace(tmp_path, 0, clock=clock, now=clock)
    for step in range(1, 8):
        clock.step(pace, step, 1.0)
    clock.seconds += 100
    pace.restart(7)
    clock.step(pace, 8, 2.9)
    assert not caplog.records
    clock.step(pace, 9, 4.0)
    assert caplog.messages == ["steps 9 to 9 took 4 s each, 4.0 times the median of 1 s."]


def test_goodput_counts_what_restarts_cost(tmp_path, clock):
    pace = Pace(tmp_path, 0, clock=clock, now=clock)
    for step in range(1, 11):
        last = clock.step(pace, step, 1.0)
    assert last["goodput"] == 1.0
    clock.seconds += 10  # killed; the last checkpoint is of step 5
    pace = Pace(tmp_path, 5, clock=clock, now=clock)
    assert pace.starts == 2
    for step in range(6, 11):
        last = clock.step(pace, step, 1.0)
    assert last["goodput"] == pytest.approx(10 / 25)
    assert Pace(tmp_path, 0, clock=clock, now=clock).starts == 1  # begun anew
