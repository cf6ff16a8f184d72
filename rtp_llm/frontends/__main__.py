"""A front-end process, which the engine's process starts: its arguments are the descriptors of two sockets.

The first is the one to speak over with the engine's process, whose first word is what to serve; the second is the one
that clients connect to, once that process says so. It lives as long as the engine's process does.
"""

import logging
import signal
import socket
import sys

from rtp_llm.engine.loading import load_pool
from rtp_llm.errors import RtpError
from rtp_llm.frontends.channel import read_frame
from rtp_llm.frontends.link import Link
from rtp_llm.frontends.messages import Orders
from rtp_llm.frontends.remote_engine import RemoteEngine
from rtp_llm.observability.logs import adjust, set_up
from rtp_llm.server.app import serve
from rtp_llm.server.garbage import collect_seldom
from rtp_llm.server.observers import Observers

logger = logging.getLogger("rtp_llm")


def main() -> None:
    """Serve until told to stop; exits 1 where that was not in order."""
    # What all processes of a group get, this one hears from the engine's process, once.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    end, listener = (socket.socket(fileno=int(word)) for word in sys.argv[1:3])
    output = set_up()
    try:
        (orders,) = read_frame(end)
        assert isinstance(orders, Orders)
    except EOFError:  # the engine's process has ended meanwhile, and has said why
        sys.exit(1)
    config = orders.config
    adjust(output, "error", config.log_format, orders.name)  # what there is to say of the files has been said
    link = Link(end, len(orders.models), orders.num_front_ends)
    try:
        engines = [
            RemoteEngine(number, served.info, load_pool(served.config, served.reach), link)
            for number, served in enumerate(orders.models)
        ]
        observers = Observers(config)
    except RtpError as error:
        logger.error("%s", error.message)
        sys.exit(1)
    adjust(output, config.log_level, config.log_format, orders.name)
    output.on_lost = link.tell_lines_lost
    collect_seldom()
    ended_in_order = serve(engines, config, observers=observers.all, listener=listener, elsewhere=link)
    if ended_in_order:
        observers.close()
    sys.exit(0 if ended_in_order else 1)


if __name__ == "__main__":
    main()
