//! The decision about a bucket's default encryption.

use crate::s3::Sse;

/// The decision about a bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The bucket has the wanted default.
    AsWanted,
    /// The bucket has another default, which stays and is counted.
    Differs,
    /// The bucket has no default, and gets the wanted one.
    Set,
}

/// The states of buckets, as labels of metrics.
pub const STATES: [&str; 2] = ["as_wanted", "differs"];

// === impl Verdict ===

impl Verdict {
    /// The state of the bucket after the decision, one of [`STATES`].
    pub fn state(self) -> &'static str {
        match self {
            Self::AsWanted | Self::Set => STATES[0],
            Self::Differs => STATES[1],
        }
    }
}

/// Decides from a bucket's present default and the wanted one. Only a bucket without a default is changed.
pub fn decide(current: Option<&Sse>, wanted: &Sse) -> Verdict {
    match current {
        None => Verdict::Set,
        Some(current) if current == wanted => Verdict::AsWanted,
        Some(_) => Verdict::Differs,
    }
}

/// The encryption's name in log lines.
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
