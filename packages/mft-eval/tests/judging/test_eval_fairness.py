"""Correct programs of every kind pass, outside wherever nothing but the program could tell."""

import pytest

CLASS = """
class f:
    def __init__(self, n): self.n = n
    def square(self): return self.n ** 2
    def grow(self, by=1):
        self.n += by
        return self
    @staticmethod
    def two(): return 2
    def __len__(self): return self.n
    def __getitem__(self, i): return i * self.n
    def __contains__(self, x): return x == self.n
    def __iter__(self): return iter(range(self.n))
    def __enter__(self): return self
    def __exit__(self, *a): return False
    def __repr__(self): return f"f({self.n})"
"""

# Name: program, its test. All pass outside with nothing to mark.
TRUSTED = {
    "a plain function": ("def f(x): return x * x", "assert f(2) == 4"),
    "a class with methods": (CLASS, "a = f(3)\nassert a.square() == 9\nassert a.grow(2).n == 5\nassert f.two() == 2"),
    "a class with protocols": (
        CLASS,
        "a = f(3)\nassert len(a) == 3 and a[2] == 6 and list(a) == [0, 1, 2]\n"
        "with a as b:\n    assert b is a\nassert repr(a) == str(a) == f'{a}' == 'f(3)'",
    ),
    "an attribute that is set": (
        CLASS,
        "a = f(3)\na.n = 7\nassert a.square() == 49\ndel a.n\nassert not hasattr(a, 'n')",
    ),
    "a callback": ("def f(g, x): return g(x) + 1", "assert f(lambda n: n * n, 3) == 10"),
    "a callback that changes its list": (
        "def f(g):\n    rows = [1]\n    g(rows)\n    return rows",
        "assert f(lambda rows: rows.append(2)) == [1, 2]",
    ),
    "a callback that calls back": (
        "def f(g, n): return 1 if n == 0 else n * g(n - 1)",
        "def g(n): return f(g, n)\nassert f(g, 5) == 120",
    ),
    "a callback that raises": (
        "def f(g):\n    try: g()\n    except KeyError as e: return e.args[0]",
        "def g(): raise KeyError('k')\nassert f(g) == 'k'",
    ),
    "a builtin function as argument": (
        "def f(g, xs): return g(xs)",
        "import math\nassert f(max, [1, 3]) == 3\nassert f(math.sqrt, 9) == 3",
    ),
    "an object of the test": (
        "def f(a): return a.n + a.plus(2)",
        "class A:\n    n = 1\n    def plus(self, x): return self.n + x\nassert f(A()) == 4",
    ),
    "an object of the test that is changed": (
        "def f(node):\n    node.value = 5\n    return node.next.value",
        "class Node:\n    def __init__(self, v, n=None): self.value, self.next = v, n\n"
        "a = Node(1, Node(2))\nassert f(a) == 2 and a.value == 5",
    ),
    "a generator": (
        "def f(n):\n    for i in range(n): yield i",
        "assert list(f(3)) == [0, 1, 2]\nassert next(f(1)) == 0",
    ),
    "an endless generator": (
        "import itertools\ndef f(): return itertools.count()",
        "import itertools\nassert list(itertools.islice(f(), 3)) == [0, 1, 2]",
    ),
    "a generator that is sent to": (
        "def f():\n    got = yield 1\n    yield got * 2",
        "g = f()\nassert next(g) == 1\nassert g.send(4) == 8",
    ),
    "a generator of the test": ("def f(xs): return sum(xs)", "assert f(n for n in range(4)) == 6"),
    "a decorator": ("def f(g): return lambda *a: g(*a) * 2", "@f\ndef g(x): return x + 1\nassert g(2) == 6"),
    "an exception's message": (
        "def f(x): raise ValueError(f'bad {x}')",
        "try:\n    f(3)\nexcept ValueError as e:\n    assert str(e) == 'bad 3' and e.args == ('bad 3',)\nelse:\n"
        "    raise AssertionError",
    ),
    "an exception of its own": (
        "class Mine(KeyError):\n    def __init__(self, code):\n        super().__init__('text')\n"
        "        self.code = code\n"
        "def f(x): raise Mine(7)",
        "try:\n    f(3)\nexcept KeyError as e:\n    assert type(e).__name__ == 'Mine' and e.code == 7\nelse:\n"
        "    raise AssertionError",
    ),
    "values of the standard library": (
        "from collections import Counter, OrderedDict, deque\nfrom fractions import Fraction\n"
        "from decimal import Decimal\n"
        "import datetime\ndef f(x):\n"
        "    return [Counter(x), OrderedDict(a=1), deque(x), Fraction(1, 3), Decimal('1.5'),"
        " datetime.date(2020, 1, 2), range(3), bytearray(b'x'), datetime.timedelta(1)]",
        "from collections import Counter, deque\nfrom fractions import Fraction\nfrom decimal import Decimal\n"
        "import datetime\n"
        "a = f('ab')\nassert a == [Counter('ab'), {'a': 1}, deque('ab'), Fraction(1, 3), Decimal('1.5'),"
        " datetime.date(2020, 1, 2), range(3), b'x', datetime.timedelta(1)]\n"
        "assert a[0].most_common(1) == [('a', 1)]",
    ),
    "identity within a call": ("def f(x): return x", "a = [1]\nassert f(a) is a"),
    "other names of the program": ("LIMIT = 5\ndef f(): return LIMIT\n", "assert f() == LIMIT == 5"),
    "a type as result": ("def f(x): return type(x)", "assert f(1) is int and f('') is str"),
    "changed arguments": ("def f(a): a.sort()", "a = [2, 1]\nassert f(a) is None and a == [1, 2]"),
    "dictionary views": (
        "def f(d): return d.keys()",
        "assert sorted(f({'b': 1, 'a': 2})) == ['a', 'b'] and len(f({})) == 0",
    ),
    "map over calls": ("def f(x): return x + 1", "assert list(map(f, [1])) == [2]\nassert f.__name__ == 'f'"),
}

# As above, but the program itself has said whether two objects are equal, or of which class: that is marked.
PROGRAMS_WORD = {
    "equality of its own": (
        "class f:\n    def __init__(self, n): self.n = n\n    def __eq__(self, o): return self.n == o.n",
        "assert f(1) == f(1)\nassert f(1) != f(2)",
    ),
    "arithmetic of its own": (
        "class f:\n    def __init__(self, n): self.n = n\n    def __add__(self, o): return f(self.n + o.n)\n"
        "    def __eq__(self, o): return self.n == o.n",
        "assert f(1) + f(2) == f(3)",
    ),
    "membership of its own": (CLASS, "assert 3 in f(3)"),
    "a difference of its own": (
        "class f:\n    def __sub__(self, other): return 0.0",
        "assert abs(f() - 4) < 1e-6",
    ),
    "a class to be tested for": ("class f: pass\ndef make(): return f()", "assert isinstance(make(), f)"),
    "an order of its own": (
        "class f:\n    def __init__(self, n): self.n = n\n    def __lt__(self, o): return self.n < o.n",
        "assert [x.n for x in sorted([f(2), f(1)])] == [1, 2]",
    ),
}

# The reference passes only beside its test.
BESIDE = {
    "deep nesting": (
        "def f(n):\n    y = 0\n    for _ in range(n): y = [y]\n    return y",
        "a = f(90)\nfor _ in range(90): (a,) = a\nassert a == 0",
    ),
    "millions of elements": ("def f(n): return [0] * n", "assert len(f(2_000_000)) == 2_000_000"),
    "identity across calls": ("A = [1]\ndef f(): return A", "assert f() is f()"),
    "a class to derive from": ("class f:\n    def two(self): return 2", "class B(f): pass\nassert B().two() == 2"),
    "an exception class to catch": (
        "class Bad(Exception): pass\ndef f(): raise Bad",
        "try:\n    f()\nexcept Bad:\n    pass\nelse:\n    raise AssertionError",
    ),
    "source code": ("def f(x): return x", "import inspect\nassert inspect.isfunction(f)"),
}


@pytest.mark.parametrize("name", TRUSTED)
def test_a_correct_program_passes_outside_with(judge, name):
    program, test = TRUSTED[name]
    judgement = judge(program, test, reference=program)
    assert (judgement.verdict, judgement.mode, judgement.untrusted) == ("passed", "outside", ""), judgement


@pytest.mark.parametrize("name", PROGRAMS_WORD)
def test_what_the_program_decides_is_marked_with(judge, name):
    program, test = PROGRAMS_WORD[name]
    judgement = judge(program, test, reference=program)
    assert (judgement.verdict, judgement.mode) == ("passed", "outside"), judgement
    assert judgement.untrusted.startswith("the program's own ")


@pytest.mark.parametrize("name", BESIDE)
def test_a_reference_that_passes_only_beside_its_test_is_followed_with(judge, name):
    program, test = BESIDE[name]
    judgement = judge(program, test, reference=program)
    assert (judgement.verdict, judgement.mode) == ("passed", "inside"), judgement
    assert judgement.untrusted


def test_a_large_table_under_a_name_of_the_tests_is_no_fault(judge):
    program = "row = list(range(2_000_000))\ndef f(x): return row[x]"
    judgement = judge(program, "for row in (3, 5):\n    assert f(row) == row\n", reference="def f(x): return x")
    assert judgement.verdict == "passed", judgement


def test_an_assertion_in_a_callback_cannot_be_swallowed(judge):
    test = "def g(x): assert x == 4\nf(g)\n"
    swallow = "def f(g):\n    try: g(5)\n    except AssertionError: pass\n"
    assert judge(swallow, test, reference="def f(g): g(4)").verdict == "wrong"


@pytest.mark.parametrize("attribute", ["__globals__", "__code__", "__self__", "gi_frame", "__class__"])
def test_a_callback_gives_nothing_but_its_result(judge, attribute):
    program = f"def f(g):\n    try: return str(getattr(g, {attribute!r}))\n"
    program += "    except (TypeError, AttributeError): return 'kept'\n"
    expected = "kept" if attribute != "__class__" else "<class 'mft_eval.wire.handle.Handle'>"
    test = f"secret = 7\ndef g(): return secret\nassert f(g) == {expected!r}\n"
    assert judge(program, test).verdict == "passed"
