//! The smaller program answers every call as the one that it was made of.

use super::*;
use crate::executor::supervisor::runtime::oci;
use crate::executor::supervisor::seccomp;

/// A call: architecture, number, arguments.
type Call = (u32, u32, [u64; 6]);

const X86_64: u32 = 0xc000_003e;
const X86: u32 = 0x4000_0003;

/// As the kernel does.
fn run(program: &[Instruction], (architecture, number, arguments): Call) -> u32 {
    let (mut at, mut value) = (0, 0);
    loop {
        let here = program[at];
        let is_so = match here.code {
            RETURN => return here.k,
            GO => true,
            AND => {
                value &= here.k;
                true
            }
            LOAD => {
                value = match here.k {
                    NUMBER => number,
                    ARCHITECTURE => architecture,
                    k => {
                        let argument = arguments[(k as usize - 16) / 8];
                        if k % 8 == 0 { argument as u32 } else { (argument >> 32) as u32 }
                    }
                };
                true
            }
            IF_EQUAL => value == here.k,
            IF_GREATER => value > here.k,
            IF_AT_LEAST => value >= here.k,
            IF_ANY_BIT => value & here.k != 0,
            code => panic!("the kernel knows {code}, this test does not"),
        };
        at = match here.code {
            GO => at + 1 + here.k as usize,
            _ if here.is_condition() => at + 1 + usize::from(if is_so { here.yes } else { here.no }),
            _ => at + 1,
        };
    }
}

fn parse(program: &[u8]) -> Vec<Instruction> {
    program.as_chunks::<INSTRUCTION_BYTES>().0.iter().map(Instruction::from_bytes).collect()
}

fn compiled(text: &str) -> Vec<u8> {
    seccomp::export(&serde_json::from_str::<oci::LinuxSeccomp>(text).expect("a profile")).expect("compiled")
}

/// Most numbers, every other of the last, rules that look at arguments of both widths, other answers.
fn large_profile() -> String {
    const OTHERS: [&str; 6] = ["personality", "socket", "prctl", "clone", "kexec_load", "reboot"];
    let numbers = (0..440).filter(|number| *number < 400 || number % 2 == 0);
    let names = numbers.filter_map(|number| libseccomp::ScmpSyscall::from(number).get_name().ok());
    let names: Vec<String> =
        names.filter(|name| !OTHERS.contains(&name.as_str())).map(|name| format!("{name:?}")).collect();
    format!(
        r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"], "syscalls": [
            {{"names": [{}], "action": "SCMP_ACT_ALLOW"}},
            {{"names": ["kexec_load", "reboot"], "action": "SCMP_ACT_KILL_PROCESS"}},
            {{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 8, "op": "SCMP_CMP_EQ"}}]}},
            {{"names": ["personality"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 4294967295, "op": "SCMP_CMP_EQ"}}]}},
            {{"names": ["socket"], "action": "SCMP_ACT_ALLOW", "args": [{{"index": 0, "value": 40, "op": "SCMP_CMP_NE"}}]}},
            {{"names": ["prctl"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1, "args": [{{"index": 1, "value": 8589934592, "op": "SCMP_CMP_GE"}}]}},
            {{"names": ["clone"], "action": "SCMP_ACT_ALLOW",
              "args": [{{"index": 0, "value": 0, "valueTwo": 2114060288, "op": "SCMP_CMP_MASKED_EQ"}}]}}]}}"#,
        names.join(",")
    )
}

#[test]
fn a_smaller_program_answers_every_call_alike() {
    let old = compiled(&large_profile());
    let (old, new) = (parse(&old), parse(&compact(&old).expect("understood, and smaller")));
    assert!(new.len() * 2 < old.len(), "{} of {}", new.len(), old.len());
    let edges = old.iter().flat_map(|here| [here.k.wrapping_sub(1), here.k, here.k.wrapping_add(1)]);
    let numbers: BTreeSet<u32> = edges.chain(0..1024).chain(0x4000_0000..0x4000_0400).collect();
    let values = [0, 1, 8, 40, 0x7e02_0000, 0x10_0000_0008, 0xffff_ffff, 0x2_0000_0000, 0x1_ffff_ffff, u64::MAX];
    let answers: BTreeSet<u32> = numbers
        .iter()
        .flat_map(|number| [X86_64, X86, 0, 7, u32::MAX].map(|architecture| (architecture, *number)))
        .flat_map(|(architecture, number)| values.map(|value| (architecture, number, [value; 6])))
        .map(|call| {
            let answer = run(&old, call);
            assert_eq!(run(&new, call), answer, "{call:x?}");
            answer
        })
        .collect();
    assert!(answers.len() >= 5, "allowed, two errors, two ways to be killed: {answers:x?}");
}

#[test]
fn a_program_that_would_not_be_smaller_or_is_not_understood_stays() {
    let names = r#"{"defaultAction": "SCMP_ACT_ERRNO", "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]}"#;
    let small = compiled(names);
    assert!(compact(&small).is_none_or(|new| new.len() < small.len()));
    let large = compiled(&large_profile());
    assert_eq!(compact(&large[1..]), None);
    for (code, at) in [(AND, 4), (0x07, 3), (IF_ANY_BIT, 5), (LOAD, 1)] {
        let mut odd = parse(&large);
        odd[at] = Instruction { code, yes: 0, no: 0, k: 3 };
        let odd: Vec<u8> = odd.into_iter().flat_map(Instruction::to_bytes).collect();
        assert_eq!(compact(&odd), None, "{code:#x}");
    }
    // One that leads out of itself.
    let mut cut = parse(&large);
    cut.truncate(cut.len() / 2);
    assert_eq!(compact(&cut.into_iter().flat_map(Instruction::to_bytes).collect::<Vec<_>>()), None);
}
