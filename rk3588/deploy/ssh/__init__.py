"""SSH with paramiko, which is imported nowhere else on this side of the wire (extra ``deploy``)."""

import logging

# Without a handler, what paramiko's threads say of a lost link would land on the user's screen beside our sentence.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
