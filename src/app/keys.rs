//! Commands about one key, straight at the key store: pin it, make a tenant's first, bring it back from the sealed copy, forget a former one.

use super::{Base, OpenStore, Stopped};
use crate::{
    backup::{self, Kept, Restored},
    cause::{Cause, Finding},
    config::Settings,
    gate::{self, Create},
    known, memory, offline,
};
/// `keswarden key pin`: the fingerprint of the key as it is in the store, pinned wherever pins are kept.
pub async fn pin(settings: Settings) -> Result<String, Stopped> {
    let base = Base::beside(None, &settings);
    let OpenStore { store, memory, .. } = base.open_beside(&settings)?;
    if !memory.pins.can_write() {
        return Err(Cause::KeyUnpinned
            .seen("there is nowhere to pin the key: neither KESWARDEN_PIN_KV nor KESWARDEN_PIN_DIR is set")
            .fix("set one of them, or put the fingerprint that `keswarden doctor` prints into KESWARDEN_PINS")
            .into());
    }
    let held = base.look_at(&store, &settings.key).await?;
    store.vouch(&settings.key, &held.fingerprint).await?;
    memory.pins.pin(&settings.key, &held.fingerprint).await?;
    Ok(held.fingerprint.clone())
}

/// `keswarden key create --first`: makes the key when no witness knows the name; its fingerprint. One that is there, and is well, is
/// left as it is.
pub async fn create_first(settings: Settings) -> Result<String, Stopped> {
    let base = Base::beside(None, &settings);
    let opened = base.open_beside(&settings)?;
    let create = match settings.create {
        Create::FirstWhateverDrives => Create::FirstWhateverDrives,
        Create::Never | Create::IfNew | Create::First => Create::First,
    };
    let gate = gate::Settings { create, ..settings.gate() };
    // A KES that stands beside is not asked: it would only say that the key is missing.
    let (keyring, _) = gate::attempt(&gate, &opened.gate_deps(&base)).await?;
    let held = keyring.held(settings.key.as_str()).expect("a gate that passes must hold its keys");
    Ok(held.fingerprint.clone())
}

/// `keswarden key rescue --from-copy`: puts a key of the sealed copy back into the store, where there is none; what was done, in words.
/// Without a fingerprint it is the one that counts for the name.
///
/// # Errors
/// When the copy lacks the key, or has several; when another key is stored, or a witness knows another one.
pub async fn rescue_from_copy(settings: Settings, fingerprint: Option<&str>) -> Result<String, Stopped> {
    memory::protect();
    let base = Base::beside(None, &settings);
    let (name, OpenStore { store, memory, copy, .. }) = (settings.key.clone(), base.open_beside(&settings)?);
    let Some(copy) = copy else {
        return Err(Cause::CopyUnusable
            .seen("there is no sealed copy: KESWARDEN_OFFLINE_DIR and KESWARDEN_OFFLINE_KEY_FILE are not set")
            .fix("set them as they are for the agent, whose copy it is")
            .into());
    };
    let place = copy.place();
    let (origin, keys) = copy.keys_of(&name)?.unwrap_or_default();
    let all: Vec<_> = keys.iter().map(|key| key.fingerprint.clone()).collect();
    let wanted = |key: &offline::Copied| match fingerprint {
        Some(fingerprint) => key.fingerprint == fingerprint,
        None => !key.former || all.len() == 1,
    };
    let Some(key) = keys.into_iter().find(wanted) else {
        let has = if all.is_empty() { "none of this name".to_owned() } else { all.join(", ") };
        return Err(Cause::KeyMissing
            .seen(format!("{place} has no such key '{name}'; it has {has}"))
            .fix("say which one: --fingerprint")
            .into());
    };
    // A copy of another store counts for no key that nobody else knows: two agents may share a directory.
    let others = memory.witnesses.without(known::Kind::Copy).ask(&name).await;
    let is_known = known::judge(known::Asked::Key(&key.fingerprint), &others) == known::Verdict::Same;
    if !copy.is_ours(&origin) && !is_known {
        return Err(copy.is_anothers(&origin, &store.describe()).into());
    }
    store.ready().await?;
    let kept = Kept::of(&name, key.version.to_text(), &place)?;
    let restored = backup::restore(&*store, &name, &kept, false).await?;
    let there = store.describe();
    Ok(match restored {
        Restored::Written => {
            format!("the key '{name}', fingerprint {}, is back in {there}", kept.fingerprint)
        }
        _ => format!(
            "the key '{name}', fingerprint {}, is in {there}: there is nothing to rescue",
            kept.fingerprint
        ),
    })
}

/// `keswarden key forget`: a key was replaced on purpose. `was` is the former fingerprint, `is` that of the key that is stored now; absent
/// when none is, and none shall be for now. What each place said.
///
/// # Errors
/// When the store has another key than `is`, or nobody knows `was`: then somebody means another key.
pub async fn forget(
    settings: Settings,
    was: &str,
    is: Option<&str>,
) -> Result<Vec<(String, Result<(), Finding>)>, Stopped> {
    let base = Base::beside(None, &settings);
    let (name, OpenStore { store, memory, .. }) = (settings.key.clone(), base.open_beside(&settings)?);
    let stored = match base.look_at(&store, &name).await {
        Ok(held) => Some(held.fingerprint.clone()),
        Err(finding) if finding.cause.is_no_key() => None,
        Err(finding) => return Err(finding.into()),
    };
    if stored.as_deref() != is {
        let stored =
            stored.map_or("there is none".to_owned(), |stored| format!("its fingerprint is {stored}"));
        return Err(Cause::KeyReplaced
            .seen(format!(
                "what is stored as '{name}' in {} is not what was said: {stored}",
                store.describe()
            ))
            .fix("nothing was forgotten; `keswarden doctor` prints the fingerprints")
            .into());
    }
    let statements = memory.witnesses.ask(&name).await;
    if !statements.iter().any(|one| one.knows(was)) {
        let words: Vec<_> = statements.iter().map(known::Statement::words).collect();
        return Err(Cause::KeyMissing
            .seen(format!(
                "nobody here knows a key '{name}' with the fingerprint {was}: {}",
                words.join("; ")
            ))
            .fix("nothing was forgotten; `keswarden doctor` prints the fingerprints")
            .into());
    }
    Ok(memory.witnesses.forget(&name, was, is).await)
}
