"""What repeats with other seeds say about the students on the front: means, deviations, and which leads are noise.

A student is on the front because of a single training. Another seed would have given other numbers, and among many
students the lucky ones reach the front. So the trials that they come from are repeated (`search.seeds`), and each
objective of a student is reported as mean and sample standard deviation over its seeds. The seed that put the student
on the front is one of them, which makes the mean optimistic, less so with every repeat.

**When a lead is within the noise.** Student A's lead over student B, both on the front, is within the noise if, on
every objective on which A's mean is better than B's, the two means differ by at most the margin that chance explains:
the half-width of the 95 % confidence interval of the difference of two means with unequal variances (Welch, Biometrika
1947),

    t(0.975, v) sqrt(s_A²/n_A + s_B²/n_B),

with v by Welch and Satterthwaite. The quantile is Student's rather than the normal 1.96, since seeds are few: with
three each it is 2.8 to 4.3 and with two 4.3 to 12.7, so two seeds show only what is obvious. A larger student that is
more accurate than a smaller one, but not by more than the margin, is therefore marked; the smaller one is not, since
its size is certain. A student whose means are better on no objective is marked, too: by its means it is not on the
front at all.

An objective that no seed has changed in any student on the front (such as the size of students cut layer by layer) has
no noise: its margin is 0. On the other objectives, a student with only one seed, because its repeats failed, has no
known deviation: its margin is infinite, and nothing that depends on it counts as a lead.

Each pair is tested separately. A student that leads over all others has passed every test, so no correction for their
number is needed; with several objectives that depend on the seed there are several chances to pass, so the actual
confidence is slightly below 95 %.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
"""Confidence of the interval around the difference of two means."""


def repeat_seed(seed: int, trial: int, nth: int) -> int:
    """The seed of the nth repeat of a trial, in a study whose own seed is `seed`."""
    return int(hashlib.sha256(json.dumps([seed, trial, nth]).encode()).hexdigest()[:8], 16) % 2**31


class Spread(NamedTuple):
    """One measurement of one student over its seeds."""

    mean: float
    deviation: float
    """The sample standard deviation; NaN for one seed."""
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """The spread of one or more values."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def margin(a: Spread, b: Spread) -> float:
    """How far apart two means may be by chance; infinite if one of them has only one seed."""
    if min(a.seeds, b.seeds) < 2:
        return math.inf
    errors = [(one.deviation**2 / one.seeds, one.seeds) for one in (a, b)]  # squared standard errors of the means
    total = sum(error for error, _ in errors)
    if total == 0.0:
        return 0.0
    from scipy.special import stdtrit  # Student's quantile; here, since few fronts need it, and not from `scipy.stats`,
    # which takes a second to import

    freedom = total**2 / sum(error**2 / (seeds - 1) for error, seeds in errors)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)


def is_within_noise(
    a: Mapping[str, Spread], b: Mapping[str, Spread], directions: Mapping[str, str], noisy: Sequence[str]
) -> bool:
    """Whether the lead of `a` over `b` is within the noise, as defined above.

    Args:
        a: objective -> its values over the seeds.
        b: the same for the other student.
        directions: objective -> "max" or "min".
        noisy: the objectives that depend on the seed.
    """
    for name, direction in directions.items():
        ahead = a[name].mean - b[name].mean if direction == "max" else b[name].mean - a[name].mean
        if ahead > 0 and ahead > (margin(a[name], b[name]) if name in noisy else 0.0):
            return False
    return True
