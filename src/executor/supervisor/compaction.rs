//! The program of a seccomp filter, made smaller without changing an answer of it.
//!
//! libseccomp compares a call's number with every number that the profile names. Numbers side by side mostly have one
//! answer: here it is worked out once what the program does with each number, and the program that comes of it finds
//! the range of a number by halving. Of 1000 instructions some 300 are left, and the kernel, which checks and
//! translates a program for every process that is begun with it, has a third of the work.
//!
//! ```text
//! architecture ? -> number, halved -> answer
//!                                  -> what the program did from the first look at an argument on
//! ```
//!
//! A program with anything that is not understood stays as it is.

use std::collections::{BTreeMap, BTreeSet};

/// BPF_LD | BPF_W | BPF_ABS, BPF_ALU | BPF_AND | BPF_K, BPF_RET | BPF_K of linux/bpf_common.h.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;
/// BPF_JMP with BPF_JA, and BPF_JEQ, BPF_JGT, BPF_JGE, BPF_JSET with BPF_K.
const GO: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
/// Offsets in the kernel's `struct seccomp_data`; behind these is what only the call itself knows.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
/// The farthest that a condition jumps.
const REACH: usize = u8::MAX as usize;
const INSTRUCTION_BYTES: usize = 8;

/// As the kernel has it (`struct sock_filter`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    k: u32,
}

impl Instruction {
    fn from_bytes(b: &[u8; INSTRUCTION_BYTES]) -> Self {
        let (code, k) = (u16::from_ne_bytes([b[0], b[1]]), u32::from_ne_bytes([b[4], b[5], b[6], b[7]]));
        Self { code, yes: b[2], no: b[3], k }
    }

    fn to_bytes(self) -> [u8; INSTRUCTION_BYTES] {
        let ([c0, c1], [k0, k1, k2, k3]) = (self.code.to_ne_bytes(), self.k.to_ne_bytes());
        [c0, c1, self.yes, self.no, k0, k1, k2, k3]
    }

    fn is_condition(self) -> bool {
        matches!(self.code, IF_EQUAL | IF_GREATER | IF_AT_LEAST | IF_ANY_BIT)
    }

    /// Where it leads from `at`.
    fn next(self, at: usize) -> Vec<usize> {
        match self.code {
            RETURN => Vec::new(),
            GO => vec![at + 1 + self.k as usize],
            _ if self.is_condition() => vec![at + 1 + usize::from(self.yes), at + 1 + usize::from(self.no)],
            _ => vec![at + 1],
        }
    }
}

/// What a program does with a call of some number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outcome {
    Answer(u32),
    /// It looks at an argument, there.
    Asks(usize),
}

/// The smaller program; none where it is not understood, or would not be smaller.
pub fn compact(program: &[u8]) -> Option<Vec<u8>> {
    let (instructions, rest) = program.as_chunks::<INSTRUCTION_BYTES>();
    let old: Vec<_> = instructions.iter().map(Instruction::from_bytes).collect();
    let new = rest.is_empty().then(|| rewrite(&old)).flatten()?;
    (new.len() < old.len()).then(|| new.into_iter().flat_map(Instruction::to_bytes).collect())
}

fn rewrite(old: &[Instruction]) -> Option<Vec<Instruction>> {
    let (architectures, other) = architectures(old)?;
    let blocks: Vec<_> =
        architectures.iter().map(|(architecture, at)| ranges(old, *at, *architecture)).collect::<Option<_>>()?;
    let asked = blocks.iter().flatten().filter_map(|(_, outcome)| match outcome {
        Outcome::Asks(at) => Some(*at),
        Outcome::Answer(_) => None,
    });
    let mut writer = Writer::default();
    let tails = writer.copy(old, &reachable(old, asked)?)?;
    let mut next = writer.answer(other);
    for ((architecture, _), ranges) in architectures.iter().zip(&blocks).rev() {
        let block = writer.halve(ranges, &tails)?;
        writer.fall_to(block);
        let block = writer.push(LOAD, NUMBER);
        next = writer.condition(IF_EQUAL, *architecture, block, next);
    }
    writer.fall_to(next);
    writer.push(LOAD, ARCHITECTURE);
    writer.reversed.reverse();
    Some(writer.reversed)
}

/// Where the program goes on for each architecture that it knows, and what it answers to the others.
fn architectures(old: &[Instruction]) -> Option<(Vec<(u32, usize)>, u32)> {
    let first = old.first().filter(|first| (first.code, first.k) == (LOAD, ARCHITECTURE))?;
    let (mut known, mut at) = (Vec::new(), first.next(0)[0]);
    loop {
        let here = old.get(at)?;
        match (here.code, here.next(at).as_slice()) {
            (RETURN, _) => return Some((known, here.k)),
            (GO, [next]) => at = *next,
            (IF_EQUAL, [yes, no]) => {
                known.push((here.k, *yes));
                at = *no;
            }
            _ => return None,
        }
    }
}

/// The first number of each range with one outcome, in order, from 0.
fn ranges(old: &[Instruction], at: usize, architecture: u32) -> Option<Vec<(u32, Outcome)>> {
    let mut edges = BTreeSet::from([0]);
    for condition in old.iter().filter(|instruction| instruction.is_condition()) {
        edges.extend([Some(condition.k), condition.k.checked_add(1)].into_iter().flatten());
    }
    let mut ranges: Vec<(u32, Outcome)> = Vec::new();
    for number in edges {
        let outcome = outcome(old, at, architecture, number)?;
        if ranges.last().is_none_or(|(_, last)| *last != outcome) {
            ranges.push((number, outcome));
        }
    }
    Some(ranges)
}

/// Of one number. Only comparisons: then it changes nowhere but at the edges.
fn outcome(old: &[Instruction], mut at: usize, architecture: u32, number: u32) -> Option<Outcome> {
    let mut value = architecture;
    loop {
        let here = *old.get(at)?;
        let is_so = match here.code {
            RETURN => return Some(Outcome::Answer(here.k)),
            LOAD if here.k == NUMBER => {
                value = number;
                true
            }
            LOAD if here.k == ARCHITECTURE => {
                value = architecture;
                true
            }
            LOAD => return Some(Outcome::Asks(at)),
            GO => true,
            IF_EQUAL => value == here.k,
            IF_GREATER => value > here.k,
            IF_AT_LEAST => value >= here.k,
            _ => return None,
        };
        let next = here.next(at);
        at = if is_so { *next.first()? } else { *next.last()? };
    }
}

/// Every instruction to which the program may come from there.
fn reachable(old: &[Instruction], from: impl Iterator<Item = usize>) -> Option<BTreeSet<usize>> {
    let (mut seen, mut todo) = (BTreeSet::new(), from.collect::<Vec<_>>());
    while let Some(at) = todo.pop() {
        let here = old.get(at).filter(|here| here.is_condition() || matches!(here.code, LOAD | AND | GO | RETURN))?;
        if seen.insert(at) {
            todo.extend(here.next(at));
        }
    }
    Some(seen)
}

/// An instruction that is written: programs jump forward only, so they are written from their ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

#[derive(Debug, Default)]
struct Writer {
    reversed: Vec<Instruction>,
    answers: BTreeMap<u32, Label>,
}

impl Writer {
    fn push(&mut self, code: u16, k: u32) -> Label {
        self.write(Instruction { code, yes: 0, no: 0, k })
    }

    fn write(&mut self, instruction: Instruction) -> Label {
        self.reversed.push(instruction);
        Label(self.reversed.len() - 1)
    }

    /// Instructions between the label and the next that is written.
    fn distance(&self, to: Label) -> usize {
        self.reversed.len() - 1 - to.0
    }

    fn answer(&mut self, k: u32) -> Label {
        match self.answers.get(&k) {
            Some(label) if self.distance(*label) < REACH / 2 => *label,
            _ => {
                let label = self.push(RETURN, k);
                self.answers.insert(k, label);
                label
            }
        }
    }

    /// So that what is written next is followed by it.
    fn fall_to(&mut self, label: Label) {
        if self.distance(label) > 0 {
            self.push(GO, self.distance(label) as u32);
        }
    }

    /// The label, or a way to it that can be jumped to with another instruction in between.
    fn near(&mut self, label: Label) -> Label {
        match self.distance(label) {
            0..REACH => label,
            distance => self.push(GO, distance as u32),
        }
    }

    fn condition(&mut self, code: u16, k: u32, yes: Label, no: Label) -> Label {
        let (yes, no) = (self.near(yes), self.near(no));
        let [yes, no] = [yes, no].map(|label| self.distance(label) as u8);
        self.write(Instruction { code, yes, no, k })
    }

    fn halve(&mut self, ranges: &[(u32, Outcome)], tails: &BTreeMap<usize, Label>) -> Option<Label> {
        match ranges {
            [] => None,
            [(_, Outcome::Answer(k))] => Some(self.answer(*k)),
            [(_, Outcome::Asks(at))] => tails.get(at).copied(),
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let (high_label, low_label) = (self.halve(high, tails)?, self.halve(low, tails)?);
                Some(self.condition(IF_AT_LEAST, high[0].0, high_label, low_label))
            }
        }
    }

    /// These instructions as they are; each is followed by what followed it.
    fn copy(&mut self, old: &[Instruction], which: &BTreeSet<usize>) -> Option<BTreeMap<usize, Label>> {
        let mut labels = BTreeMap::new();
        for &at in which.iter().rev() {
            let here = old[at];
            let next: Vec<Label> = here.next(at).iter().map(|at| labels.get(at).copied()).collect::<Option<_>>()?;
            let label = match next.as_slice() {
                [] => self.answer(here.k),
                [next] if here.code == GO => *next,
                [next] => {
                    self.fall_to(*next);
                    self.push(here.code, here.k)
                }
                [yes, no] => self.condition(here.code, here.k, *yes, *no),
                _ => return None,
            };
            labels.insert(at, label);
        }
        Some(labels)
    }
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
