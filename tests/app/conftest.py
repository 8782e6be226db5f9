"""All locks of sessions, listeners, pools and update threads are `OrderedLock`s, in every test of app/."""

from tests.net.locks import locks_in_order

__all__ = ["locks_in_order"]
