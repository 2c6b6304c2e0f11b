"""Tests in Go: files beside the program, since each file in Go has imports of its own."""

import re

from mft_eval.errors import EvalError
from mft_eval.generations.go_source import go_file
from mft_eval.problems.problem import CompiledTest

_GO_TEST = re.compile(r"^func\s+(Test\w+)\s*\(\s*\w+\s+\*testing\.T\s*\)", re.MULTILINE)
# The last test hands back the word, if each one before it has come to its end and did not fail.
_GO_MAIN = """package main

import (
    "io"
    "os"
    "testing"
)

var mftPassed int

func mftCounted(test func(*testing.T)) func(*testing.T) {
    return func(t *testing.T) {
        t.Cleanup(func() {
            if !t.Failed() && !t.Skipped() {
                mftPassed++
            }
        })
        test(t)
    }
}

func mftLast(t *testing.T) {
    if mftPassed == COUNT {
        word, _ := io.ReadAll(os.Stdin)
        os.Stdout.Write(word)
        os.Exit(0)
    }
    os.Exit(1)
}

func main() {
    all := func(string, string) (bool, error) { return true, nil }
    testing.Main(all, []testing.InternalTest{TESTED{Name: "MftLast", F: mftLast}}, nil, nil)
}
"""
# What HumanEval-X's tests use of a package that is not the standard library's.
_GO_ASSERT = """package main

import (
    "math"
    "reflect"
    "testing"
)

type mftAssert struct{ t *testing.T }

var assert = &mftAssert{}

func (*mftAssert) New(t *testing.T) *mftAssert { return &mftAssert{t} }

func (a *mftAssert) hold(holds bool, what ...interface{}) bool {
    if !holds {
        a.t.Error(what...)
    }
    return holds
}

func mftEqual(left, right interface{}) bool {
    a, isBytes := left.([]byte)
    b, _ := right.([]byte)
    if isBytes && a != nil && b != nil {
        return string(a) == string(b)
    }
    return reflect.DeepEqual(left, right)
}

func mftIsNil(value interface{}) bool {
    if value == nil {
        return true
    }
    held := reflect.ValueOf(value)
    switch held.Kind() {
    case reflect.Chan, reflect.Func, reflect.Interface, reflect.Map, reflect.Ptr, reflect.Slice:
        return held.IsNil()
    }
    return false
}

func mftFloat(value interface{}) float64 {
    held := reflect.ValueOf(value)
    switch {
    case held.CanInt():
        return float64(held.Int())
    case held.CanUint():
        return float64(held.Uint())
    }
    return held.Float()
}

func (a *mftAssert) Equal(want, got interface{}, _ ...interface{}) bool {
    return a.hold(mftEqual(want, got), want, got)
}
func (a *mftAssert) NotEqual(want, got interface{}, _ ...interface{}) bool {
    return a.hold(!mftEqual(want, got), want, got)
}
func (a *mftAssert) True(holds bool, _ ...interface{}) bool { return a.hold(holds) }
func (a *mftAssert) False(holds bool, _ ...interface{}) bool { return a.hold(!holds) }
func (a *mftAssert) Nil(got interface{}, _ ...interface{}) bool { return a.hold(mftIsNil(got), got) }
func (a *mftAssert) NotNil(got interface{}, _ ...interface{}) bool { return a.hold(!mftIsNil(got), got) }
func (a *mftAssert) NoError(got error, _ ...interface{}) bool { return a.hold(got == nil, got) }
func (a *mftAssert) Error(got error, _ ...interface{}) bool { return a.hold(got != nil, got) }
func (a *mftAssert) Empty(got interface{}, _ ...interface{}) bool {
    return a.hold(mftIsNil(got) || reflect.ValueOf(got).Len() == 0, got)
}
func (a *mftAssert) Len(got interface{}, count int, _ ...interface{}) bool {
    return a.hold(reflect.ValueOf(got).Len() == count, got)
}
func (a *mftAssert) Less(left, right interface{}, _ ...interface{}) bool {
    return a.hold(mftFloat(left) < mftFloat(right), left, right)
}
func (a *mftAssert) LessOrEqual(left, right interface{}, _ ...interface{}) bool {
    return a.hold(mftFloat(left) <= mftFloat(right), left, right)
}
func (a *mftAssert) Greater(left, right interface{}, _ ...interface{}) bool {
    return a.hold(mftFloat(left) > mftFloat(right), left, right)
}
func (a *mftAssert) GreaterOrEqual(left, right interface{}, _ ...interface{}) bool {
    return a.hold(mftFloat(left) >= mftFloat(right), left, right)
}
func (a *mftAssert) InDelta(want, got interface{}, delta float64, _ ...interface{}) bool {
    return a.hold(math.Abs(mftFloat(want)-mftFloat(got)) <= delta, want, got)
}
"""


def go_test(entry_point: str, tests: str, where: str) -> CompiledTest:
    """Each function that the tests call a test is run; what they import beside the standard library is ours."""
    names = _GO_TEST.findall(tests)
    if not names:
        raise EvalError("the test has no function of the kind TestName(t *testing.T)", where=where)
    tests = re.sub(r'^.*"github\.com/stretchr/testify/assert".*\n', "", tests, flags=re.MULTILINE)
    named = "".join(f'{{Name: "{name}", F: mftCounted({name})}}, ' for name in names)
    main = _GO_MAIN.replace("TESTED", named).replace("COUNT", str(len(names)))
    files = {"mft_tests.go": go_file(tests), "mft_main.go": main}
    if re.search(r"\bassert\.", tests):
        files["mft_assert.go"] = _GO_ASSERT
    return CompiledTest(entry_point, "", tuple(files.items()))
