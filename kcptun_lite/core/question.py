"""A question to the peer that may be lost.

In      when it is asked first, `now`
Out     when to ask it, again and again, with pauses that double
Knows   times. Not: what is asked, what an answer is
"""


class Questioner:
    """Who asks; `ask_at` and `_pause` are set when there is something to be asked."""

    def __init__(self, pause: int) -> None:
        """`pause`: ms from the first question to the second."""
        self.ask_at: int | None = None
        "ms of the next question; None while there is none"
        self._pause = pause

    def wants_question(self, now: int) -> bool:
        """Whether it is time to ask; it is not again for a while after this was true."""
        if self.ask_at is None or now < self.ask_at:
            return False
        self.ask_at = now + self._pause
        self._pause *= 2
        return True
