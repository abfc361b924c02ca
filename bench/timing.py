"""The clock of the benchmarks."""

import time
from collections.abc import Callable


def milliseconds(call: Callable[[], object], repeats: int, *, warm: int = 2) -> float:
    """Best wall time of one call, ms: the time with the least disturbance from other programs.

    call: what to time, without arguments; repeats: timed calls, at least 1; warm: calls before the clock starts.
    """
    for _ in range(warm):
        call()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(1e3 * (time.perf_counter() - start))
    return min(times)
