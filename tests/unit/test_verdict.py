"""What measurements say of an auxiliary, and how a verdict prints."""

import pytest

from auxnas_layers.verdict import Verdict, is_aligned, is_learned


@pytest.mark.parametrize("shares, learned", [([], True), ([0.02], False), ([0.0, 0.05], True), ([-0.3, 0.2], False)])
def test_learned_is_a_mean_share_above_the_least(shares, learned):
    assert is_learned(shares) is learned
    assert is_learned([share + 1 for share in shares], 1.0201) is learned


@pytest.mark.parametrize(
    "cosines, aligned",
    [([], True), ([-0.5] * 9, True), ([-0.5] * 10, False), ([0.1, 0.3] * 5, True), ([-0.2, 0.3] * 5, False)],
)
def test_aligned_is_a_mean_cosine_above_its_error_or_too_few_of_them(cosines, aligned):
    assert is_aligned(cosines) is aligned


@pytest.mark.parametrize(
    "verdict, text",
    [
        (
            Verdict(None, (0.3, 0.5), 0.02, (0.1, 0.3) * 15),
            "goes on: explains 40.0 % of its held-out loss; mean cosine +0.200 +- 0.019 over 30",
        ),
        (
            Verdict(0.5, (0.3, 0.5), 0.02, (-0.1, 0.1) * 15),
            "stopped at 0.5: explains 40.0 % of its held-out loss; "
            "mean cosine +0.000 +- 0.019 over 30, not above its error",
        ),
        (
            Verdict(0.2, (0.004,), 0.025, ()),
            "stopped at 0.2: explains 0.4 % of its held-out loss, not more than 2.5 %; 0 cosines, too few to tell",
        ),
        (Verdict(None, (), 0.02, (0.1,)), "goes on: no explained share measured; 1 cosines, too few to tell"),
        (Verdict(None, (0.0,), None, ()), "goes on: no explained share measured; 0 cosines, too few to tell"),
    ],
)
def test_a_verdict_prints_with_its_evidence(verdict, text):
    assert str(verdict) == text
    assert verdict.goes_on is text.startswith("goes on")
