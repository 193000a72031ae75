"""A pytest plugin: the signals that tests use work.

A process that is started with signals ignored or blocked, as by `nohup` or in the background of a
script, passes that on to its children. Tests send signals to themselves and to processes that they
start, and the timeout of a test is an alarm. Each worker of pytest-xdist imports this too.
"""

import signal

for _number, _handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGTERM, signal.SIG_DFL),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _handler)
signal.pthread_sigmask(
    signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM}
)
