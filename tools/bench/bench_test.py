import pytest

from prismer_jax.errors import UserError
from tools.bench import __main__ as bench
from tools.bench import worker


@pytest.mark.parametrize("words", [["scenes"], ["--only", "scenes"]])
def test_a_benchmark_is_named_alone_or_by_only(words, capsys):
    bench.main([*words, "--seconds", "0.1"])
    rate, machine = capsys.readouterr().out.splitlines()
    assert rate.startswith("scenes a second on one core")
    assert float(rate.split()[-1]) > 0
    assert "cores" in machine


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["scene"], "Unknown benchmark 'scene'. Did you mean 'scenes'"),
        (["experts", "loader"], "'experts' goes alone"),
        (["nanovlm", "loader"], "'nanovlm' goes alone"),
        (["nanovlm", "--rows", "trainin"], "Unknown row 'trainin'. Did you mean 'training'"),
        (["experts", "--experts", "deph"], "Unknown expert 'deph'. Did you mean 'depth'"),
    ],
)
def test_benchmarks_that_do_not_exist_or_go_alone_are_refused(words, message):
    with pytest.raises(UserError, match=message):
        bench.main(words)


def test_each_code_starts_in_the_environment_of_its_users(monkeypatch):
    for told, before in (("glibc.malloc.check=1:glibc.malloc.hugetlb=1", "glibc.malloc.check=1"), ("a=1", "a=1")):
        monkeypatch.setenv("GLIBC_TUNABLES", told)
        assert worker.as_users_have_it()["GLIBC_TUNABLES"] == before
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")
    assert "GLIBC_TUNABLES" not in worker.as_users_have_it()
