"""Reward functions that do what no reward function should; run in worker processes only."""

import asyncio
import ctypes
import json
import os
import random
import re
import resource
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

FOREVER_S = 600


def _ones(completions):
    return [1.0] * len(completions)


def good(completions, **_):
    return [float(len(text)) for text in completions]


def draws(completions, **_):
    return [random.random() for _ in completions]


def modules(completions, **_):
    return [float(name in sys.modules) for name in ("jax", "numpy", "torch")][: len(completions)]


def pid(completions, **_):
    return [float(os.getpid())] * len(completions)


def naps(completions, **_):
    time.sleep(0.05)
    return _ones(completions)


# Raises.


def raises(completions, **_):
    raise KeyError("no such thing")


class _Unprintable(Exception):
    def __str__(self):
        raise RuntimeError("nor can this be said")


def raises_unprintable(completions, **_):
    raise _Unprintable


def raises_surrogate(completions, **_):
    raise ValueError("\ud800 half a character")


def quits(completions, **_):
    sys.exit(0)


def interrupts(completions, **_):
    raise KeyboardInterrupt


def recurses(completions, **_):
    return recurses(completions)


async def raises_later(completions, **_):
    await asyncio.sleep(0)
    raise OSError("no network")


# Returns something else.


def returns_nothing(completions, **_):
    pass


def returns_nan(completions, **_):
    return [float("nan")]


def returns_inf(completions, **_):
    return [float("-inf")]


def returns_double(completions, **_):
    return [1e300]


def returns_huge_int(completions, **_):
    return [10**5000]


def returns_text(completions, **_):
    return ["1.0"]


def returns_string(completions, **_):
    return "1"


def returns_complex(completions, **_):
    return [1j]


def returns_number(completions, **_):
    return 1.0


def returns_dict(completions, **_):
    return {0: 1.0}


def returns_lambda(completions, **_):
    return [lambda: 1.0]


def returns_generator(completions, **_):
    return (1.0 for _ in completions)


def returns_too_few(completions, **_):
    return []


def returns_a_million(completions, **_):
    return [1.0] * 10**6


def returns_ten_megabytes(completions, **_):
    return ["x" * 10**7]


class _Liar(float):
    def __abs__(self):
        raise RuntimeError("never compare me")


def returns_liar(completions, **_):
    return [_Liar(1.0)]


# Hangs.


def hangs(completions, **_):
    while True:
        pass


def hangs_deaf(completions, **_):
    for number in range(1, 32):
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            signal.signal(number, signal.SIG_IGN)
    time.sleep(FOREVER_S)


def hangs_in_regex(completions, **_):
    return [float(bool(re.match(r"(a+)+$", "a" * 60 + "b")))]


def hangs_in_c(completions, **_):
    ctypes.PyDLL(None).sleep(FOREVER_S)  # and keeps the interpreter's lock


def hangs_swallowing(completions, **_):
    while True:
        try:
            time.sleep(FOREVER_S)
        except BaseException:
            continue


def hangs_stopped(completions, **_):
    os.kill(os.getpid(), signal.SIGSTOP)


async def hangs_async(completions, **_):
    await asyncio.sleep(FOREVER_S)


def hangs_on_return(completions, **_):
    class Slow(list):
        def __len__(self):
            time.sleep(FOREVER_S)

    return Slow([1.0])


# Dies.


def exits(completions, **_):
    os._exit(0)


def exits_3(completions, **_):
    os._exit(3)


def segfaults(completions, **_):
    ctypes.string_at(0)


def aborts(completions, **_):
    os.abort()


def kills_itself(completions, **_):
    os.kill(os.getpid(), signal.SIGKILL)


def _sockets():
    for fd in range(3, 256):
        try:
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                yield fd
        except OSError:
            continue


def closes_everything(completions, **_):
    os.closerange(0, 4096)
    time.sleep(FOREVER_S)


def writes_junk(completions, **_):
    for fd in _sockets():
        os.write(fd, os.urandom(4096))
    time.sleep(FOREVER_S)


def promises_a_petabyte(completions, **_):
    for fd in _sockets():
        os.write(fd, (2**50).to_bytes(8, "big"))
    time.sleep(FOREVER_S)


def forges_an_answer(completions, **_):
    body = json.dumps({"number": 0, "values": [1e9]}).encode()
    for fd in _sockets():
        os.write(fd, len(body).to_bytes(8, "big") + body)
    time.sleep(FOREVER_S)


def breaks_its_worker(completions, **_):
    json.dumps = None
    return _ones(completions)


def shuts_its_socket(completions, **_):
    for fd in _sockets():
        socket.socket(fileno=os.dup(fd)).shutdown(socket.SHUT_RDWR)
    time.sleep(FOREVER_S)


# Takes memory.


def hoards(completions, **_):
    hoard = []
    while True:
        hoard.append(bytes(2**26))  # from calloc: no page is touched, however busy the machine


def hoards_in_one_piece(completions, **_):
    return [float(len(bytearray(2**36)))]


# Starts processes; each notes its pid in the file that the column `note` names.


def _note(note):
    with open(note[0], "a", encoding="ascii") as file:
        file.write(f"{os.getpid()}\n")


def _await(note):
    """Waits until a child has noted itself; else it may be killed before.

    A file that it has only opened is empty.
    """
    while not (os.path.exists(note[0]) and os.path.getsize(note[0])):
        time.sleep(0.002)


def _sleep_as_child(note):
    _note(note)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(FOREVER_S)
    os._exit(0)


def forks(completions, note, **_):
    if os.fork() == 0:
        _sleep_as_child(note)
    _await(note)
    return _ones(completions)


def forks_and_both_return(completions, note, **_):
    if os.fork() == 0:
        _note(note)
        return [99.0]
    _await(note)
    return _ones(completions)


def forks_and_child_raises(completions, note, **_):
    if os.fork() == 0:
        _note(note)
        raise ValueError("I am the child")
    _await(note)
    return _ones(completions)


def daemonises(completions, note, **_):
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            _sleep_as_child(note)
        os._exit(0)
    os.wait()
    _await(note)
    return _ones(completions)


def daemonises_and_hangs(completions, note, **_):
    daemonises(completions, note)
    hangs(completions)


def daemonises_and_exits(completions, note, **_):
    daemonises(completions, note)
    os._exit(0)


def breeds(completions, note, **_):
    for _ in range(4):
        os.fork()
    _sleep_as_child(note)


def starts_a_program(completions, note, **_):
    program = subprocess.Popen(["sleep", str(FOREVER_S)], start_new_session=True)
    with open(note[0], "a", encoding="ascii") as file:
        file.write(f"{program.pid}\n")
    return _ones(completions)


def kills_the_template(completions, **_):
    os.kill(os.getppid(), signal.SIGKILL)
    time.sleep(FOREVER_S)


# Leaves things as they should not be, for the next call.


def sets_an_alarm(completions, **_):
    signal.alarm(1)
    return _ones(completions)


def leaves_a_thread(completions, **_):
    threading.Thread(target=time.sleep, args=(FOREVER_S,)).start()
    return _ones(completions)


def makes_a_mess(completions, **_):
    print("x" * 10**6)
    print("y" * 10**6, file=sys.stderr)
    os.write(1, b"z" * 10**5)
    os.chdir("/")
    os.environ.clear()
    sys.path.clear()
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    sys.stdout.close()
    return _ones(completions)
