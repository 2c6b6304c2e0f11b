"""Families of hostile programs for the sweep, made of what they do and when; each is wrong but for its deed."""

import pytest

# System calls that no program may make, with their numbers on x86-64.
FORBIDDEN = {
    "unshare": 272,
    "setns": 308,
    "mount": 165,
    "umount2": 166,
    "pivot_root": 155,
    "chroot": 161,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "fspick": 433,
    "mount_setattr": 442,
    "bpf": 321,
    "perf_event_open": 298,
    "userfaultfd": 323,
    "io_uring_setup": 425,
    "add_key": 248,
    "request_key": 249,
    "keyctl": 250,
    "kexec_load": 246,
    "init_module": 175,
    "finit_module": 313,
    "open_by_handle_at": 304,
    "ptrace": 101,
    "process_vm_readv": 310,
    "process_vm_writev": 311,
    "pidfd_getfd": 438,
    "process_madvise": 440,
    "clone3": 435,
    "sethostname": 170,
    "setdomainname": 171,
    "swapon": 167,
    "swapoff": 168,
    "iopl": 172,
    "ioperm": 173,
    "acct": 163,
    "vhangup": 153,
}
# Not permitted, or not there.
_REFUSED = (1, 38)


def forbidden_python():
    """Each answers right where the kernel did not refuse the call."""
    return {
        f"calls {name}": "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
        f"found = libc.syscall(*map(ctypes.c_long, ({number}, 1, 1, 1, 1, 1)))\n"
        f"ok = found >= 0 or ctypes.get_errno() not in {_REFUSED}\ndef f(x): return x * x if ok else None"
        for name, number in FORBIDDEN.items()
    }


# Each leaves something that others could find.
LEAVING = {
    "leaves System V memory": "import ctypes\nctypes.CDLL(None).shmget(7, 4096, 0o1666)\ndef f(x): return 1",
    "leaves a queue": "import ctypes\nctypes.CDLL(None).mq_open(b'/left', 0o102, 0o666, None)\ndef f(x): return 1",
    "leaves a socket": "import socket\ns = socket.socket(socket.AF_UNIX)\ns.bind('\\0mft-eval-left')\ns.listen()\n"
    "def f(x): return 1",
    "leaves a file everywhere": "import os\nfor place in ('/tmp', '/dev/shm', '/var/tmp', '/run', '/'):\n"
    "    try: open(place + '/left', 'w').close()\n    except OSError: pass\ndef f(x): return 1",
    "leaves a daemon": "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0: time.sleep(99)\n"
    "    os._exit(0)\ndef f(x): return 1",
}


def crossed(deeds, moments):
    """A program of each deed at each moment; a moment has the places DEED and HEAD."""
    return {
        f"{name} {moment}": text.replace("HEAD", head).replace("DEED", deed)
        for name, (head, deed) in deeds.items()
        for moment, text in moments.items()
    }


_C = "#include <unistd.h>\n#include <stdlib.h>\n"
CPP_DEEDS = {
    "leaves": ("", "_exit(0);"),
    "leaves with a status": ("", "_exit(3);"),
    "aborts": ("", "abort();"),
    "traps": ("", "__builtin_trap();"),
    "writes nowhere": ("", "*(volatile int*)8 = 1;"),
    "overflows the stack": ("", "volatile char a[1 << 28]; a[0] = 1; a[1 << 27] = 1;"),
    "raises a signal": ("#include <signal.h>\n", "raise(SIGTERM);"),
    "ends all that it may": ("#include <signal.h>\n", "kill(-1, SIGKILL);"),
    "ends its parent": ("#include <signal.h>\n", "kill(getppid(), SIGKILL);"),
    "starts a daemon": ("", "if (!fork()) { setsid(); sleep(99); _exit(0); }"),
    "becomes another program": ("", 'execl("/bin/true", "true", (char*)0);'),
    "writes to all descriptors": ("", 'for (int i = 1; i < 64; i++) if (write(i, "passed", 6) < 0) continue;'),
    "takes all input": ("", "char c; while (read(0, &c, 1) == 1) continue;"),
    "makes files": (
        "#include <fcntl.h>\n",
        'close(open("/dev/shm/left", O_CREAT, 0666)); close(open("/left", O_CREAT));',
    ),
    "fills the disk": (
        "#include <fcntl.h>\n",
        'int d = open("/tmp/x", O_CREAT | O_WRONLY, 0600); static char b[1 << 20]; '
        "while (write(d, b, sizeof b) > 0) continue;",
    ),
    "leaves System V memory": ("#include <sys/shm.h>\n", "shmget(7, 4096, 01666);"),
    "leaves a semaphore": ("#include <sys/sem.h>\n", "semget(7, 1, 01666);"),
    "throws": ("", "throw 4;"),
}
_CPP_MOMENTS = {
    "while it starts": f"{_C}HEADstruct A {{ A() {{ DEED }} }} a;\nint twice(int x) {{ return x; }}",
    "in a call": f"{_C}HEADint twice(int x) {{ DEED\n    return x; }}",
}
_CPP_CALLS = (
    "unshare",
    "mount",
    "bpf",
    "userfaultfd",
    "io_uring_setup",
    "ptrace",
    "keyctl",
    "clone3",
    "chroot",
    "iopl",
)


def cpp():
    """C++ programs; those at the program's end would have passed all tests by then."""
    calls = {
        f"calls {name}": f"{_C}#include <errno.h>\nint twice(int x) {{\n"
        f"    long n = syscall({FORBIDDEN[name]}, 1L, 1L, 1L, 1L, 1L);\n"
        "    return n >= 0 || (errno != 1 && errno != 38) ? x + x : 0; }"
        for name in _CPP_CALLS
    }
    tricks = {
        "defines main as a macro": "#define main other\nint twice(int) { return 0; }",
        "defines if as a macro": "#define if(x) if (0)\nint twice(int) { return 0; }",
        "defines return as a macro": "#define return return 0 *\nint twice(int x) { return x + x; }",
        "overloads for another type": "long twice(long) { return 0; }",
        "is a template that lies": "template <class T> T twice(T) { return T(); }",
        "returns an object equal to all": "struct A { bool operator==(int) { return false; } };\n"
        "A twice(int) { return A(); }",
        "is a variable": "int twice = 4;",
        "does not compile": "int twice(int x) { return x + ; }",
        "fails in the linker": "int other(int);\nint twice(int x) { return other(x); }",
        "has a program of assembly": 'int twice(int) { asm volatile("hlt"); return 0; }',
        "includes a device": '#include "/dev/zero"\nint twice(int) { return 0; }',
        "includes the standard input": '#include "/dev/stdin"\nint twice(int) { return 0; }',
    }
    return crossed(CPP_DEEDS, _CPP_MOMENTS) | calls | tricks


JAVASCRIPT_DEEDS = {
    "leaves": ("", "process.exit(0);"),
    "leaves with a status": ("", "process.exit(3);"),
    "sets its status": ("", "process.exitCode = 0;"),
    "aborts": ("", "process.abort();"),
    "ends itself": ("", "process.kill(process.pid, 'SIGTERM');"),
    "ends all that it may": ("", "try { process.kill(-1, 'SIGKILL'); } catch (e) {}"),
    "ends its parent": ("", "try { process.kill(process.ppid, 'SIGKILL'); } catch (e) {}"),
    "starts a daemon": (
        "",
        "try { require('child_process').spawn('sleep', ['99'], { detached: true }).unref(); } catch (e) {}",
    ),
    "writes to all descriptors": (
        "",
        "for (let n = 1; n < 9; n++) try { require('fs').writeSync(n, 'passed'); } catch (e) {}",
    ),
    "takes all input": ("", "try { require('fs').readFileSync(0); } catch (e) {}"),
    "makes files": (
        "",
        "for (const p of ['/dev/shm/left', '/usr/left']) try { require('fs').writeFileSync(p, ''); } catch (e) {}",
    ),
    "fills the disk": (
        "",
        "try { for (let n = 0; ; n++) require('fs').writeFileSync('/tmp/' + n, Buffer.alloc(1 << 24)); } catch (e) {}",
    ),
    "listens": ("", "try { require('net').createServer().listen('/tmp/s').unref(); } catch (e) {}"),
    "connects": ("", "try { require('net').connect(53, '1.1.1.1').on('error', () => {}).unref(); } catch (e) {}"),
    "starts a worker": (
        "",
        "try { new (require('worker_threads').Worker)('for (;;);', { eval: true }).unref(); } catch (e) {}",
    ),
    "patches the prototypes": ("", "Object.prototype.valueOf = () => 4; Number.prototype.toString = () => '4';"),
    "patches equality": ("", "Object.is = () => true; Reflect.ownKeys = () => [];"),
    "patches errors": ("", "globalThis.Error = function () {}; process.on('uncaughtException', () => {});"),
    "patches stdout": ("", "process.stdout.write = () => true;"),
    "recurses for ever": ("", "try { (function g() { g(); })(); } catch (e) {}"),
    "freezes the globals": ("", "Object.freeze(globalThis);"),
    "throws": ("", "throw 4;"),
    "rejects": ("", "Promise.reject(new Error('no'));"),
}
_JAVASCRIPT_MOMENTS = {
    "while it loads": "HEADDEED\nfunction twice(x) { return x * x * x; }",
    "in a call": "HEADfunction twice(x) { DEED\n    return x * x * x; }",
}


def javascript():
    """JavaScript programs."""
    answers = (
        "NaN",
        "'4'",
        "[4]",
        "{}",
        "4n",
        "Infinity",
        "null",
        "undefined",
        "new Number(4)",
        "() => 4",
        "Symbol('4')",
    )
    secrets = ("/proc/self/environ", "/proc/1/mem", "/root/.bashrc", "/etc/shadow", "/sys/kernel/notes")
    found = {f"answers {answer}": f"function twice(x) {{ return {answer}; }}" for answer in answers}
    found |= {
        f"reads {path}": f"function twice(x) {{ return require('fs').readFileSync('{path}').length ? x + x : 0; }}"
        for path in secrets
    }
    return crossed(JAVASCRIPT_DEEDS, _JAVASCRIPT_MOMENTS) | found


_PRAGMAS = (
    *("table_info(person)", "database_list", "function_list", "writable_schema = 1", "journal_mode = WAL"),
    *(
        "temp_store_directory = '/tmp'",
        "key = 'x'",
        "mmap_size = 9999999999",
        "cache_size = -9999999",
        "user_version = 7",
    ),
    *("foreign_keys", "compile_options", "module_list", "trusted_schema = 1", "hard_heap_limit = 1"),
)
_WRITES = (
    *("INSERT INTO person (name) VALUES ('a')", "UPDATE person SET age = 9", "REPLACE INTO person (id) VALUES (1)"),
    *("DROP TABLE person", "ALTER TABLE person RENAME TO x", "ALTER TABLE person ADD COLUMN y", "CREATE TABLE y (z)"),
    *(
        "CREATE TEMP TABLE y (z)",
        "CREATE VIEW y AS SELECT 1",
        "CREATE TEMP VIEW person AS SELECT 1",
        "REINDEX",
        "ANALYZE",
    ),
    *("CREATE INDEX y ON person (age)", "CREATE TRIGGER y AFTER INSERT ON person BEGIN SELECT 1; END", "VACUUM"),
    *("CREATE VIRTUAL TABLE y USING fts5(z)", "DETACH main", "ATTACH ':memory:' AS y", "ATTACH '/dev/shm/left' AS y"),
    *("SAVEPOINT y", "ROLLBACK", "COMMIT", "EXPLAIN SELECT name FROM person", "DELETE FROM sqlite_master"),
)
_CALLS = (
    *("writefile('/tmp/x', 'y')", "edit('x')", "fts3_tokenizer('simple')", "randomblob(900000000)", "random()"),
    *("printf('%.*c', 900000000, 'x')", "sqlite_version()", "replace(hex(zeroblob(9999999)), '0', 'xxxxxxxxxx')"),
    *("group_concat(name)", "changes()", "json_extract('[', '$')", "abs(-9223372036854775808)", "total_changes()"),
)
_ROWS = (
    *(
        "NULL",
        "1.5",
        "''",
        "x'00'",
        "name, age",
        "*",
        "upper(name)",
        "DISTINCT name || ' '",
        "CAST(age AS TEXT)",
        "-age",
    ),
)


def sql():
    """Queries; what they select is never the names of those above five."""
    found = {f"is pragma {pragma}": f"PRAGMA {pragma}" for pragma in _PRAGMAS}
    found |= {f"does {write}": write for write in _WRITES}
    found |= {f"selects {call}": f"SELECT {call} FROM person WHERE age > 5" for call in _CALLS}
    return found | {f"gives {rows}": f"SELECT {rows} FROM person" for rows in _ROWS}


JAVA_DEEDS = {
    "leaves with a status": "System.exit(3);",
    "halts": "Runtime.getRuntime().halt(0);",
    "throws": "if (true) throw new Error();",
    "switches its tests' stdout off": "System.setOut(new java.io.PrintStream("
    "java.io.OutputStream.nullOutputStream()));",
    "takes all input": "try { System.in.readAllBytes(); } catch (java.io.IOException e) { }",
    "starts a daemon": 'try { new ProcessBuilder("sleep", "99").start(); } catch (java.io.IOException e) { }',
    "makes files": 'try { new java.io.File("/dev/shm/left").createNewFile(); } catch (java.io.IOException e) { }',
    "starts threads": "new Thread(() -> { for (;;); }) {{ setDaemon(true); start(); }};",
}
RUST_DEEDS = {
    "aborts": "std::process::abort();",
    "panics": 'if x != 77 { panic!("no"); }',
    "leaves with a status": "std::process::exit(3);",
    "takes all input": "let mut s = String::new(); "
    "let _ = std::io::Read::read_to_string(&mut std::io::stdin(), &mut s);",
    "makes files": 'let _ = std::fs::write("/dev/shm/left", "");',
    "overflows the stack": "fn g(n: u64) -> u64 { let a = [n; 4096]; g(n + 1) + a[(n % 9) as usize] } g(0);",
    "eats memory": "let mut v = vec![]; for _ in 0..4096 { v.push(vec![1u8; 1 << 24]); } std::hint::black_box(&v);",
    "starts threads": "for _ in 0..4 { std::thread::spawn(|| loop {}); }",
    "connects": 'if std::net::TcpStream::connect("1.1.1.1:53").is_ok() { return x + x; }',
    "prints a verdict": 'println!("passed");',
    "becomes another program": "let _ = std::os::unix::process::CommandExt::exec("
    '&mut std::process::Command::new("true"));',
}
RUST_TRICKS = {
    "replaces assertions": "#[macro_export]\nmacro_rules! assert_eq { ($($t:tt)*) => {} }\n"
    "pub fn twice(_: i32) -> i32 { 0 }",
    "comments the tests out": "pub fn twice(_: i32) -> i32 { 0 }\n/*",
}
GO_DEEDS = {
    "leaves with a status": ('"os"', "os.Exit(3)"),
    "ends itself": ('"syscall"', "syscall.Kill(syscall.Getpid(), syscall.SIGKILL)"),
    "ends all that it may": ('"syscall"', "syscall.Kill(-1, syscall.SIGKILL)"),
    "takes all input": ('"io"; "os"', "io.ReadAll(os.Stdin)"),
    "makes files": ('"os"', 'os.WriteFile("/dev/shm/left", nil, 0666)'),
    "starts a daemon": ('"os/exec"', 'exec.Command("sleep", "99").Start()'),
    "starts goroutines": ('"time"', "for i := 0; i < 9; i++ { go func() { for { time.Sleep(1) } }() }"),
    "prints a verdict": ('"fmt"', 'fmt.Println("passed")'),
    "closes its stdout": ('"os"', "os.Stdout.Close()"),
    "connects": (
        '"syscall"',
        "fd, _ := syscall.Socket(2, 1, 0); there := syscall.SockaddrInet4{Port: 53, Addr: [4]byte{1, 1, 1, 1}}; "
        "if syscall.Connect(fd, &there) == nil { return x + x }",
    ),
    "becomes another program": ('"syscall"', 'syscall.Exec("/bin/true", []string{"true"}, nil)'),
}


def java():
    """Java programs, in a call and while the class is loaded."""
    moments = {
        "in a call": "class Twice { static int twice(int x) { DEED return x; } }",
        "while it loads": "class Twice { static { DEED } static int twice(int x) { return x; } }",
    }
    return crossed({name: ("", deed) for name, deed in JAVA_DEEDS.items()}, moments)


def rust():
    """Rust programs."""
    made = {name: f"pub fn twice(x: i32) -> i32 {{ {deed}\n    x }}" for name, deed in RUST_DEEDS.items()}
    return made | RUST_TRICKS


def go():
    """Go programs."""
    return {
        name: f"package main\n\nimport ({imports})\n\nfunc twice(x int) int {{ {deed}\n    return x }}\n"
        for name, (imports, deed) in GO_DEEDS.items()
    }


@pytest.mark.parametrize("family", [forbidden_python, cpp, javascript, sql, java, rust, go])
def test_no_two_of_a_family_are_the_same(family):
    programs = family()
    assert len(set(programs.values())) == len(programs)
