import json
import pickle

from prismer_jax.errors import BadSample
from prismer_jax.files.dropped import FIRST, Dropped


def example() -> Dropped:
    dropped = Dropped()
    dropped.add("not downloaded", "00000: HTTP Error 404", count=1234)
    for number in range(FIRST + 2):
        dropped.add("missing photo", f"{number}.jpg")
    dropped.add_error(BadSample("a.jpg: the file is empty.", reason="empty file"))
    return dropped


def test_cases_are_counted_by_reason_and_the_first_are_named():
    dropped = example()
    assert dropped.counts == {"not downloaded": 1234, "missing photo": FIRST + 2, "empty file": 1}
    assert list(dropped.counts) == ["not downloaded", "missing photo", "empty file"]
    assert dropped.total == 1234 + FIRST + 3
    assert dropped.to_json()["missing photo"]["first"] == [f"{number}.jpg" for number in range(FIRST)]
    assert dropped.lines()[0] == "1,234 x not downloaded, the first: 00000: HTTP Error 404"
    assert dropped.lines()[2] == "    1 x empty file, the first: a.jpg: the file is empty."
    assert dropped
    assert not Dropped()
    assert Dropped().lines() == []


def test_counts_add_up_and_survive_json_and_processes():
    dropped = example()
    assert Dropped.from_json(json.loads(json.dumps(dropped.to_json()))) == dropped
    assert pickle.loads(pickle.dumps(dropped)) == dropped
    other = Dropped()
    other.add("missing photo", "z.jpg")
    other.update(dropped)
    assert other.counts["missing photo"] == FIRST + 3
    assert other.to_json()["missing photo"]["first"] == ["z.jpg", "0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert other != dropped


def test_the_reason_of_a_bad_sample_survives_a_process():
    error = pickle.loads(pickle.dumps(BadSample("x", reason="empty file")))
    assert (str(error), error.reason) == ("x", "empty file")
    assert BadSample("x").reason == "unusable sample"
