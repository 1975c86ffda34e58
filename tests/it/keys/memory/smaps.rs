//! The mappings of a process, as `/proc/PID/smaps` has them.

use std::{fs, ops::Range};

/// A row of `/proc/PID/smaps`.
#[derive(Clone)]
pub struct Mapping {
    pub range: Range<u64>,
    /// As in `/proc/PID/maps`.
    pub line: String,
    pub locked: String,
    pub flags: String,
}

// === impl Mapping ===

impl Mapping {
    pub fn is_readable(&self) -> bool {
        let readable = self.line.split_whitespace().nth(1).is_some_and(|rights| rights.starts_with('r'));
        readable && !["[vvar", "[vdso", "[vsyscall"].iter().any(|special| self.line.contains(special))
    }

    pub fn is_locked(&self) -> bool {
        self.flags.split_whitespace().any(|flag| flag == "lo")
    }
}

pub fn mappings(pid: u32) -> Vec<Mapping> {
    let path = format!("/proc/{pid}/smaps");
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    let mut mappings: Vec<Mapping> = Vec::new();
    for line in text.lines() {
        if let Some(range) = range(line) {
            let (locked, flags) = (String::new(), String::new());
            mappings.push(Mapping { range, line: line.to_owned(), locked, flags });
        } else if let (Some(mapping), Some((name, value))) = (mappings.last_mut(), line.split_once(':')) {
            match name {
                "Locked" => mapping.locked = value.trim().to_owned(),
                "VmFlags" => mapping.flags = value.trim().to_owned(),
                _ => {}
            }
        }
    }
    each_once(mappings)
}

/// Cuts off addresses that an earlier row has covered: while another thread maps memory, a row may come twice, and longer the second time.
fn each_once(mappings: Vec<Mapping>) -> Vec<Mapping> {
    let mut covered = 0;
    let cut = |mut mapping: Mapping| {
        mapping.range.start = mapping.range.start.max(covered);
        covered = covered.max(mapping.range.end);
        (!mapping.range.is_empty()).then_some(mapping)
    };
    mappings.into_iter().filter_map(cut).collect()
}
#[test]
fn a_row_of_smaps_that_comes_twice_is_read_once() {
    let row = |range: Range<u64>| Mapping {
        range,
        line: String::new(),
        locked: String::new(),
        flags: String::new(),
    };
    let rows = vec![row(0..10), row(10..20), row(0..10), row(10..30), row(40..50)];
    let read: Vec<_> = each_once(rows).into_iter().map(|mapping| mapping.range).collect();
    assert_eq!(read, [0..10, 10..20, 20..30, 40..50]);
}
/// `START-END`, in hexadecimal, at the start of a line.
fn range(line: &str) -> Option<Range<u64>> {
    let (start, end) = line.split_whitespace().next()?.split_once('-')?;
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    Some(number(start)?..number(end)?)
}
