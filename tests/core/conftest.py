"""The core's tests have numpy, except where one takes it away: a program loads it when it sends parity."""

from kcptun_lite.core.lazy_imports import load_numpy

load_numpy()
