"""The visual lab: what its page is given. A run as one JSON object, ``payload``, written by ``write_payload`` and checked by
``check_payload``; numbers are what the observables of the dynamics say, so that a page computes nothing of its own.
"""

from .payload import payload, write_payload
from .schema import SCHEMA, VERSION, check_payload

__all__ = ["SCHEMA", "VERSION", "check_payload", "payload", "write_payload"]
