import os
import resource

resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
held = []


def use_up():
    try:
        while True:
            held.append(os.open(os.devnull, os.O_RDONLY))
    except OSError:
        pass


def let_go():
    while held:
        os.close(held.pop())
