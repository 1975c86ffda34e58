//! Tests of the table of `judge`, cell by cell, and of the findings.

use super::*;
use crate::{
    cause::Cause,
    names::Name,
    store::{SetAside, SetAsideKey},
};

const A: &str = "aaaa-1111";
const B: &str = "bbbb-2222";

fn name() -> Name {
    Name::parse("my-key").expect("a constant name must be valid")
}

fn fingerprint(text: &str) -> Says {
    Says::Known(vec![Known::Fingerprint(text.to_owned(), String::new())])
}

fn silent() -> Says {
    Says::CannotTell(Cause::MemoryUnusable.seen("it hangs"))
}

/// Every content of a statement, with its meaning for the key A.
fn sayings() -> Vec<(&'static str, Says)> {
    vec![
        ("this", fingerprint(A)),
        ("this", fingerprint("aaaa")),
        ("other", fingerprint(B)),
        ("other", Says::Known(vec![Known::Another("opens nothing".to_owned())])),
        (
            "other",
            Says::Known(vec![
                Known::Fingerprint(A.to_owned(), String::new()),
                Known::Another("mixed".to_owned()),
            ]),
        ),
        ("new", Says::New),
        ("forgets", Says::Forgets("it forgets".to_owned())),
        ("silent", silent()),
    ]
}

const KINDS: [Kind; 6] = [Kind::Agent, Kind::Copy, Kind::Ledger, Kind::Pin, Kind::Drives, Kind::History];

/// Calls `with` for every set of up to three witnesses of different kinds, with every content of each
/// statement.
fn every_set(mut with: impl FnMut(&[Statement], &[&str])) {
    with(&[], &[]);
    for (at, one) in KINDS.iter().enumerate() {
        for (means_one, says_one) in sayings() {
            let first = Statement::new(*one, format!("{one:?}"), says_one);
            with(std::slice::from_ref(&first), &[means_one]);
            for (and, two) in KINDS.iter().enumerate().skip(at + 1) {
                for (means_two, says_two) in sayings() {
                    let second = Statement::new(*two, format!("{two:?}"), says_two);
                    with(&[first.clone(), second.clone()], &[means_one, means_two]);
                    for three in &KINDS[and + 1..] {
                        for (means_three, says_three) in sayings() {
                            let third = Statement::new(*three, format!("{three:?}"), says_three);
                            with(
                                &[first.clone(), second.clone(), third],
                                &[means_one, means_two, means_three],
                            );
                        }
                    }
                }
            }
        }
    }
}

/// The table at the top of the module, cell by cell.
#[test]
fn a_key_at_hand_passes_unless_somebody_knows_another() {
    let mut sets = 0;
    every_set(|statements, means| {
        sets += 1;
        let verdict = judge(Asked::Key(A), statements);
        match (means.contains(&"other"), means.contains(&"this")) {
            (true, _) => {
                let Verdict::Other(others) = verdict else { panic!("{statements:?}: {verdict:?}") };
                assert_eq!(others.len(), means.iter().filter(|means| **means == "other").count());
            }
            (false, true) => assert_eq!(verdict, Verdict::Same, "{statements:?}"),
            (false, false) => assert_eq!(verdict, Verdict::First, "{statements:?}"),
        }
    });
    assert!(sets > 10_000, "{sets} sets of witnesses");
}

/// The right key passes with every set of witnesses that does not know another key.
#[test]
fn the_right_key_passes_with_any_subset_of_witnesses() {
    every_set(|statements, means| {
        if !means.contains(&"other") {
            assert!(
                !matches!(judge(Asked::Key(A), statements), Verdict::Other(_) | Verdict::Unsure(_)),
                "{statements:?}"
            );
        }
    });
}

#[test]
fn a_key_is_made_only_where_nobody_knows_the_name_and_everybody_was_asked() {
    every_set(|statements, means| {
        let new_drives = statements.iter().any(|one| one.kind == Kind::Drives && one.says == Says::New);
        for on_request in [false, true] {
            let verdict = judge(Asked::Creation { on_request }, statements);
            let known = means.contains(&"this") || means.contains(&"other");
            let unsure =
                means.contains(&"silent") || (means.contains(&"forgets") && !on_request && !new_drives);
            match (known, unsure) {
                (true, _) => assert!(matches!(verdict, Verdict::Other(_)), "{statements:?}"),
                (false, true) => assert!(matches!(verdict, Verdict::Unsure(_)), "{statements:?}"),
                (false, false) => assert_eq!(verdict, Verdict::First, "{statements:?}"),
            }
        }
    });
}

#[test]
fn the_order_of_witnesses_changes_nothing() {
    every_set(|statements, _| {
        let mut backwards = statements.to_vec();
        backwards.reverse();
        for asked in
            [Asked::Key(A), Asked::Creation { on_request: false }, Asked::Creation { on_request: true }]
        {
            let kind = |verdict: &Verdict<'_>| match verdict {
                Verdict::Same => 0,
                Verdict::First => 1,
                Verdict::Other(_) => 2,
                Verdict::Unsure(_) => 3,
            };
            assert_eq!(kind(&judge(asked, statements)), kind(&judge(asked, &backwards)), "{statements:?}");
        }
    });
}

#[test]
fn a_key_that_got_an_hmac_key_is_the_same_and_one_that_lost_it_is_not() {
    assert!(is_same("aaaa", "aaaa-1111") && is_same(A, A));
    assert!(!is_same("aaaa-1111", "aaaa") && !is_same("aaaa-1111", "aaaa-2222") && !is_same("bbbb", A));
}

#[test]
fn a_replaced_key_is_told_of_with_both_fingerprints_where_each_is_known_from_and_the_way_back() {
    let mut copy = Statement::new(Kind::Copy, "the sealed copy /copy", fingerprint(B));
    copy.gives_back =
        Some("put it back from the sealed copy: `keswarden key rescue my-key --from-copy --yes`".to_owned());
    let statements = [
        Statement::new(Kind::Ledger, "the state directory /state", fingerprint(A)),
        copy,
        Statement::new(Kind::Pin, "the pins in /pins", silent()),
    ];
    let found = replaced(&name(), A, "a store", &statements, (&Commands::default(), &aside()));
    assert_eq!(found.cause, Cause::KeyReplaced);
    for part in [
        A,
        B,
        "the sealed copy /copy",
        "this one is known from the state directory /state",
        "not asked: the pins in /pins",
    ] {
        assert!(found.seen.contains(part), "{part}: {}", found.seen);
    }
    for part in [
        "`mv a b`, then put it back from the sealed copy",
        "`keswarden key forget my-key --was bbbb-2222 --is aaaa-1111 --yes`",
    ] {
        assert!(found.fix.contains(part), "{part}: {}", found.fix);
    }
}

/// A mistaken pin beside the right key: the fix puts no wrong key back, and says how the pin is forgotten.
#[test]
fn a_mistaken_witness_has_a_way_out() {
    let mut copy = Statement::new(Kind::Copy, "the sealed copy", fingerprint(A));
    copy.gives_back = Some("GIVE BACK".to_owned());
    let pin = Statement::new(Kind::Pin, "the pins", fingerprint(B));
    let found = replaced(&name(), A, "a store", &[copy, pin.clone()], (&Commands::default(), &aside()));
    assert!(!found.fix.contains("GIVE BACK"), "it would give back the key that is there: {}", found.fix);
    assert!(found.fix.contains("key forget my-key --was bbbb-2222 --is aaaa-1111 --yes"), "{}", found.fix);
    let found = taken(&name(), A, &[&pin], &Commands::default());
    assert!(
        found.fix.contains("`keswarden key forget my-key --was bbbb-2222 --yes`, then again"),
        "{}",
        found.fix
    );
}

/// The order of the ways back: places that have the key, an undelete, a backup, the former store; a new key
/// last, and only where no witness knows the name.
#[test]
fn a_missing_key_is_told_of_with_the_ways_back_in_their_order() {
    let from_store = || Cause::KeyMissing.seen("there is no key");
    let deleted = || Cause::KeyDeleted.seen("it was deleted").fix("undelete it: `bao kv undelete`");
    let gives = |kind, way: &str| {
        let mut statement = Statement::new(kind, format!("{kind:?}"), fingerprint(A));
        statement.gives_back = Some(way.to_owned());
        statement
    };
    let order = |fix: &str, parts: &[&str]| {
        let places: Vec<_> =
            parts.iter().map(|part| fix.find(part).unwrap_or_else(|| panic!("{part}: {fix}"))).collect();
        assert!(places.is_sorted(), "{parts:?}: {fix}");
    };
    let commands = Commands { config: Some("/etc/kes/a b.yaml".into()) };
    let both = [gives(Kind::Copy, "COPY"), gives(Kind::Agent, "AGENT")];
    let told = missing(&name(), deleted(), &both, &commands, None);
    order(&told.fix, &["AGENT", "COPY", "bao kv undelete", "key restore", "bring the former key store back"]);
    assert!(!told.fix.contains("create"), "{}", told.fix);
    assert!(told.seen.contains(A), "{}", told.seen);
    let told =
        missing(&name(), from_store(), &[Statement::new(Kind::Ledger, "it", Says::New)], &commands, None);
    order(
        &told.fix,
        &[
            "key restore",
            "bring its key store back",
            "`keswarden key create --first my-key --config '/etc/kes/a b.yaml'`",
        ],
    );
    let told = missing(&name(), from_store(), &[Statement::new(Kind::Pin, "it", silent())], &commands, None);
    order(&told.fix, &["could not be asked", "key restore", "key create --first"]);
}

/// The command of a store that sets a key aside.
fn aside() -> SetAside {
    SetAside { command: "`mv a b`".to_owned(), others: Vec::new() }
}

/// The rest of a lost key is set aside first; a later version that is the missing key is the first way back.
#[test]
fn a_lost_key_is_set_aside_before_it_comes_back() {
    let destroyed = Cause::KeyDestroyed.seen("it was destroyed");
    let known = [Statement::new(Kind::Ledger, "it", fingerprint(A))];
    let put_back = "put version 2 back".to_owned();
    let others = vec![SetAsideKey { fingerprint: A.to_owned(), put_back }];
    let told =
        missing(&name(), destroyed, &known, &Commands::default(), Some(&SetAside { others, ..aside() }));
    let at = |part: &str| told.fix.find(part).unwrap_or_else(|| panic!("{part}: {}", told.fix));
    assert!(at("`mv a b`") < at("put version 2 back") && at("put version 2 back") < at("key restore"));
}

/// A trace of a key refuses a creation, and does not refuse the key at hand.
#[test]
fn a_name_that_was_in_use_gets_no_other_key_and_keeps_its_own() {
    let was = [Statement::new(Kind::Drives, "drives", Says::WasInUse("seven files".to_owned()))];
    assert_eq!(judge(Asked::Key(A), &was), Verdict::First);
    for on_request in [true, false] {
        assert!(matches!(judge(Asked::Creation { on_request }, &was), Verdict::Other(_)));
    }
}
