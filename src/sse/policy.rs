//! What is to be done about a bucket: pure.

use crate::s3::Sse;

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It has what is wanted.
    AsWanted,
    /// It has another default, which somebody chose: left alone, and counted.
    Differs,
    /// It has none: set it.
    Set,
}

/// The labels of every state.
pub const STATES: [&str; 2] = ["as_wanted", "differs"];

// === impl Verdict ===

impl Verdict {
    pub fn state(self) -> &'static str {
        match self {
            Self::AsWanted | Self::Set => STATES[0],
            Self::Differs => STATES[1],
        }
    }
}

pub fn decide(current: Option<&Sse>, wanted: &Sse) -> Verdict {
    match current {
        None => Verdict::Set,
        Some(current) if current == wanted => Verdict::AsWanted,
        Some(_) => Verdict::Differs,
    }
}

/// For log lines.
pub fn named(sse: &Sse) -> String {
    match sse {
        Sse::S3 => "SSE-S3".to_owned(),
        Sse::Kms(key) => format!("SSE-KMS with '{key}'"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_bucket_without_a_default_is_changed() {
        let wanted = Sse::Kms("a".to_owned());
        assert_eq!(decide(None, &wanted), Verdict::Set);
        assert_eq!(decide(Some(&wanted), &wanted), Verdict::AsWanted);
        assert_eq!(decide(Some(&Sse::Kms("b".to_owned())), &wanted), Verdict::Differs);
        assert_eq!(decide(Some(&Sse::S3), &wanted), Verdict::Differs);
    }
}
