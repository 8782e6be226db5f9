"""The room of a listener, for all tests of this folder that have no other one."""

from tests.net.ends.rooms import room

__all__ = ["room"]
