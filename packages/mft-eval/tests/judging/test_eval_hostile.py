"""Programs that try to pass without being right: outside, none can."""

import textwrap
import time

import pytest

TEST = "assert f(2) == 4\nassert f(3) == 9\n"
SQUARE = "def f(x):\n    return x * x\n"

# Source of a program, and the verdict it earns instead of "passed".
ATTACKS = {
    "exits at the top level": ("import sys\nsys.exit(0)", "exception"),
    "exits in a call": ("import sys\ndef f(x): sys.exit(0)", "exception"),
    "leaves without cleaning up": ("import os\ndef f(x): os._exit(0)", "killed"),
    "kills itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGKILL)", "killed"),
    "prints a verdict": (
        "import os\nprint('passed')\nos.write(1, b'{\"verdict\": \"passed\"}\\n')\ndef f(x): print('passed')",
        "wrong",
    ),
    "overrides equality": (
        "class Any(int):\n    def __eq__(self, other): return True\ndef f(x): return Any(7)",
        "wrong",
    ),
    "returns an object equal to all": (
        "class Any:\n    def __eq__(self, other): return True\ndef f(x): return Any()",
        "wrong",
    ),
    "patches builtins": (
        "import builtins\nbuiltins.AssertionError = None\nbuiltins.all = lambda *a: True\ndef f(x): return 1",
        "wrong",
    ),
    "traces the judge": ("import sys\nsys.settrace(lambda *a: None)\ndef f(x): return None", "wrong"),
    "reads frames": (
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while frame:
                for constants in (frame.f_code.co_consts, tuple(frame.f_locals.values())):
                    for constant in constants:
                        if isinstance(constant, str) and chr(97) + "ssert f" in constant:
                            return x * x
                frame = frame.f_back
        """,
        "wrong",
    ),
    "searches memory for the test": (
        "import gc\ndef f(x): return x * x if any(chr(97) + 'ssert f' in str(o) for o in gc.get_objects()) else None",
        "wrong",
    ),
    "ends an iteration early": ("def f(x): raise StopIteration", "exception"),
    "raises an assertion": ("def f(x): assert False", "exception"),
    "raises what no test catches": ("def f(x): raise KeyboardInterrupt", "exception"),
    "is a fork bomb": ("import os\nwhile True: os.fork()", "exception"),
    "answers from many processes": (
        "import os\ndef f(x):\n    for _ in range(3): os.fork()\n    return x * x + 1",
        "wrong",
    ),
    "never returns": ("def f(x):\n    while True: pass", "timeout"),
    "never finishes loading": ("while True: pass", "timeout"),
    "eats memory": ("def f(x): return len(bytearray(2**34))", "out-of-memory"),
    "eats memory while loading": ("big = [0]\nwhile True: big += big", "out-of-memory"),
    "returns more than may cross": ("def f(x): return 'a' * 2**25", "refused"),
    "returns a depth that may not cross": (
        "def f(x):\n    y = []\n    for _ in range(200): y = [y]\n    return y",
        "refused",
    ),
    "fills the disk": (
        "def f(x):\n    for n in range(99):\n        open(f'/tmp/{n}', 'wb').write(bytes(2**25))",
        "exception",
    ),
    "floods stdout": ("def f(x):\n    while True: print('x' * 10**6)", "timeout"),
    "writes outside its folder": ("def f(x): open('/usr/x', 'w')", "exception"),
    "reads the password file": ("def f(x): return open('/etc/passwd').read()", "exception"),
    "uses the network": ("import socket\ndef f(x): socket.create_connection(('1.1.1.1', 53), 2)", "exception"),
    "has a name of another type": ("f = 4", "wrong"),
    "does not define the function": ("g = 1", "exception"),
    "is not Python": ("def f(x:\n", "exception"),
    "holds a null byte": ("\0", "exception"),
    "writes garbage to the pipe": (
        """
        import os
        def f(x):
            for n in range(3, 99):
                try: os.write(n, b"\\xff" * 64)
                except OSError: pass
        """,
        "refused",
    ),
    "answers with a false frame": (
        """
        import os, struct
        def f(x):
            for payload in (b"T", b"t\\1\\0\\0\\0T", b"t\\2\\0\\0\\0u\\6\\0\\0\\0passedi\\1\\0\\0\\0\\1"):
                for n in range(3, 99):
                    try: os.write(n, struct.pack("<I", len(payload)) + payload)
                    except OSError: pass
        """,
        "refused",
    ),
    "closes the pipe": ("import os\nos.closerange(0, 256)\ndef f(x): return x * x", "killed"),
    "returns a subclass of list equal to all": (
        "class L(list):\n    def __eq__(self, other): return True\ndef f(x): return L()",
        "wrong",
    ),
    "returns a float that lies": (
        "class F(float):\n    def __eq__(self, other): return True\n    __hash__ = None\ndef f(x): return F(0)",
        "wrong",
    ),
    "returns itself": ("def f(x): return f", "wrong"),
    "returns a module": ("import os\ndef f(x): return os", "wrong"),
    "returns a class equal to all": (
        "class M(type):\n    def __eq__(self, other): return True\nclass A(metaclass=M): pass\ndef f(x): return A",
        "wrong",
    ),
    "returns a generator": ("def f(x): yield x * x", "wrong"),
    "returns an iterator that lies": (
        "class I:\n    def __next__(self): return 4\n    def __eq__(self, other): return True\ndef f(x): return I()",
        "wrong",
    ),
    "returns a cycle": ("def f(x):\n    y = []\n    y.append(y)\n    return y", "refused"),
    "returns nan": ("def f(x): return float('nan')", "wrong"),
    "returns a coroutine": ("async def f(x): return x * x", "wrong"),
    "is a class that lies": (
        "class f:\n    def __init__(self, x): pass\n    def __eq__(self, other): return True",
        "wrong",
    ),
    "is a callable object": ("class C:\n    def __call__(self, x): return 1\nf = C()", "wrong"),
    "lies about its class": (
        "class A:\n    __class__ = int\n    def __eq__(self, other): return True\ndef f(x): return A()",
        "exception",
    ),
    "calls its class Fraction": (
        "class Fraction:\n    numerator = denominator = 1\n    def __eq__(self, other): return True\n"
        "Fraction.__module__ = 'fractions'\ndef f(x): return Fraction()",
        "wrong",
    ),
    "raises a group": ("def f(x): raise ExceptionGroup('a', [ValueError()])", "exception"),
    "raises an exception that lies": (
        "class E(Exception):\n    def __eq__(self, other): return True\n    def __str__(self): raise E\n"
        "def f(x): raise E(E())",
        "exception",
    ),
    "raises with endless text": ("def f(x): raise ValueError('a' * 2**27)", "exception"),
    "raises an async stop": ("def f(x): raise StopAsyncIteration", "exception"),
    "raises the exit of a generator": ("def f(x): raise GeneratorExit", "exception"),
    "exits by an exception of its own": ("class E(SystemExit): pass\ndef f(x): raise E(0)", "exception"),
    "leaves at the top level": ("import os\nos._exit(0)", "killed"),
    "aborts": ("import os\ndef f(x): os.abort()", "killed"),
    "crashes": ("import ctypes\ndef f(x): ctypes.string_at(0)", "killed"),
    "kills every process that it may": ("import os, signal\ndef f(x): os.kill(-1, 9)\n", "exception"),
    "stops itself": ("import os, signal\ndef f(x): os.kill(os.getpid(), signal.SIGSTOP)", "timeout"),
    "kills its parent": ("import os, signal\ndef f(x):\n    os.kill(os.getppid(), 9)\n    return 0", "wrong"),
    "becomes another program": ("import os\ndef f(x): os.execv('/bin/true', ['true'])", "killed"),
    "sleeps": ("import time\ndef f(x): time.sleep(999)", "timeout"),
    "ignores signals and sleeps": (
        "import signal, time\nfor n in range(1, 32):\n    try: signal.signal(n, signal.SIG_IGN)\n"
        "    except OSError: pass\ndef f(x):\n    while True: time.sleep(1)",
        "timeout",
    ),
    "recurses for ever": ("def f(x): return f(x)", "exception"),
    "nests deeper than the parser": ("def f(x): return eval('(' * 10**5 + ')' * 10**5)", "exception"),
    "computes for ever in C": ("def f(x): return 9 ** 9 ** 9", "timeout"),
    "matches for ever": ("import re\ndef f(x): return re.match('(a+)+b', 'a' * 64)", "timeout"),
    "waits in threads": (
        "import threading, time\ndef f(x):\n    threading.Thread(target=time.sleep, args=(999,)).start()\n    return 0",
        "wrong",
    ),
    "answers from a thread": (
        "import threading\ndef g():\n    while True: pass\ndef f(x):\n"
        "    threading.Thread(target=g, daemon=True).start()\n    return x",
        "wrong",
    ),
    "starts many threads": (
        "import threading, time\ndef f(x):\n    for _ in range(99):\n"
        "        threading.Thread(target=time.sleep, args=(9,), daemon=True).start()",
        "exception",
    ),
    "leaves a child behind": (
        "import os, time\ndef f(x):\n    if os.fork() == 0:\n        time.sleep(999)\n    return 0",
        "wrong",
    ),
    "leaves a session behind": (
        "import os, time\ndef f(x):\n    if os.fork() == 0:\n        os.setsid()\n        if os.fork() == 0:\n"
        "            time.sleep(999)\n        os._exit(0)\n    return 0",
        "wrong",
    ),
    "allocates in children": (
        "import os\ndef f(x):\n    for _ in range(4):\n        if os.fork() == 0:\n            b = bytearray(2**26)\n"
        "            os._exit(0)\n    return 0",
        "wrong",
    ),
    "maps memory": ("import mmap\ndef f(x): return len(mmap.mmap(-1, 2**33))", "exception"),
    "fills shared memory": (
        "from multiprocessing import shared_memory\ndef f(x): shared_memory.SharedMemory(create=True, size=2**20)",
        "exception",
    ),
    "opens too many files": ("def f(x): return len([open('/dev/null') for _ in range(999)])", "exception"),
    "makes a huge file": ("def f(x):\n    with open('/tmp/x', 'wb') as h: h.truncate(2**40)", "exception"),
    "opens the terminal": ("def f(x): open('/dev/tty', 'w')", "exception"),
    "listens on a socket of the file system": (
        "import socket\ndef f(x):\n    s = socket.socket(socket.AF_UNIX)\n    s.bind('/run/x')",
        "exception",
    ),
    "uses an abstract socket": (
        "import socket\ndef f(x):\n    s = socket.socket(socket.AF_UNIX)\n    s.connect('\\0/tmp/.X11-unix/X0')",
        "exception",
    ),
    "asks for a raw socket": (
        "import socket\ndef f(x): socket.socket(socket.AF_PACKET, socket.SOCK_RAW)",
        "exception",
    ),
    "resolves a name": ("import socket\ndef f(x): socket.getaddrinfo('localhost.example', 80)", "exception"),
    "mounts": (
        "import ctypes, os\ndef f(x):\n"
        "    if ctypes.CDLL(None, use_errno=True).mount(b'a', b'/tmp', b'tmpfs', 0, 0):\n"
        "        raise OSError(ctypes.get_errno(), 'mount')",
        "exception",
    ),
    "makes a user namespace": (
        "import ctypes\ndef f(x):\n    if ctypes.CDLL(None).unshare(0x10000000): raise PermissionError",
        "exception",
    ),
    "becomes root": ("import os\ndef f(x): os.setuid(0)", "exception"),
    "changes the root": ("import os\ndef f(x): os.chroot('/tmp')", "exception"),
    "reads the memory of others": ("def f(x): open('/proc/1/mem', 'rb')", "exception"),
    "looks for the host's files": ("def f(x): return open('/root/.bashrc') or open('/etc/hosts')", "exception"),
    "writes into the interpreter": (
        "import os\ndef f(x):\n    with open(os.__file__, 'a') as h: h.write('x')",
        "exception",
    ),
    "patches the codec": (
        "from mft_eval.wire import codec\ncodec.encode = lambda *a, **k: (b'T', [])\ndef f(x): return 1",
        "wrong",
    ),
    "patches the host's serving": (
        "from mft_eval.wire import peer\npeer.perform = lambda *a: 4\ndef f(x): return 1",
        "wrong",
    ),
    "asks the judge for nothing it was given": (
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while "side" not in frame.f_locals and "self" not in frame.f_locals: frame = frame.f_back
            side = frame.f_locals.get("side") or frame.f_locals["self"]
            return side.ask_about("getattr", "", "__class__")
        """,
        "refused",
    ),
    "asks the judge for what it may not": (
        """
        import sys
        def f(x):
            frame = sys._getframe()
            while "self" not in frame.f_locals: frame = frame.f_back
            return frame.f_locals["self"].ask_about("call", print, (), {})
        """,
        "wrong",
    ),
    "asks by a number that it made up": (
        """
        import os, struct
        def f(x):
            ask = b"t\\4\\0\\0\\0u\\3\\0\\0\\0aski\\1\\0\\0\\0\\1u\\4\\0\\0\\0callt\\3\\0\\0\\0"
            ask += b"y\\0\\0\\0\\0\\0\\0\\0\\0t\\0\\0\\0\\0d\\0\\0\\0\\0"
            for n in range(3, 99):
                try: os.write(n, struct.pack("<I", len(ask)) + ask)
                except OSError: pass
        """,
        "refused",
    ),
    "announces an endless frame": (
        "import os\ndef f(x):\n    for n in range(3, 99):\n        try: os.write(n, b'\\xff' * 4)\n"
        "        except OSError: pass",
        "refused",
    ),
    "sends half a frame": (
        "import os\ndef f(x):\n    for n in range(3, 99):\n        try: os.write(n, b'\\x09\\0\\0\\0N')\n"
        "        except OSError: pass\n    os._exit(0)",
        "killed",
    ),
    "guesses by the clock": ("import time\ndef f(x): return time.time_ns() % 2", "wrong"),
    "reads what other programs left": (
        "import os\ndef f(x): return x * x if os.listdir('/tmp') or os.path.exists('/dev/shm') else None",
        "wrong",
    ),
    "finds a folder among its descriptors, or /proc": (
        """
        import os, stat
        def f(x):
            for n in range(256):
                try: found = stat.S_ISDIR(os.fstat(n).st_mode)
                except OSError: continue
                if found: return x * x
            return x * x if os.path.exists("/proc") else None
        """,
        "wrong",
    ),
    "makes everything hash alike": (
        "class H(str):\n    def __hash__(self): return 0\n    def __eq__(self, o): return True\n"
        "def f(x): return {H(): 1}",
        "wrong",
    ),
    "hides behind a property": (
        "import sys\nclass P:\n    @property\n    def f(self): raise SystemExit\nsys.modules['program'] = P()\n",
        "exception",
    ),
    "deletes itself": ("import sys\ndef f(x): del sys.modules['program'], globals()['f']\n", "wrong"),
    "closes its standard streams": ("import os\nfor n in range(3): os.close(n)\ndef f(x): return 1", "wrong"),
    "returns a surrogate": ("def f(x): return '\\ud800'", "wrong"),
    "returns a huge number": ("def f(x): return 1 << 2**28", "refused"),
    "mutates what it was given": ("def f(x): return x.append(1)", "exception"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_the_judge_is_not_fooled_by_a_program_that(judge, name):
    source, verdict = ATTACKS[name]
    start = time.monotonic()
    judgement = judge(textwrap.dedent(source), TEST, reference=SQUARE)
    # On a busy machine the threads are not all there in time.
    verdicts = {verdict, "timeout"} if name == "starts many threads" else {verdict}
    assert judgement.verdict in verdicts, judgement
    assert judgement.mode == "outside"
    assert time.monotonic() - start < 30


def test_there_are_eighty_of_them():
    assert len(ATTACKS) >= 80
