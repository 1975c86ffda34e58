//! The memory of keys under attack: way of loss × place of memory × command × store. Each combination is refused with its cause and the
//! key's known fingerprint, unless no place could know the key.

mod losses;
mod sharing;
pub mod tenant;
mod ways_back;

use crate::harness::{Bao, fingerprint, key_text};
use keswarden::cause::{Cause, Finding};
use tenant::{Remembered, WRITTEN};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Store {
    Directory,
    KvVersion1,
    KvVersion2,
}

/// The only place that remembers the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    StateDirectory,
    SealedCopy,
    PinDirectory,
    PinPath,
    StatedPin,
    Drives,
    RunningAgent,
    Nowhere,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No trace is left where the store can do that.
    Deleted,
    /// K/V v2: a deletion that can be undone.
    SoftDeleted,
    Destroyed,
    Replaced,
    /// The settings name an empty folder.
    MovedToNothing,
    /// The settings name another tenant's folder, with a key of this name.
    MovedToAnothers,
}

const PLACES: [Place; 8] = [
    Place::StateDirectory,
    Place::SealedCopy,
    Place::PinDirectory,
    Place::PinPath,
    Place::StatedPin,
    Place::Drives,
    Place::RunningAgent,
    Place::Nowhere,
];

const WAYS: [Way; 6] = [
    Way::Deleted,
    Way::SoftDeleted,
    Way::Destroyed,
    Way::Replaced,
    Way::MovedToNothing,
    Way::MovedToAnothers,
];

// === impl Way ===

impl Way {
    /// Another key is there afterwards, rather than none.
    fn replaces(self) -> bool {
        matches!(self, Self::Replaced | Self::MovedToAnothers)
    }

    fn can_be_done_to(self, store: Store) -> bool {
        store == Store::KvVersion2 || !matches!(self, Self::SoftDeleted | Self::Destroyed)
    }

    /// The store itself shows that there was a key.
    fn leaves_a_trace(self) -> bool {
        matches!(self, Self::SoftDeleted | Self::Destroyed)
    }
}

/// The message about a loss: the known fingerprint, and ways back that make no new key.
fn tells(cell: &str, finding: &Finding, way: Way, place: Place, other: &str) {
    let was = fingerprint(&WRITTEN.key);
    let Finding { cause, seen, fix } = finding;
    let cell = format!("{cell}: {finding}");
    if way.replaces() {
        assert_eq!(*cause, Cause::KeyReplaced, "{cell}");
        assert!(seen.contains(other), "the fingerprint of the other key: {cell}");
    } else {
        assert!(matches!(cause, Cause::KeyMissing | Cause::KeyDeleted | Cause::KeyDestroyed), "{cell}");
    }
    // Drives name a key without its fingerprint.
    if !matches!(place, Place::Drives | Place::Nowhere) {
        assert!(seen.contains(&was), "the fingerprint of the former key: {cell}");
    }
    assert!(!fix.contains("create") && !fix.contains("kv put"), "nobody is told to make another one: {cell}");
    let ways_back: &[&str] = match place {
        Place::RunningAgent => &["keswarden key rescue my-key --run-dir", "key restore"],
        Place::SealedCopy => &["keswarden key rescue my-key --from-copy --yes", "key restore"],
        _ => &["key restore"],
    };
    let places: Vec<_> =
        ways_back.iter().map(|part| fix.find(part).unwrap_or_else(|| panic!("{part}: {cell}"))).collect();
    assert!(places.is_sorted(), "{cell}");
    if way == Way::SoftDeleted {
        assert!(fix.contains("bao kv undelete"), "{cell}");
    }
}

fn cell(bao: &Bao, store: Store, place: Place, way: Way, number: usize) {
    let name = format!("{store:?}, {place:?}, {way:?}");
    println!("{name}");
    let tenant = Remembered::new(bao, store, place, format!("cell-{number}"));
    let other = key_text();
    let at = tenant.loses(way, &other);
    let before = tenant.stored(at);
    // The sealed copy is of one store, and knows no key of another.
    let knows_elsewhere = !matches!(place, Place::SealedCopy) || at.is_empty();
    let knows = place != Place::Nowhere && knows_elsewhere;
    let commands: [(&str, Result<(), Finding>); 4] = [
        ("init", tenant.init(at)),
        ("doctor", tenant.doctor(at)),
        ("if-new", tenant.gate(at, &[("KESWARDEN_KEY_CREATE", "if-new")])),
        ("create --first", Ok(())),
    ];
    for (command, result) in &commands[..2] {
        let cell = format!("{name}, {command}");
        match result {
            Ok(()) => assert!(way.replaces() && !knows, "a wrong key passes: {cell}"),
            Err(finding) if knows || way.leaves_a_trace() => {
                let place = if knows { place } else { Place::Nowhere };
                tells(&cell, finding, way, place, &fingerprint(&other));
            }
            Err(finding) => assert_eq!(finding.cause, Cause::KeyMissing, "{cell}: {finding}"),
        }
    }
    let made = tenant.create_first(at).map(drop);
    for (command, result) in [(commands[2].0, &commands[2].1), (commands[3].0, &made)] {
        let cell = format!("{name}, {command}");
        let is_refused = knows || way.leaves_a_trace() || place == Place::SealedCopy && !way.replaces();
        match result {
            Ok(()) => assert!(!is_refused, "a key is made or taken in the place of another: {cell}"),
            Err(_) if is_refused || command == "if-new" => {}
            Err(finding) => panic!("nothing could know: {cell}: {finding}"),
        }
    }
    if knows || way.leaves_a_trace() || way.replaces() {
        assert_eq!(tenant.stored(at), before, "nothing is written: {name}");
    }
    // With the right bytes back in their place everything passes.
    if at.is_empty() && !way.leaves_a_trace() && place != Place::Nowhere {
        if tenant.stored("").is_some() {
            tenant.delete();
        }
        tenant.put("", &WRITTEN.key);
        tenant.init("").unwrap_or_else(|finding| panic!("the right key: {name}: {finding}"));
    }
}

fn table(store: Store) {
    let bao = Bao::unsealed();
    bao.setup_kv(1, "kv1");
    bao.setup_kv(2, "kv2");
    bao.setup_kv(2, "pins");
    let mut number = 0;
    for place in PLACES {
        if store == Store::Directory && place == Place::PinPath {
            continue;
        }
        for way in WAYS.into_iter().filter(|way| way.can_be_done_to(store)) {
            number += 1;
            cell(&bao, store, place, way, number);
        }
    }
    println!("{number} cells");
}

#[test]
fn keys_in_a_directory_are_remembered() {
    table(Store::Directory);
}

#[test]
fn keys_in_kv_version_1_are_remembered() {
    table(Store::KvVersion1);
}

#[test]
fn keys_in_kv_version_2_are_remembered() {
    table(Store::KvVersion2);
}
