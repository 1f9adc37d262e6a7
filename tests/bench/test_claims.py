"""Claims: the mean of paired differences, its interval, and what is promised of it."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from benchmarks import claims
from benchmarks._claims import Claim, Report, compare, interval
from streaming.errors import ConfigError, SourceError


def quiet(_line: str) -> None:
    pass


def claim(name: str = "more", **settings: object) -> Claim:
    """`ours` finds its seed and 2 more than `theirs`, give or take."""
    values = {"says": "ours finds more", "ours": "ours", "baseline": "theirs", **settings}
    return Claim(name, measure=measure, **values)  # type: ignore[arg-type]


def measure(seed: int, report: Report) -> Mapping[str, float]:
    report(f"measured with {seed}")
    return {"ours": 2.0 + 1.5 * seed, "theirs": float(seed), "same": float(seed)}


def test_an_interval_is_students() -> None:
    # Their standard deviation is sqrt(.41 / 3), and of t with 3 degrees 2.5% are above 3.182.
    reach = 3.182 * (0.41 / 3) ** 0.5 / 2
    assert interval([1.1, 0.7, 1.6, 1.2]) == pytest.approx((1.15, 1.15 - reach, 1.15 + reach))


def test_the_differences_are_paired_by_seed() -> None:
    found = compare([claim(seeds=(1, 2, 3))], quiet)
    assert found["more"] == pytest.approx(3.0)
    assert (found["more_ours"], found["more_baseline"]) == (5.0, 2.0)
    # The differences are 2.5, 3 and 3.5, however much the seeds differ among themselves.
    assert found["more_low"] == pytest.approx(3.0 - 4.303 * 0.5 / 3**0.5)
    assert found["more_high"] == pytest.approx(3.0 + 4.303 * 0.5 / 3**0.5)


def test_claims_that_share_a_measure_share_its_runs() -> None:
    lines: list[str] = []
    compare([claim("one"), claim("two", ours="same")], lines.append)
    assert [line for line in lines if line.startswith("measured")] == [
        "measured with 1",
        "measured with 2",
        "measured with 3",
    ]


@pytest.mark.parametrize(("margin", "verdict"), [(0.0, "does not hold"), (0.1, "holds")])
def test_a_margin_says_that_something_is_not_worse(margin: float, verdict: str) -> None:
    lines: list[str] = []
    compare([claim(ours="same", margin=margin)], lines.append)
    assert lines[-1].endswith(f": {verdict}")


def test_what_is_claimed_is_promised() -> None:
    for system, made in claims.CLAIMS.items():
        for one in made:
            assert len(one.seeds) >= 3
            promised = f"{system}.{one.name}_low" in claims.PROMISES
            assert promised == one.reproduces


def test_one_system_is_measured_and_an_unknown_one_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(claims, "CLAIMS", {"a": (claim("x"),), "b": (claim("y"),)})
    assert {name.split(".")[0] for name in claims.run(quiet, claims.Config("b"))} == {"b"}
    assert {name.split(".")[0] for name in claims.run(quiet)} == {"a", "b"}
    with pytest.raises(ConfigError, match="no claims of 'c'; there are those of a, b"):
        claims.run(quiet, claims.Config("c"))


def test_a_system_whose_data_is_not_there_is_skipped_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def absent(_seed: int, _report: Report) -> Mapping[str, float]:
        raise SourceError("source 'ml-1m' needs data that is not shipped")

    gone = Claim("z", "says", absent, "ours", "theirs")
    monkeypatch.setattr(claims, "CLAIMS", {"a": (gone,), "b": (claim("y"),)})
    lines: list[str] = []
    found = claims.run(lines.append)
    assert "skipped a: source 'ml-1m' needs data that is not shipped" in lines
    assert {name.split(".")[0] for name in found} == {"b"}
