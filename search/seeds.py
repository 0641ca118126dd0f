"""What repeats with other seeds say of the students on the front: means, deviations, and which leads are noise.

A student is on the front because of one training. Another seed would have given other numbers, and of many students
those come to the front that had luck. So the trials that they come from are repeated (`search.seeds`), and each
objective of a student is told as mean and sample standard deviation over its seeds. The seed that brought the student
there is one of them: the mean still leans to the good side by it, less with every repeat.

**When a lead is within the noise.** Student A's lead over student B, both on the front, is within the noise if on every
objective on which A's mean is better than B's, the two means are at most the margin apart that chance gives them: the
half-width of the 95 % confidence interval of the difference of two means with unequal variances (Welch, Biometrika
1947),

    t(0.975, v) sqrt(s_A²/n_A + s_B²/n_B),

v by Welch and Satterthwaite. The quantile is Student's and not the normal 1.96, since seeds are few: with three each it
is 2.8 to 4.3 and with two 4.3 to 12.7, so two seeds show only what is plain. So a larger student that is more accurate
than a smaller one, but not by more than the margin, is marked; the smaller one is not, since its size is certain. A
student that by the means is better on nothing is marked, too: by its means it is not on the front at all.

An objective that no seed has changed in any student on the front (the size of students cut layer by layer, say) has no
noise: its margin is 0. On the others a student with one seed only, because its repeats failed, has no known deviation:
its margin is infinite, and nothing that rests on it counts as a lead.

Each pair is looked at by itself. Who leads over all others has passed each test, so that needs no correction for their
number; with several objectives that seeds change there are as many chances to pass, so the 95 % are a little less.
"""

import hashlib
import json
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

CONFIDENCE = 0.95
"""Of the interval around the difference of two means."""


def repeat_seed(seed: int, trial: int, nth: int) -> int:
    """Of the nth repeat of a trial, in a study whose own seed is `seed`."""
    return int(hashlib.sha256(json.dumps([seed, trial, nth]).encode()).hexdigest()[:8], 16) % 2**31


class Spread(NamedTuple):
    """One measurement of one student over its seeds."""

    mean: float
    deviation: float
    """The sample standard deviation; NaN of one seed."""
    seeds: int


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    deviation = statistics.stdev(values) if len(values) > 1 else math.nan
    return Spread(statistics.fmean(values), deviation, len(values))


def margin(a: Spread, b: Spread) -> float:
    """How far two means may lie apart by chance; infinite where one of them has one seed only."""
    if min(a.seeds, b.seeds) < 2:
        return math.inf
    errors = [(one.deviation**2 / one.seeds, one.seeds) for one in (a, b)]  # squared standard errors of the means
    total = sum(error for error, _ in errors)
    if total == 0.0:
        return 0.0
    from scipy.special import stdtrit  # Student's quantile; here, since few fronts need it, and not of `scipy.stats`,
    # which takes a second to import

    freedom = total**2 / sum(error**2 / (seeds - 1) for error, seeds in errors)
    return float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(total)


def is_within_noise(
    a: Mapping[str, Spread], b: Mapping[str, Spread], directions: Mapping[str, str], noisy: Sequence[str]
) -> bool:
    """Whether the lead of `a` over `b` is within the noise, as the module says.

    Args:
        a: objective -> its values over the seeds.
        b: the same of the other student.
        directions: objective -> "max" or "min".
        noisy: the objectives that depend on the seed.
    """
    for name, direction in directions.items():
        ahead = a[name].mean - b[name].mean if direction == "max" else b[name].mean - a[name].mean
        if ahead > 0 and ahead > (margin(a[name], b[name]) if name in noisy else 0.0):
            return False
    return True
