"""Tests in Java, Rust and Go that are a part of the program, a right program for each, and hostile ones."""

JAVA = (
    "class MainTests {\n    public static void main(String[] args) {\n"
    "        if (Twice.twice(2) != 4 || Twice.twice(-1) != -2) throw new AssertionError();\n    }\n}\n"
)
RUST = "#[test]\nfn test_twice() {\n    assert_eq!(twice(2), 4);\n    assert_eq!(twice(-1), -2);\n}\n"
GO = (
    "func TestTwice(t *testing.T) {\n    if twice(2) != 4 || twice(-1) != -2 {\n        t.Fatal()\n    }\n}\n"
    "func TestAgain(t *testing.T) {\n    if twice(3) != 6 {\n        t.Fatal()\n    }\n}\n"
)
# Language -> its test, a right program, and hostile ones.
COMPILED = {
    "java": (
        JAVA,
        "class Twice { static int twice(int x) { return x + x; } }",
        {
            "is wrong": "class Twice { static int twice(int x) { return x; } }",
            "leaves": "class Twice { static int twice(int x) { System.exit(0); return 0; } }",
            "never ends": "class Twice { static int twice(int x) { for (;;); } }",
            "reads a secret": "import java.nio.file.*;\nclass Twice { static int twice(int x) { "
            'try { return Files.size(Path.of("/etc/passwd")) > 0 ? x + x : 0; } '
            "catch (Exception e) { return 0; } } }",
            "is empty": "",
        },
    ),
    "rust": (
        RUST,
        "pub fn twice(x: i32) -> i32 { x + x }",
        {
            "is wrong": "pub fn twice(x: i32) -> i32 { x }",
            "leaves": "pub fn twice(_: i32) -> i32 { std::process::exit(0) }",
            "never ends": "pub fn twice(_: i32) -> i32 { loop {} }",
            "reads a secret": "pub fn twice(x: i32) -> i32 { "
            'std::fs::read("/etc/passwd").map(|_| x + x).unwrap_or(0) }',
            "includes a secret": 'const S: &str = include_str!("/etc/passwd");\npub fn twice(x: i32) -> i32 { x + x }',
            "leaves a child": "pub fn twice(_: i32) -> i32 {\n"
            '    std::process::Command::new("sleep").arg("99").spawn().map(|_| 0).unwrap_or(1) }',
            "is empty": "",
        },
    ),
    "go": (
        GO,
        "package main\n\nfunc twice(x int) int { return x + x }\n",
        {
            "is wrong": "package main\n\nfunc twice(x int) int { return x }\n",
            "is wrong in the last test": "package main\n\n"
            "func twice(x int) int { if x == 3 { return 0 }; return x + x }\n",
            "leaves": 'package main\n\nimport "os"\n\nfunc twice(x int) int { os.Exit(0); return 0 }\n',
            "leaves while it starts": 'package main\n\nimport "os"\n\nfunc init() { os.Exit(0) }\n'
            "func twice(x int) int { return 0 }\n",
            "ends its goroutine": 'package main\n\nimport "runtime"\n\n'
            "func twice(x int) int { runtime.Goexit(); return 0 }\n",
            "panics": "package main\n\nfunc twice(x int) int { panic(1) }\n",
            "never ends": "package main\n\nfunc twice(x int) int { for { } }\n",
            "reads a secret": 'package main\n\nimport "os"\n\nfunc twice(x int) int {\n'
            '    if _, err := os.ReadFile("/etc/passwd"); err == nil { return x + x }\n    return 0\n}\n',
            "is empty": "",
        },
    ),
}
