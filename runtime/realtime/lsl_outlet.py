"""Answers over the Lab Streaming Layer: one text channel, one JSON object a sample.

LSL finds its peers by multicast. Unless told otherwise the stream is offered on this machine alone.
"""

from __future__ import annotations

import functools
import time

from ..errors import InputError

STREAM_TYPE = "Markers"
_BUFFERED = 1
"""Hundreds of samples that LSL keeps for each inlet; older ones it gives up."""
_LINGER_S = 0.5
"""LSL sends beside us and does not say when it is done; what is unsent goes with the outlet."""
_THIS_MACHINE = "[multicast]\nResolveScope = machine\n[lab]\nKnownPeers = {127.0.0.1}\n"


@functools.cache
def keep_to_this_machine() -> None:
    """Keep LSL from asking or answering beyond this machine; before its first use in a process."""
    import pylsl

    pylsl.util.set_config_content(_THIS_MACHINE)


class LslOutlet:
    """A stream that inlets can find by its name.

    Parameters
    ----------
    name : str
        Of the stream.
    local : bool
        Whether only this machine may find it.
    """

    def __init__(self, name: str = "scanside", *, local: bool = True) -> None:
        if not name:
            raise InputError("'name' must name the LSL stream; got nothing")
        if local:
            keep_to_this_machine()
        import pylsl

        info = pylsl.StreamInfo(
            name,
            STREAM_TYPE,
            channel_count=1,
            nominal_srate=pylsl.IRREGULAR_RATE,
            channel_format=pylsl.cf_string,
            source_id=f"scanside-{name}",
        )
        self._outlet: pylsl.StreamOutlet | None = pylsl.StreamOutlet(info, max_buffered=_BUFFERED)

    def send(self, message: str) -> None:
        """Push one sample, stamped now; LSL delivers it beside us."""
        if self._outlet:
            self._outlet.push_sample([message])

    def close(self) -> None:
        """Take the stream away, once its last samples have had time to leave."""
        if self._outlet and self._outlet.have_consumers():
            time.sleep(_LINGER_S)
        self._outlet = None
