//! The program of the demo image: it says what it finds itself in, and does a few small things that one wants of a
//! container (wait, write lines, exit with a status). One static file of a few KB without a C library; `build.rs`
//! compiles it for the architecture that cricket is built for and packs it into the image that cricket carries.
//!
//! It is called as `demo [COMMAND ...]` or by a link with a command's name: `sleep 60` is `demo sleep 60`.

#![no_std]
#![no_main]
// The memory functions below must not be turned into calls of themselves.
#![no_builtins]

use core::arch::{asm, global_asm};

const USAGE: &str = "\
demo                     says where it is
demo echo WORD...        writes the words
demo sleep SECONDS       waits; `sleep inf` until it is told to stop
demo lines N [MS]        writes N numbered lines, one every MS milliseconds; 0 lines: without end
demo cat [FILE...]       copies files, or its input
demo write FILE WORD...  writes the words to a file
demo env                 writes its environment
demo id                  writes its ids
demo exit STATUS [S]     ends with that status, after S seconds
";

/// As a shell has it for a word that is no command.
const UNKNOWN_COMMAND: i32 = 127;

#[cfg(target_arch = "x86_64")]
mod number {
    pub const READ: usize = 0;
    pub const WRITE: usize = 1;
    pub const RT_SIGACTION: usize = 13;
    pub const NANOSLEEP: usize = 35;
    pub const GETPID: usize = 39;
    pub const UNAME: usize = 63;
    pub const GETUID: usize = 102;
    pub const GETGID: usize = 104;
    pub const GETGROUPS: usize = 115;
    pub const EXIT_GROUP: usize = 231;
    pub const OPENAT: usize = 257;
    pub const PRLIMIT64: usize = 302;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const OPENAT: usize = 56;
    pub const READ: usize = 63;
    pub const WRITE: usize = 64;
    pub const EXIT_GROUP: usize = 94;
    pub const NANOSLEEP: usize = 101;
    pub const RT_SIGACTION: usize = 134;
    pub const GETGROUPS: usize = 158;
    pub const UNAME: usize = 160;
    pub const GETPID: usize = 172;
    pub const GETUID: usize = 174;
    pub const GETGID: usize = 176;
    pub const PRLIMIT64: usize = 261;
}

// The kernel leaves argc, argv and the environment on the stack.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "mov rdi, rsp", "and rsp, -16", "call {start}", start = sym start);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "mov x29, xzr", "mov x0, sp", "bl {start}", start = sym start);

#[cfg(target_arch = "x86_64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: every caller passes addresses and lengths of live memory; the kernel keeps all but rax, rcx and r11.
    unsafe {
        asm!("syscall", inlateout("rax") number as isize => result, in("rdi") a, in("rsi") b, in("rdx") c,
            in("r10") d, lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn syscall(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: every caller passes addresses and lengths of live memory; the kernel keeps all but x0.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a as isize => result, in("x1") b, in("x2") c, in("x3") d,
            options(nostack));
    }
    result
}

fn exit(status: i32) -> ! {
    syscall(number::EXIT_GROUP, status as usize, 0, 0, 0);
    loop {}
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    exit(101)
}

/// Lines are gathered here, so that each reaches the output whole.
struct Output {
    descriptor: usize,
    bytes: [u8; 4096],
    used: usize,
}

impl Output {
    const fn to(descriptor: usize) -> Self {
        Self { descriptor, bytes: [0; 4096], used: 0 }
    }

    fn push(&mut self, bytes: &[u8]) -> &mut Self {
        for &byte in bytes {
            if self.used == self.bytes.len() {
                self.flush();
            }
            if let Some(place) = self.bytes.get_mut(self.used) {
                *place = byte;
                self.used += 1;
            }
        }
        self
    }

    fn text(&mut self, text: &str) -> &mut Self {
        self.push(text.as_bytes())
    }

    fn number(&mut self, number: u64) -> &mut Self {
        let mut digits = [0_u8; 20];
        let mut rest = number;
        let mut at = digits.len();
        for place in digits.iter_mut().rev() {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            at -= 1;
            if rest == 0 {
                break;
            }
        }
        self.push(digits.get(at..).unwrap_or(b"?"))
    }

    fn flush(&mut self) {
        let mut rest = self.bytes.get(..self.used).unwrap_or(b"");
        while !rest.is_empty() {
            let written = syscall(number::WRITE, self.descriptor, rest.as_ptr() as usize, rest.len(), 0);
            if written <= 0 {
                exit(1); // Nobody reads what we write.
            }
            rest = rest.get(written as usize..).unwrap_or(b"");
        }
        self.used = 0;
    }
}

/// Arguments or environment: a list of C strings that ends with a null pointer.
#[derive(Clone, Copy)]
struct Words(*const *const u8);

impl Iterator for Words {
    type Item = &'static [u8];
    fn next(&mut self) -> Option<&'static [u8]> {
        // SAFETY: the kernel ends the list with a null pointer and each word with a zero; both live for ever.
        unsafe {
            let word = *self.0;
            if word.is_null() {
                return None;
            }
            self.0 = self.0.add(1);
            let mut length = 0;
            while *word.add(length) != 0 {
                length += 1;
            }
            Some(core::slice::from_raw_parts(word, length))
        }
    }
}

extern "C" fn start(stack: *const usize) -> ! {
    // SAFETY: the start of a process's stack is argc, then argc arguments and a null, then the environment.
    let (arguments, environment) = unsafe {
        let count = *stack;
        (Words(stack.add(1).cast()), Words(stack.add(count + 2).cast()))
    };
    end_when_told();
    let mut words = arguments;
    let called = words.next().unwrap_or(b"demo");
    let name = called.rsplit(|&byte| byte == b'/').next().unwrap_or(called);
    let command = if name == b"demo" { words.next() } else { Some(name) };
    exit(run(command, words, environment))
}

fn run(command: Option<&[u8]>, mut words: Words, environment: Words) -> i32 {
    let mut out = Output::to(1);
    match command {
        None => greet(&mut out),
        Some(b"echo") => echo(&mut out, words),
        Some(b"sleep") => sleep_for(words.next()),
        Some(b"lines") => lines(&mut out, parse(words.next()), parse(words.next())),
        Some(b"cat") => return cat(&mut out, words),
        Some(b"write") => return write(words),
        Some(b"env") => environment.for_each(|variable| {
            out.push(variable).text("\n");
        }),
        Some(b"id") => id(&mut out),
        Some(b"exit") => {
            let status = parse(words.next());
            sleep_for(words.next());
            return status as i32;
        }
        Some(b"help" | b"--help") => {
            out.text(USAGE);
        }
        Some(_) => {
            Output::to(2).text("demo: no such command; there are\n").text(USAGE).flush();
            return UNKNOWN_COMMAND;
        }
    }
    out.flush();
    0
}

fn greet(out: &mut Output) {
    let names = Names::read();
    out.text("Hello from a container. I am process ").number(call(number::GETPID));
    out.text(" on ").push(names.field(1)).text(", Linux ").push(names.field(2)).text(" ").push(names.field(4));
    out.text(".\n  user      ").number(call(number::GETUID));
    out.text(", group ").number(call(number::GETGID));
    mapped(out);
    out.text("\n  mounts    ");
    mounts(out);
    out.text("\n  files     ").number(open_files()).text(" may be open\n  memory    ");
    limit(out, b"/sys/fs/cgroup/memory.max\0");
    out.text("\n  processes ");
    limit(out, b"/sys/fs/cgroup/pids.max\0");
    out.text("\nI can also echo, sleep, write lines, exit with a status: `demo help`.\n");
}

fn echo(out: &mut Output, words: Words) {
    for (at, word) in words.enumerate() {
        out.text(if at == 0 { "" } else { " " }).push(word);
    }
    out.text("\n");
}

fn sleep_for(word: Option<&[u8]>) {
    match word {
        Some(b"inf" | b"infinity") => loop {
            sleep(60_000);
        },
        seconds => sleep(parse(seconds).saturating_mul(1000)),
    }
}

fn lines(out: &mut Output, count: u64, every_ms: u64) {
    let mut line = 1_u64;
    while count == 0 || line <= count {
        out.text("line ").number(line).text("\n");
        if every_ms > 0 {
            out.flush();
            sleep(every_ms);
        }
        line += 1;
    }
}

fn cat(out: &mut Output, words: Words) -> i32 {
    let mut files = 0;
    let mut failed = 0;
    for name in words {
        files += 1;
        // The words come from C strings: a zero follows.
        let file = syscall(number::OPENAT, AT_FDCWD, name.as_ptr() as usize, 0, 0);
        if file < 0 {
            Output::to(2).text("demo: cannot open ").push(name).text("\n").flush();
            failed = 1;
        } else {
            copy(out, file as usize);
        }
    }
    if files == 0 {
        copy(out, 0);
    }
    out.flush();
    failed
}

fn write(mut words: Words) -> i32 {
    const O_WRONLY_CREAT_TRUNC: usize = 0o1 | 0o100 | 0o1000;
    let name = words.next().unwrap_or(b"");
    let file = syscall(number::OPENAT, AT_FDCWD, name.as_ptr() as usize, O_WRONLY_CREAT_TRUNC, 0o644);
    if file < 0 {
        Output::to(2).text("demo: cannot write ").push(name).text("\n").flush();
        return 1;
    }
    let mut out = Output::to(file as usize);
    echo(&mut out, words);
    out.flush();
    0
}

fn id(out: &mut Output) {
    let mut groups = [0_u32; 64];
    let count = syscall(number::GETGROUPS, groups.len(), groups.as_mut_ptr() as usize, 0, 0);
    out.text("uid=").number(call(number::GETUID)).text(" gid=").number(call(number::GETGID)).text(" groups=");
    for (at, group) in groups.iter().take(count.max(0) as usize).enumerate() {
        out.text(if at == 0 { "" } else { "," }).number(u64::from(*group));
    }
    out.text("\n");
}

/// Who the user is outside, where the user namespace says so.
fn mapped(out: &mut Output) {
    let mut bytes = [0; 256];
    let map = read_file(b"/proc/self/uid_map\0", &mut bytes);
    let mut numbers = map.split(|byte| byte.is_ascii_whitespace()).filter(|word| !word.is_empty());
    if let (Some(b"0"), Some(outside), Some(_)) = (numbers.next(), numbers.next(), numbers.next())
        && outside != b"0"
    {
        out.text(" (root here is user ").push(outside).text(" of the machine)");
    }
}

fn mounts(out: &mut Output) {
    let mut bytes = [0; 16384];
    let table = read_file(b"/proc/self/mountinfo\0", &mut bytes);
    out.number(table.iter().filter(|&&byte| byte == b'\n').count() as u64);
    let mut root = table.split(|&byte| byte == b'\n').filter(|line| line.split(|&b| b == b' ').nth(4) == Some(b"/"));
    let kind = root.next_back().and_then(|line| line.split(|&b| b == b' ').skip_while(|&word| word != b"-").nth(1));
    out.text(", the root is ").push(kind.unwrap_or(b"unknown"));
}

fn limit(out: &mut Output, file: &'static [u8]) {
    let mut bytes = [0; 32];
    match read_file(file, &mut bytes).split(|&byte| byte == b'\n').next() {
        None | Some(b"") => out.text("not limited by a cgroup that I see"),
        Some(b"max") => out.text("no limit"),
        Some(number) => out.text("at most ").push(number),
    };
}

fn open_files() -> u64 {
    const RLIMIT_NOFILE: usize = 7;
    let mut limits = [0_u64; 2];
    syscall(number::PRLIMIT64, 0, RLIMIT_NOFILE, 0, limits.as_mut_ptr() as usize);
    limits[0]
}

/// What uname tells: six fields of 65 bytes.
struct Names([u8; 6 * 65]);

impl Names {
    fn read() -> Self {
        let mut names = Self([0; 6 * 65]);
        syscall(number::UNAME, names.0.as_mut_ptr() as usize, 0, 0, 0);
        names
    }

    fn field(&self, at: usize) -> &[u8] {
        let field = self.0.get(at * 65..).unwrap_or(b"");
        field.split(|&byte| byte == 0).next().unwrap_or(b"")
    }
}

const AT_FDCWD: usize = -100_isize as usize;

fn read_file<'a>(name: &'static [u8], bytes: &'a mut [u8]) -> &'a [u8] {
    let file = syscall(number::OPENAT, AT_FDCWD, name.as_ptr() as usize, 0, 0);
    let mut used = 0;
    while file >= 0 {
        let rest = bytes.get_mut(used..).unwrap_or_default();
        match syscall(number::READ, file as usize, rest.as_mut_ptr() as usize, rest.len(), 0) {
            count if count > 0 => used += count as usize,
            _ => break,
        }
    }
    bytes.get(..used).unwrap_or(b"")
}

fn copy(out: &mut Output, descriptor: usize) {
    let mut bytes = [0_u8; 4096];
    loop {
        let count = syscall(number::READ, descriptor, bytes.as_mut_ptr() as usize, bytes.len(), 0);
        if count <= 0 {
            return;
        }
        out.push(bytes.get(..count as usize).unwrap_or(b"")).flush();
    }
}

fn call(number: usize) -> u64 {
    syscall(number, 0, 0, 0, 0) as u64
}

fn sleep(milliseconds: u64) {
    let time = [milliseconds / 1000, milliseconds % 1000 * 1_000_000];
    syscall(number::NANOSLEEP, time.as_ptr() as usize, 0, 0, 0);
}

/// No word, or a word that is no number, is 0.
fn parse(word: Option<&[u8]>) -> u64 {
    let digits = word.unwrap_or(b"").iter().take_while(|byte| byte.is_ascii_digit());
    digits.fold(0_u64, |number, digit| number.saturating_mul(10).saturating_add(u64::from(digit - b'0')))
}

/// The kernel drops signals that process 1 of a PID namespace has no handler for: take those that mean "stop".
fn end_when_told() {
    extern "C" fn told(signal: i32) -> ! {
        exit(128 + signal)
    }
    const SIGHUP: usize = 1;
    const SIGINT: usize = 2;
    const SIGTERM: usize = 15;
    const SA_RESTORER: usize = 0x0400_0000;
    // The handler never returns, so it can stand where x86_64 wants the address to return through.
    let handler = told as *const () as usize;
    let action = [handler, SA_RESTORER, handler, 0];
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        syscall(number::RT_SIGACTION, signal, action.as_ptr() as usize, 0, 8);
    }
}

/// What the compiler calls for copies and comparisons; there is no C library to have them from.
mod memory {
    // SAFETY of all: the compiler passes valid regions of that length, and for all but memmove disjoint ones.
    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcpy(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        for at in 0..length {
            unsafe { *to.add(at) = *from.add(at) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memmove(to: *mut u8, from: *const u8, length: usize) -> *mut u8 {
        if (to as usize) <= from as usize {
            return unsafe { memcpy(to, from, length) };
        }
        for at in (0..length).rev() {
            unsafe { *to.add(at) = *from.add(at) };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memset(to: *mut u8, byte: i32, length: usize) -> *mut u8 {
        for at in 0..length {
            unsafe { *to.add(at) = byte as u8 };
        }
        to
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn memcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
        for at in 0..length {
            let (l, r) = unsafe { (*left.add(at), *right.add(at)) };
            if l != r {
                return i32::from(l) - i32::from(r);
            }
        }
        0
    }

    #[unsafe(no_mangle)]
    unsafe extern "C" fn bcmp(left: *const u8, right: *const u8, length: usize) -> i32 {
        unsafe { memcmp(left, right, length) }
    }
}
