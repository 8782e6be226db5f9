"""The form of the status, for those who make one: what they all keep to.

In      nothing
Out     numbers
Knows   docs/status.md. Not: what is in a status
"""

SCHEMA = 2  # goes up when a key changes its meaning or goes; new keys leave it. 1, of before, had no number
LISTED = 100  # sessions and connections that are told one by one: those heard last, those opened last
